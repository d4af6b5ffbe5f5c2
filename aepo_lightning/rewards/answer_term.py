"""The answer of a response as a term of a reward: read from it, and looked at by a rule or a judge."""

from collections.abc import Coroutine
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar, get_args

from aepo_lightning.contracts.checker import AnswerChecker, Claim, Verdict
from aepo_lightning.contracts.question import Question
from aepo_lightning.contracts.reward import RewardInput
from aepo_lightning.contracts.reward_term import TermOutput
from aepo_lightning.errors import ConfigError, RewardError
from aepo_lightning.rewards.answer_format import perfect_response
from aepo_lightning.rewards.boxed import BoxRule, boxed_answer
from aepo_lightning.rewards.extraction import EXTRACTION_MODES, ExtractionMode, extract_answer

T = TypeVar("T")

AnswerPlace: TypeAlias = BoxRule | ExtractionMode
"""Where an answer stands: in the box of the `<answer>` block, as `PaperReward` reads it, or by `extract_answer`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerTerm:
    """What a checker says of the answer, in [0, 1].

    A claim that the checker cannot score, because a judge was not reached, a rule came to no end, or the question has
    no accepted answer, leaves the trajectory without a reward.

    Attributes:
        checker: A rule, or a judge.
        place: Where the answer is read. `strict` and `official`: the box of the `<answer>` block, as in `PaperReward`.
            `paper`, `boxed`, `answer`, `whole`: see `extract_answer`.

    Raises:
        ConfigError: If the checker cannot be called, or `place` is an unknown word.
    """

    checker: AnswerChecker
    place: AnswerPlace = "strict"

    def __post_init__(self) -> None:
        """Refuse settings without meaning."""
        if isinstance(self.checker, type) or not callable(self.checker):
            raise ConfigError(f"`checker` must be an `AnswerChecker`, but got {self.checker!r:.80}. Pass an instance.")
        places = (*get_args(BoxRule), *EXTRACTION_MODES)
        if self.place not in places:
            raise ConfigError(f"`place` must be one of {', '.join(places)}, but got {self.place!r}.")

    @property
    def is_immediate(self) -> bool:
        """Whether the checker is arithmetic alone."""
        return bool(getattr(self.checker, "is_immediate", False))

    @property
    def keeps_deadline(self) -> bool:
        """Whether the checker has a deadline of its own, as a judge does: what it waits for is then not part of it."""
        return bool(getattr(self.checker, "keeps_deadline", False))

    async def __call__(self, sample: RewardInput) -> TermOutput:
        """Return the score of the answer.

        Raises:
            RewardError: If the checker answers with something that is no verdict.
        """
        answer = self._read(sample.response_text)
        verdict: object = await self.checker(Claim.of(sample.question, answer))
        if not isinstance(verdict, Verdict):
            found = f"{type(verdict).__name__} {verdict!r:.80}"
            raise RewardError(f"The checker `{type(self.checker).__name__}` must return a `Verdict`, but got {found}.")
        is_correct = verdict.is_correct if verdict.is_scored else None
        return TermOutput(
            value=verdict.score,
            is_correct=is_correct,
            f1=verdict.score if verdict.is_scored else None,
            answer=answer,
            reason=verdict.reason,
            is_scored=verdict.is_scored,
        )

    def gold_problem(self, question: Question, answer: str) -> str | None:
        """Return why a response that gives exactly this answer would not be right, or None if it would.

        Only rules are asked: a judge costs money.
        """
        if not self.is_immediate:
            return None
        claim = Claim.of(replace(question, answers=(answer,)), self._read(perfect_response(answer)))
        verdict = _at_once(self.checker(claim))
        if verdict is None or verdict.is_correct:
            return None
        return f"a response that gives exactly it is not right. {verdict.reason}".rstrip()

    def _read(self, text: str) -> str:
        if self.place == "strict" or self.place == "official":
            return (boxed_answer(text, self.place) or "").strip()
        return extract_answer(text, self.place)


def _at_once(work: Coroutine[Any, Any, T]) -> T | None:
    """Return what a coroutine returns that waits for nothing; None if it would wait."""
    try:
        work.send(None)
    except StopIteration as end:
        value: T = end.value
        return value
    work.close()
    return None
