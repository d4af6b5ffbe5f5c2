"""What is claimed to be the answer to a question, what was found about it, and the Protocol of those who look."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

from aepo_lightning.contracts.question import Question
from aepo_lightning.errors import DataError


def golds_of(question: Question) -> tuple[str, ...]:
    """Return the accepted answers of a question that are not blank.

    Raises:
        DataError: If one is no text.
    """
    golds: object = question.answers
    if isinstance(golds, str) or not all(isinstance(gold, str) for gold in question.answers):
        raise DataError(
            f"`answers` of question {question.question_id!r} must be a tuple of texts, but got {golds!r:.80}. "
            "Write each accepted answer as a text of its own."
        )
    return tuple(gold for gold in question.answers if gold.strip())


def choices_of(question: Question) -> tuple[str, ...]:
    """Return what a multiple-choice question offers, by `choices` of its metadata; nothing where it has none.

    Raises:
        DataError: If they are no list of texts and numbers.
    """
    choices: Any = question.metadata.get("choices")
    if choices is None:
        return ()
    is_list = isinstance(choices, Sequence) and not isinstance(choices, str | bytes)
    if not is_list or not all(isinstance(each, str | int | float) for each in choices):
        raise DataError(
            f"`choices` of question {question.question_id!r} must be a list of texts, in the order of their letters, "
            f"but got {choices!r:.80}. Write each choice as a text of its own."
        )
    return tuple(map(str, choices))


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """An answer as it was read from a response, beside what is known to be right."""

    question: str
    """As it was asked, without what was said about tools and form."""
    golds: tuple[str, ...]
    """Accepted answers; the best match counts. Empty where none is known."""
    answer: str
    """Empty if the response had none."""
    question_id: str = ""
    choices: tuple[str, ...] = ()
    """What a multiple-choice question offers, in the order of its letters."""

    @classmethod
    def of(cls, question: Question, answer: str) -> "Claim":
        """Return the claim that an answer to a question makes.

        Args:
            question: What is asked is its last message. `choices` of its metadata are those of multiple choice.
            answer: As it was read from a response.

        Returns:
            The claim. Accepted answers that are blank are left out.

        Raises:
            DataError: If the accepted answers or the choices are no texts.
        """
        return cls(
            question=question.messages[-1].content if question.messages else "",
            golds=golds_of(question),
            answer=answer,
            question_id=question.question_id,
            choices=choices_of(question),
        )


class Outcome(StrEnum):
    """Whether a claim could be looked at."""

    SCORED = "scored"
    ABSTAINED = "abstained"
    """A judge was not reached, or answered with what is no verdict."""
    UNSCORED = "unscored"
    """A rule did not come to an end within its limits, or there is nothing to compare with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was found about a claim.

    Raises:
        ValueError: If the score is not in [0, 1], or one that was not given is not 0.
    """

    outcome: Outcome = Outcome.SCORED
    score: float = 0.0
    """In [0, 1]; 0 unless scored."""
    is_correct: bool = False
    """What pass@k counts; False unless scored."""
    reason: str = ""
    """Why, for those who read results. Must be given unless scored."""

    def __post_init__(self) -> None:
        """Refuse what cannot be counted."""
        if not (math.isfinite(self.score) and 0 <= self.score <= 1):
            raise ValueError(f"`score` must be in [0, 1], but got {self.score}.")
        if self.outcome is not Outcome.SCORED and (self.score or self.is_correct or not self.reason):
            raise ValueError(
                f"A verdict that is {self.outcome} must have no score and a `reason`, but got score {self.score}, "
                f"is_correct {self.is_correct} and reason {self.reason!r}."
            )

    @property
    def is_scored(self) -> bool:
        """Whether the claim counts."""
        return self.outcome is Outcome.SCORED


@runtime_checkable
class AnswerChecker(Protocol):
    """Compares claims with accepted answers: a rule, a worker process, or a judge."""

    async def __call__(self, claim: Claim) -> Verdict:
        """Return what was found. Failures of its own are verdicts that are not scored, not exceptions."""
        ...


def best_of(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the best verdict of one claim against several accepted answers.

    A correct one is the best, then the scored one with the highest score. Where none is correct and some could not be
    scored, the claim is not scored: the one that is missing may be the right one.

    Raises:
        ValueError: If there are none.
    """
    if not verdicts:
        raise ValueError("`verdicts` must not be empty, but got none.")
    unscored = [each for each in verdicts if not each.is_scored]
    scored = [each for each in verdicts if each.is_scored]
    best = max(scored, key=lambda each: (each.is_correct, each.score), default=None)
    if best is not None and (best.is_correct or not unscored):
        return best
    return unscored[0]
