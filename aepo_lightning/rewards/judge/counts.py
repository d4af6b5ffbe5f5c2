"""What became of the claims before a judge, and what it cost."""

import threading
from collections import Counter
from dataclasses import dataclass, field, replace

from aepo_lightning.rewards.judge.failures import AbstentionKind
from aepo_lightning.rewards.judge.reply import Reply
from aepo_lightning.rewards.judge.settings import JudgePrices

_MILLION = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeCounts:
    """Sums over the claims since a judge was made."""

    num_claims: int = 0
    num_equal_by_rule: int = 0
    """Claims that the rule before the judge found correct."""
    num_without_answer: int = 0
    """Claims without an answer or without an accepted one: there was nothing to judge."""
    num_kept: int = 0
    """Claims whose verdict was in the store."""
    num_shared: int = 0
    """Claims that waited for the verdict on an equal one."""
    num_judged: int = 0
    """Claims on which the judge ruled `correct` or `incorrect`."""
    num_calls: int = 0
    """Requests that were sent, further attempts and those without the schema included."""
    num_uncounted_calls: int = 0
    """Replies whose tokens the server does not count."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None
    """In the currency of the prices; None without prices."""
    abstentions: dict[str, int] = field(default_factory=dict)
    """Kind (`AbstentionKind`) to number of claims."""

    @property
    def num_abstained(self) -> int:
        """Claims without a verdict."""
        return sum(self.abstentions.values())


class JudgeTally:
    """Counts from any thread.

    Args:
        prices: Of the tokens; None counts no cost.
    """

    def __init__(self, prices: JudgePrices | None) -> None:
        self._prices = prices
        self._lock = threading.Lock()
        self._sums: Counter[str] = Counter()
        self._abstentions: Counter[str] = Counter()

    def add(self, name: str) -> None:
        """Count one of what a field of `JudgeCounts` counts."""
        with self._lock:
            self._sums[name] += 1

    def abstain(self, kind: AbstentionKind) -> int:
        """Count a claim without a verdict; return how many of the kind there are."""
        with self._lock:
            self._abstentions[str(kind)] += 1
            return self._abstentions[str(kind)]

    def spend(self, reply: Reply) -> None:
        """Count the tokens of a reply."""
        with self._lock:
            self._sums["num_uncounted_calls"] += reply.prompt_tokens is None or reply.completion_tokens is None
            self._sums["prompt_tokens"] += reply.prompt_tokens or 0
            self._sums["completion_tokens"] += reply.completion_tokens or 0

    def counts(self) -> JudgeCounts:
        """Return the sums so far."""
        with self._lock:
            counts = JudgeCounts(**self._sums, abstentions=dict(sorted(self._abstentions.items())))
        if self._prices is None:
            return counts
        cost = counts.prompt_tokens * self._prices.prompt + counts.completion_tokens * self._prices.completion
        return replace(counts, cost=cost / _MILLION)
