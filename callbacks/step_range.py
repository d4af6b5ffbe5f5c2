"""How a callback may move a setting that it steers."""

import math
from dataclasses import dataclass

from aepo_lightning.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRange:
    """How far a setting moves in an iteration, and between which values.

    Raises:
        ConfigError: If a number is out of range.
    """

    step: float
    """Positive."""
    minimum: float
    """At least 0."""
    maximum: float

    def __post_init__(self) -> None:
        """Refuse numbers without meaning."""
        if not (math.isfinite(self.step) and self.step > 0):
            raise ConfigError(f"`step` must be positive and finite, but got {self.step}. Use no target for a constant.")
        if not 0 <= self.minimum <= self.maximum < math.inf:
            raise ConfigError(
                f"`minimum` and `maximum` must satisfy 0 <= minimum <= maximum, but got {self.minimum} and "
                f"{self.maximum}. Swap or raise them."
            )

    def within(self, value: float) -> float:
        """Return the value in the range that is nearest."""
        return min(max(value, self.minimum), self.maximum)
