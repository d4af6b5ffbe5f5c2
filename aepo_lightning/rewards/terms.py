"""Terms of a reward: the form of a response, the tools that it used, how long it is.

Each gives one number, which `RewardSum` weighs and adds up. That of the answer is in `answer_term.py`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from aepo_lightning.contracts.generation import StopReason
from aepo_lightning.contracts.overlong import (
    check_overlong_lengths,
    overlong_buffer,
    overlong_lengths,
    overlong_share,
)
from aepo_lightning.contracts.question import Question
from aepo_lightning.contracts.reward import MAX_REWARD, RewardInput
from aepo_lightning.contracts.reward_term import TermOutput
from aepo_lightning.errors import ConfigError, RewardError
from aepo_lightning.rewards.answer_format import find_format_problem, perfect_response
from aepo_lightning.rewards.boxed import BoxRule, boxed_answer, check_box_rule, no_box_problem
from aepo_lightning.rewards.tool_use import used_all


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatTerm:
    r"""`penalty` for a response that breaks the grammar of trajectories, which is then all that it gets; else 0.

    Attributes:
        tool_tags: Names of the tools whose calls are checked.
        penalty: What a malformed response gives.
        is_final: Whether a malformed response gets nothing else. False adds the other terms to the penalty.
        box: Which box must stand in the answer: `strict`, or `official`, as in `PaperReward`.

    Raises:
        ConfigError: If the penalty is positive or not finite, a tag is no name, or `box` is an unknown word.

    References:
        ARPO, arXiv:2507.19849, eq. 8 ("if the format is good"), which AEPO, arXiv:2510.14545, trains with as well. The
        checks are those of the released reward function.
    """

    tool_tags: Sequence[str] = ("search", "python")
    penalty: float = -1.0
    is_final: bool = True
    box: BoxRule = "strict"
    checks_form: ClassVar[bool] = True
    is_immediate: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse settings without meaning."""
        if not -MAX_REWARD <= self.penalty <= 0:
            raise ConfigError(f"`penalty` must be 0 or negative and finite, but got {self.penalty}.")
        _check_names("tool_tags", self.tool_tags)
        check_box_rule(self.box)

    async def __call__(self, sample: RewardInput) -> TermOutput:
        """Return the penalty if the response is malformed, and what is wrong with it."""
        if not (problem := self._problem(sample.response_text)):
            return TermOutput(value=0.0, is_well_formed=True)
        return TermOutput(
            value=self.penalty, is_correct=False, is_well_formed=False, reason=problem, is_final=self.is_final
        )

    def gold_problem(self, question: Question, answer: str) -> str | None:
        """Return why a response that gives exactly this answer would be malformed, or None if it would not."""
        del question
        problem = self._problem(perfect_response(answer))
        return f"a response that gives exactly it is malformed. {problem}" if problem else None

    def _problem(self, text: str) -> str:
        problem = find_format_problem(text, self.tool_tags)
        return problem or (no_box_problem(self.box) if boxed_answer(text, self.box) is None else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolTerm:
    """1 for a trajectory that used all of some tools, else 0. Its weight is the bonus (r_M of the paper: 0.1).

    Attributes:
        tools: Their names.
        from_executed_calls: Count a tool as used only if one of its calls reached it. False reads the closing tags off
            the text, as the released reward function does, so that tags without any call earn the bonus.

    Raises:
        ConfigError: If no tool or one that is no name is given.

    References:
        ARPO, arXiv:2507.19849, eq. 8, which AEPO, arXiv:2510.14545, trains with as well.
    """

    tools: Sequence[str] = ("search", "python")
    from_executed_calls: bool = False
    is_immediate: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse names without meaning."""
        _check_names("tools", self.tools)
        if not self.tools:
            raise ConfigError("`tools` must name at least one tool, but got none. Leave the term out.")

    async def __call__(self, sample: RewardInput) -> TermOutput:
        """Return whether the tools were used."""
        return TermOutput(value=float(used_all(sample, self.tools, self.from_executed_calls)))


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlongTerm:
    """DAPO's soft punishment of long trajectories, in [-1, 0], as a part of the reward: see `OverlongPenalty`.

    The advantages see the same either way. As a term it is in the logged reward, and groups that differ by it alone
    count as different; as `algorithm.overlong` it is in neither.

    Attributes:
        max_tokens: L_max: from this length on the punishment is whole. None is the limit of the rollouts.
        buffer_tokens: L_cache: the last so many tokens before it, in which it grows. None is a fifth of it.

    Raises:
        ConfigError: If a length is not positive, or the buffer is not the shorter one; at the start of a training, if
            `max_tokens` is above the limit of the rollouts.

    References:
        DAPO, arXiv:2503.14476, eq. 13. A trajectory that was cut off before its limit counts as longer than it.
    """

    max_tokens: int | None = None
    buffer_tokens: int | None = None
    punishes_overlong: ClassVar[bool] = True
    is_immediate: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse lengths without meaning."""
        check_overlong_lengths(self.max_tokens, self.buffer_tokens)
        if self.max_tokens is not None:
            overlong_buffer(self.max_tokens, self.buffer_tokens, "buffer_tokens")

    def check_response_limit(self, max_response_tokens: int) -> None:
        """Refuse lengths that no trajectory of rollouts with this limit can have.

        Raises:
            ConfigError: If `max_tokens` is above the limit, or the buffer is not shorter than what it leads up to.
        """
        overlong_lengths(self.max_tokens, self.buffer_tokens, max_response_tokens, "OverlongTerm")

    async def __call__(self, sample: RewardInput) -> TermOutput:
        """Return the punishment.

        Raises:
            RewardError: If the longest length is neither set nor known.
        """
        longest = _longest(self.max_tokens, sample)
        buffer = overlong_buffer(longest, self.buffer_tokens, "buffer_tokens")
        is_truncated = sample.stop_reason is StopReason.LENGTH
        return TermOutput(value=0.0 - overlong_share(sample.num_response_tokens, is_truncated, longest, buffer))


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthTerm:
    """Minus the length of a response as a share of the longest, in [-1, 0]. Tool results count.

    Attributes:
        max_tokens: The length that gives -1. None is the limit of the rollouts.

    Raises:
        ConfigError: If it is not positive.
    """

    max_tokens: int | None = None
    is_immediate: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse a length without meaning."""
        check_overlong_lengths(self.max_tokens, None)

    async def __call__(self, sample: RewardInput) -> TermOutput:
        """Return the share.

        Raises:
            RewardError: If the longest length is neither set nor known.
        """
        return TermOutput(value=0.0 - min(1.0, sample.num_response_tokens / _longest(self.max_tokens, sample)))


def _longest(max_tokens: int | None, sample: RewardInput) -> int:
    longest = sample.max_response_tokens if max_tokens is None else max_tokens
    if longest is None:
        raise RewardError(
            f"`max_tokens` must be set where a trajectory does not know its limit, but got None for question "
            f"{sample.question.question_id!r}. Set it, or pass `max_response_tokens`."
        )
    return longest


def _check_names(setting: str, names: Sequence[str]) -> None:
    if isinstance(names, str) or not all(isinstance(name, str) and re.fullmatch("[a-z0-9_]+", name) for name in names):
        raise ConfigError(f"`{setting}` must be a list of names of tools, but got {names!r:.80}.")
