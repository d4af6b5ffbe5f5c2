"""Entropy pre-monitoring: one probe trajectory decides how the sampling budget is split."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from aepo_lightning.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class PreMonitoring:
    """Give m = k * sigmoid(beta * (H_root - H_tool_avg)) trajectories to the root, rounded and kept in [1, k].

    A question that is uncertain from the start gets fresh chains; one that becomes uncertain after tool results gets
    branches. The share p = m / k maximises p * H_root + (1 - p) * H_tool_avg + H_b(p) / beta with H_b the binary
    entropy in nats, so 1 / beta is the temperature of the split: beta = 0 halves the budget, a large beta gives all
    of it to the side with the higher entropy.

    Args:
        beta: Sensitivity to the entropy difference, at least 0, per unit in which the entropies are measured.
        rounding: `nearest` rounds to the nearest integer, halves up. `floor_plus_one` is the released code: up to one
            trajectory more for the root.
        includes_root_turn: If True, the average runs over the turn before the first tool call as well, with
            `root_entropy` as its entropy, as in the released code. That shrinks the difference by N / (N + 1) for
            N tool calls.
        min_global_budget: Least m, at least 1. With 2 every chain from the root has another one to be compared with.

    References:
        AEPO, arXiv:2510.14545, entropy pre-monitoring. beta = 0.5, `floor_plus_one` and `includes_root_turn` are the
        released code; the paper states neither beta nor the rounding.
    """

    beta: float = 0.5
    rounding: Literal["nearest", "floor_plus_one"] = "nearest"
    includes_root_turn: bool = False
    min_global_budget: int = 1

    def __post_init__(self) -> None:
        """Refuse settings that have no meaning."""
        if not (math.isfinite(self.beta) and self.beta >= 0):
            raise ConfigError(f"`beta` must be finite and at least 0, but got {self.beta}. 0 halves the budget.")
        if self.rounding not in ("nearest", "floor_plus_one"):
            raise ConfigError(f"`rounding` must be 'nearest' or 'floor_plus_one', but got {self.rounding!r}.")
        if self.min_global_budget < 1:
            raise ConfigError(f"`min_global_budget` must be at least 1, but got {self.min_global_budget}.")

    @property
    def needs_probe(self) -> bool:
        """True: the entropies come from one whole trajectory."""
        return True

    def global_budget(self, total: int, root_entropy: float, tool_entropies: Sequence[float]) -> int:
        """Return m, the number of chains that start at the root, in [1, total].

        Args:
            total: k, trajectories that the question may spend, at least 1.
            root_entropy: H_root, entropy of the first tokens of the probe.
            tool_entropies: Entropy after each tool result of the probe, in the unit of `root_entropy`. If the probe
                called no tool, H_tool_avg has no value and there is nothing to branch at, so m = k; with
                `includes_root_turn` the average is H_root itself and the rule applies as it stands.

        Raises:
            ValueError: If `total` is below 1 or an entropy is not finite.
        """
        if total < 1:
            raise ValueError(f"`total` must be at least 1, but got {total}. A question needs one trajectory.")
        if not all(math.isfinite(entropy) for entropy in (root_entropy, *tool_entropies)):
            raise ValueError(
                f"Entropies must be finite, but got `root_entropy` {root_entropy} and `tool_entropies` "
                f"{list(tool_entropies)}. Check the log-probs that the engine returned."
            )
        turns = [root_entropy, *tool_entropies] if self.includes_root_turn else list(tool_entropies)
        if not turns:
            return total
        share = _sigmoid(self.beta * (root_entropy - math.fsum(turns) / len(turns)))
        return min(max(self._round(total * share), self.min_global_budget), total)

    def _round(self, value: float) -> int:
        """Turn a positive real number of trajectories into a whole one."""
        if self.rounding == "floor_plus_one":
            return math.floor(value) + 1
        return math.floor(value + 0.5)


def _sigmoid(x: float) -> float:
    """Return 1 / (1 + exp(-x)) without overflow."""
    return 0.5 * (1.0 + math.tanh(0.5 * x))
