"""A fixed share of the sampling budget for the root."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from aepo_lightning.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class RootShare:
    """Start m = k * share chains at the root for every question, rounded to the nearest integer and at least 1.

    Args:
        share: In (0, 1]. 1 is independent sampling, 0.5 is ARPO.

    References:
        ARPO, arXiv:2507.19849, section 3.1.
    """

    share: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a share that is none."""
        if not 0 < self.share <= 1:
            raise ConfigError(f"`share` must be in (0, 1], but got {self.share}. Branches need a chain to branch from.")

    @property
    def needs_probe(self) -> bool:
        """False: no entropy is looked at."""
        return False

    def global_budget(self, total: int, root_entropy: float, tool_entropies: Sequence[float]) -> int:  # noqa: ARG002
        """Return m in [1, total]; halves are rounded up.

        Args:
            total: k, trajectories that the question may spend.
            root_entropy: Not used.
            tool_entropies: Not used.

        Raises:
            ValueError: If `total` is below 1.
        """
        if total < 1:
            raise ValueError(f"`total` must be at least 1, but got {total}. A question needs one trajectory.")
        return min(total, max(1, math.floor(total * self.share + 0.5)))
