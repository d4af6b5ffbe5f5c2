"""A reward that is a sum of terms, each with a name, a weight and, where it is slow, limits of its own."""

import asyncio
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

from aepo_lightning.contracts.blame import part_name
from aepo_lightning.contracts.question import Question
from aepo_lightning.contracts.reward import (
    TERM_NAME,
    AnyRewardLimits,
    ChecksGolds,
    Reward,
    RewardInput,
    RewardLimits,
    RewardOutput,
)
from aepo_lightning.contracts.reward_term import RewardTerm, TermOutput
from aepo_lightning.errors import ConfigError
from aepo_lightning.rewards.limited_term import LimitedTerm
from aepo_lightning.rewards.term_settings import check_settings

AnyTerm: TypeAlias = RewardTerm | Reward | Callable[[RewardInput], Any]
_NO_LIMITS = RewardLimits(deadline_s=math.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardSum:
    """clip(sum of weight * value over terms), and what each term gave.

    Terms that are arithmetic are asked first, in their order; one that is final (a malformed response) ends it. The
    others are asked side by side. What they know is put together: an answer is right if no term says that it is not; F1
    and answer are those of the first term that has them; a trajectory of which one term with a weight cannot say what
    it is worth has no reward. Where no term knows what is right, a reward of 1 or more is.

    Attributes:
        terms: By name: `FormatTerm`, `AnswerTerm` and their like, a reward, or a function of the trajectory. Functions,
            named by `@reward` or as they are called, may also stand in a list.
        weights: By the name of the term; 1 for those that are not named, 0 to log a term without counting it.
        clip: Lower and upper bound of the sum; either may be None.
        only_with: Terms that count only where another term gave more than 0, by their names: the paper's bonus for
            tools only with the answer. The others are asked first.
        limits: Place, deadline and meaning of failures of single terms, by their names. Terms that are not named have
            those of the run. As those of the run they decide no finished reward: trees are taken over under others.

    Raises:
        ConfigError: If there is no term, a name is none or stands twice, a setting names no term, a weight or a bound
            is no finite number, or terms wait for each other.
    """

    terms: Mapping[str, AnyTerm] | Sequence[AnyTerm]
    weights: Mapping[str, float] = field(default_factory=dict)
    clip: Sequence[float | None] | None = None
    only_with: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, AnyRewardLimits] = field(default_factory=dict, metadata={"is_described": False})
    _run_limits: RewardLimits = field(init=False, repr=False, compare=False, default=_NO_LIMITS)
    _asked: Mapping[str, LimitedTerm] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Name the terms and refuse settings that do not fit them."""
        terms = dict(self.terms) if isinstance(self.terms, Mapping) else _named(self.terms)
        object.__setattr__(self, "terms", terms)
        check_settings(terms, self.weights, self.clip, self.only_with, self.limits)
        self._limit(_NO_LIMITS)

    def _limit(self, limits: RewardLimits) -> None:
        owner = part_name(self)
        own = {name: RewardLimits.of(each) for name, each in self.limits.items()}
        asked = {
            name: LimitedTerm(name=name, term=term, limits=own.get(name, limits), owner=owner)
            for name, term in self._terms.items()
        }
        object.__setattr__(self, "_run_limits", limits)
        object.__setattr__(self, "_asked", asked)

    @property
    def _terms(self) -> Mapping[str, AnyTerm]:
        assert isinstance(self.terms, Mapping), "a list was named"
        return self.terms

    def limited(self, limits: RewardLimits) -> "RewardSum":
        """Return the same sum whose terms have these limits, unless they have their own.

        Args:
            limits: Of the run. What a failure means and how many trajectories are scored at once is left to it.
        """
        found = replace(self)
        found._limit(replace(limits, max_concurrent=None, on_error="fail"))
        return found

    @property
    def is_immediate(self) -> bool:
        """Whether all terms are arithmetic alone."""
        return all(term.is_immediate for term in self._asked.values())

    @property
    def keeps_deadline(self) -> bool:
        """Whether each term has a deadline, so that the wait for places and for other terms is in none."""
        return self._run_limits is not _NO_LIMITS

    @property
    def checks_form(self) -> bool:
        """Whether a term looks at the form of responses."""
        return any(getattr(term, "checks_form", False) for term in self._terms.values())

    @property
    def punishes_overlong(self) -> bool:
        """Whether a term is DAPO's punishment of long trajectories."""
        return any(getattr(term, "punishes_overlong", False) for term in self._terms.values())

    def check_response_limit(self, max_response_tokens: int) -> None:
        """Have the terms that depend on the longest length of a trajectory look at it.

        Raises:
            ConfigError: If one could never give what it is there for.
        """
        for term in self._terms.values():
            if (check := getattr(term, "check_response_limit", None)) is not None:
                check(max_response_tokens)

    async def __call__(self, sample: RewardInput) -> RewardOutput:
        """Return what the trajectory is worth.

        Raises:
            RewardError: If a term failed, and its limits do not say what that means.
        """
        found: dict[str, TermOutput] = {}
        waiting = [name for name in self._asked if name not in self.only_with]
        for name in waiting:
            if self._asked[name].is_immediate:
                found[name] = await self._asked[name].ask(sample)
                if found[name].is_final:
                    return self._combined({name: found[name]})
        await self._ask((name for name in waiting if name not in found), sample, found)
        allowed = [name for name, other in self.only_with.items() if found[other].value > 0]
        if not any(output.is_final for output in found.values()):
            await self._ask(allowed, sample, found)
        final = next((name for name in self._asked if name in found and found[name].is_final), None)
        return self._combined(found if final is None else {final: found[final]})

    async def _ask(self, names: Iterable[str], sample: RewardInput, found: dict[str, TermOutput]) -> None:
        """Ask terms side by side; where one fails, the others are cancelled."""
        slow = []
        for name in names:
            if self._asked[name].is_immediate:
                found[name] = await self._asked[name].ask(sample)
            else:
                slow.append(name)
        tasks = [asyncio.ensure_future(self._asked[name].ask(sample)) for name in slow]
        try:
            found.update(zip(slow, await asyncio.gather(*tasks), strict=True))
        finally:
            for task in tasks:
                task.cancel()

    def _combined(self, found: Mapping[str, TermOutput]) -> RewardOutput:
        outputs = [found[name] for name in self._asked if name in found]
        values = {name: found[name].value if name in found else 0.0 for name in self._asked}
        # Exact until it is rounded once, so that the order of terms changes nothing.
        reward = self._clipped(math.fsum(self.weights.get(name, 1.0) * value for name, value in values.items()))
        right = [output.is_correct for output in outputs if output.is_correct is not None]
        f1s = [output.f1 for output in outputs if output.f1 is not None]
        return RewardOutput(
            reward=reward,
            is_correct=all(right) if right else reward >= 1.0,
            is_well_formed=all(output.is_well_formed is not False for output in outputs),
            f1=f1s[0] if f1s else 0.0,
            answer=next((output.answer for output in outputs if output.answer), ""),
            reason=" ".join(output.reason for output in outputs if output.reason),
            is_scored=all(found[name].is_scored for name in found if self.weights.get(name, 1.0)),
            terms=values,
            has_failed=any(output.has_failed for output in outputs),
        )

    def _clipped(self, value: float) -> float:
        low, high = self.clip or (None, None)
        value = value if low is None else max(low, value)
        return value if high is None else min(high, value)

    def gold_problem(self, question: Question, answer: str) -> str | None:
        """Return why a term would not give a response its best that gives exactly this answer, or None if all would."""
        terms: Iterable[object] = self._terms.values()
        checks = [term for term in terms if isinstance(term, ChecksGolds)]
        problems = (term.gold_problem(question, answer) for term in checks)
        return next((problem for problem in problems if problem), None)


def _named(terms: Sequence[AnyTerm]) -> dict[str, AnyTerm]:
    """Return terms of a list by their names.

    Raises:
        ConfigError: If one has no name, or two have the same.
    """
    named: dict[str, AnyTerm] = {}
    for term in terms:
        function: Any = term.func if isinstance(term, partial) else term
        name = getattr(function, "reward_name", None) or (function.__name__ if inspect.isroutine(function) else None)
        if name is None or not TERM_NAME.fullmatch(name):
            raise ConfigError(
                f"`terms` must name what is no function, but got {term!r:.80} in a list. Write them as a mapping: "
                "{'length': ...}."
            )
        if name in named:
            raise ConfigError(
                f"`terms` must have different names, but got {name!r} twice. Name one with `@reward(name=...)`, or "
                "write them as a mapping."
            )
        named[name] = term
    return named
