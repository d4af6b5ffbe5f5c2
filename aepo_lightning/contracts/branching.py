"""Who branches when: what is known at a decision, the Protocols of branch policies and of the split of the budget."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchContext:
    """What is known at the moment of one branch decision."""

    entropy: float
    """Aggregated entropy of the measured tokens."""
    initial_entropy: float
    """The same aggregate for the first tokens of the chain."""
    consecutive_branches: int
    """l: branch decisions in a row that opened a branch, up to this one."""
    uniform: float
    """A seeded random number in [0, 1) that belongs to this decision."""


@runtime_checkable
class BranchPolicy(Protocol):
    """Decides, after a tool result, how many siblings a chain gets."""

    def num_branches(self, context: BranchContext) -> int:
        """Return how many branches to open (0 to go on alone)."""
        ...


@runtime_checkable
class BudgetAllocator(Protocol):
    """Splits the sampling budget of a question between fresh chains and branches."""

    @property
    def needs_probe(self) -> bool:
        """Whether one whole trajectory must be sampled before the split is known."""
        ...

    def global_budget(self, total: int, root_entropy: float, tool_entropies: Sequence[float]) -> int:
        """Return m, the number of chains that start at the root, in [1, total]."""
        ...


@runtime_checkable
class ScoredBranchPolicy(Protocol):
    """A branch policy whose decision is a score, which entropy and earlier branches move away from a base."""

    @property
    def alpha(self) -> float:
        """The score where the entropy has not changed and no branch went before."""
        ...

    def score(self, context: BranchContext) -> float:
        """Return the score: what a draw is compared with, or what is compared with a threshold."""
        ...

    def num_branches(self, context: BranchContext) -> int:
        """Return how many branches to open."""
        ...


@runtime_checkable
class PenalisedBranchPolicy(Protocol):
    """A branch policy whose penalty can be read and replaced."""

    @property
    def penalty_per_step(self) -> float:
        """Share of the branch score that each consecutive branch takes away."""
        ...

    def num_branches(self, context: BranchContext) -> int:
        """Return how many branches to open."""
        ...

    def with_penalty(self, penalty_per_step: float) -> BranchPolicy:
        """Return the same policy with another penalty."""
        ...
