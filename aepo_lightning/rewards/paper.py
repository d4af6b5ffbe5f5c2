r"""The reward of the paper: format first, then token F1, then a bonus for using both tools."""

import math
import re
from dataclasses import dataclass, replace
from typing import ClassVar

from aepo_lightning.contracts.checker import golds_of
from aepo_lightning.contracts.question import Question
from aepo_lightning.contracts.reward import RewardInput, RewardOutput
from aepo_lightning.errors import ConfigError, RewardError
from aepo_lightning.rewards.answer_format import find_format_problem, perfect_response
from aepo_lightning.rewards.boxed import BoxRule, boxed_answer, check_box_rule, last_boxed, no_box_problem
from aepo_lightning.rewards.tool_use import used_all
from aepo_lightning.rewards.typed import RULES, Comparison

_MALFORMED_REWARD = -1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperReward:
    r"""Score a response: -1 if malformed, else its best F1, plus a bonus if it is positive and both tools were used.

    Two properties of the official rule are kept on purpose, because results depend on them. Tool results are part of
    the checked text; a result that contains `<answer>` costs nothing all the same, because chat formats make tags in
    results harmless before the policy sees them. And "both tools were used" is read off the text, so the two closing
    tags earn the bonus without any call; `bonus_from_executed_calls` closes that gap.

    Attributes:
        multi_tool_bonus: r_M, added when both tools were used and F1 is positive.
        search_tag: Name of the search tool.
        python_tag: Name of the Python tool.
        bonus_from_executed_calls: Count a tool as used only if one of its calls reached the tool (whether it answered,
            answered nothing, failed or ran out of time). False is the official rule.
        match: How an answer is compared with the accepted ones. `typed`: numbers as numbers, choices as choices, the
            rest as words. `words`: all as words without punctuation, as the released reward function does it, where 3.5
            accepts 35 and nothing earns the reward of A or +.
        box: Where the answer is read. `strict`: the last `\boxed{...}`. `official`: as the released reward function
            does it, where what follows a `\boxed` and a space takes precedence and any other `\boxed` in the last place
            costs the format. The format asks for a `\boxed{` and a `}` in the answer either way.

    Raises:
        ConfigError: If the bonus is negative or not finite, or a tag is not a name, or both tags are the same, or
            `match` or `box` is an unknown word.

    References:
        ARPO, arXiv:2507.19849, eq. 8, which AEPO, arXiv:2510.14545, trains with as well. `r_M` and the token F1 as
        accuracy follow the released reward function. Departures: `match` and `box`.
    """

    multi_tool_bonus: float = 0.1
    search_tag: str = "search"
    python_tag: str = "python"
    bonus_from_executed_calls: bool = False
    match: Comparison = "typed"
    box: BoxRule = "strict"
    checks_form: ClassVar[bool] = True
    is_immediate: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse settings that have no meaning."""
        if not (math.isfinite(self.multi_tool_bonus) and self.multi_tool_bonus >= 0):
            raise ConfigError(
                f"`multi_tool_bonus` must be at least 0 and finite, but got {self.multi_tool_bonus}. Use 0 for none."
            )
        for name in ("search_tag", "python_tag"):
            if not re.fullmatch("[a-z_]+", getattr(self, name)):
                raise ConfigError(
                    f"`{name}` must match [a-z_]+, but got {getattr(self, name)!r}. Use the name of the tool."
                )
        if self.search_tag == self.python_tag:
            raise ConfigError(
                f"`search_tag` and `python_tag` must differ, but got {self.search_tag!r} twice. Name two tools."
            )
        if self.match not in RULES:
            raise ConfigError(f"`match` must be one of {', '.join(RULES)}, but got {self.match!r}.")
        check_box_rule(self.box)

    async def __call__(self, sample: RewardInput) -> RewardOutput:
        """Return what the trajectory is worth; see `score`."""
        return self.score(sample)

    def score(self, sample: RewardInput) -> RewardOutput:
        r"""Return what the trajectory is worth.

        Args:
            sample: A finished trajectory and its question.

        Returns:
            A reward of -1, or in [0, 1 + `multi_tool_bonus`]. `reason` says why a reward is not positive. A response
            that passes the format check but whose last box cannot be read also counts as malformed.

        Raises:
            RewardError: If the question has no accepted answer that says anything, or there are more tool results than
                tool calls.
            DataError: If an accepted answer is no text.
        """
        self._check(sample)
        text = sample.response_text
        if problem := find_format_problem(text, (self.search_tag, self.python_tag)):
            return _malformed(problem)
        boxed = boxed_answer(text, self.box)
        if boxed is None:
            return _malformed(no_box_problem(self.box))
        measure, is_same = RULES[self.match]
        f1 = max(measure(boxed, answer) for answer in sample.question.answers)
        bonus = self.multi_tool_bonus if f1 > 0 and self._used_both_tools(sample) else 0.0
        return RewardOutput(
            reward=f1 + bonus,
            is_correct=any(is_same(boxed, answer) for answer in sample.question.answers),
            is_well_formed=True,
            f1=f1,
            answer=boxed.strip(),
            reason="" if f1 > 0 else "The answer shares no word with an accepted answer.",
        )

    def gold_problem(self, question: Question, answer: str) -> str | None:
        r"""Return why a response that gives exactly this answer would not earn the full reward, or None if it would.

        Such as an answer whose braces do not close, so that no `\boxed{...}` holds it, or one with a tag in it.
        """
        # Every text is the same as itself by the typed rule; what is left is whether it can stand in a box.
        if (
            self.match == "typed"
            and answer.strip()
            and "<" not in answer
            and last_boxed(rf"\boxed{{{answer}}}") == answer
        ):
            return None
        text = perfect_response(answer)
        output = self.score(RewardInput(question=replace(question, answers=(answer,)), response_text=text))
        if output.f1 >= 1.0 and output.is_correct:
            return None
        return f"a response that gives exactly it earns {output.reward:g}. {output.reason}".rstrip()

    def _check(self, sample: RewardInput) -> None:
        question, num_calls, num_results = sample.question, len(sample.tool_calls), len(sample.tool_results)
        if not golds_of(question):
            raise RewardError(
                f"`answers` of question {question.question_id!r} must not be empty or blank. Drop the question or add "
                "an answer."
            )
        if num_results > num_calls:
            raise RewardError(
                f"`tool_results` must not outnumber `tool_calls`, but got {num_results} for {num_calls} calls "
                f"(question {question.question_id!r}). Pass one result per executed call, in order."
            )

    def _used_both_tools(self, sample: RewardInput) -> bool:
        return used_all(sample, (self.search_tag, self.python_tag), self.bonus_from_executed_calls)


def _malformed(reason: str) -> RewardOutput:
    return RewardOutput(reward=_MALFORMED_REWARD, is_correct=False, is_well_formed=False, reason=reason)
