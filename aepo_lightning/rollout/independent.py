"""Independent samples: every trajectory starts at the root, and none branches."""

from collections.abc import Sequence
from dataclasses import dataclass

from aepo_lightning.contracts.branching import BranchContext


@dataclass(frozen=True, slots=True, kw_only=True)
class Independent:
    """Allocator and branch policy of plain sampling, as evaluation does it."""

    @property
    def needs_probe(self) -> bool:
        """False: no entropy is looked at."""
        return False

    def global_budget(self, total: int, root_entropy: float, tool_entropies: Sequence[float]) -> int:  # noqa: ARG002
        """Return the whole budget."""
        return total

    def num_branches(self, context: BranchContext) -> int:  # noqa: ARG002
        """Return 0."""
        return 0
