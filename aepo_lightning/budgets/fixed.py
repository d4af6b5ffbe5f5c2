"""The same split of the sampling budget for every question."""

from collections.abc import Sequence
from dataclasses import dataclass

from aepo_lightning.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedBudget:
    """Start the same number m of chains at the root for every question, whatever the entropies are.

    Args:
        num_root_chains: m, at least 1. Equal to the total budget, it leaves nothing for branches.

    References:
        ARPO, arXiv:2507.19849, section 3.1, which uses m = k / 2.
    """

    num_root_chains: int

    def __post_init__(self) -> None:
        """Refuse a split without a root chain."""
        if self.num_root_chains < 1:
            raise ConfigError(
                f"`num_root_chains` must be at least 1, but got {self.num_root_chains}. "
                "Branches need a chain to branch from."
            )

    @property
    def needs_probe(self) -> bool:
        """False: no entropy is looked at."""
        return False

    def global_budget(self, total: int, root_entropy: float, tool_entropies: Sequence[float]) -> int:  # noqa: ARG002
        """Return m.

        Args:
            total: k, trajectories that the question may spend.
            root_entropy: Not used.
            tool_entropies: Not used.

        Raises:
            ConfigError: If m exceeds k.
        """
        if self.num_root_chains > total:
            raise ConfigError(
                f"`num_root_chains` must be at most the total budget, but got {self.num_root_chains} of {total}. "
                "Lower `num_root_chains` or raise the budget."
            )
        return self.num_root_chains
