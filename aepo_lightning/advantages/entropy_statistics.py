"""Mean and standard deviation of token entropies, in a form that adds up over trajectories and ranks."""

import math
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyStatistics:
    """Three sums over tokens, as Python floats: double precision on any device, safe to send and to checkpoint."""

    count: float = 0.0
    """Number of tokens."""
    total: float = 0.0
    """Sum of entropies, in nats."""
    total_squares: float = 0.0
    """Sum of squared entropies."""

    @classmethod
    def from_tokens(
        cls, entropies: Float[Tensor, "batch response"], mask: Bool[Tensor, "batch response"]
    ) -> "EntropyStatistics":
        """Collect the tokens of the mask.

        Args:
            entropies: Of each token, in nats.
            mask: True where the token counts.

        Returns:
            Their sums; zeros for an empty mask.
        """
        # To the CPU first: some accelerators have no float64.
        values = entropies.detach()[mask].cpu().double()
        return cls(count=float(len(values)), total=float(values.sum()), total_squares=float(values.square().sum()))

    def __add__(self, other: "EntropyStatistics") -> "EntropyStatistics":
        """Return the statistics of both sets of tokens."""
        return EntropyStatistics(
            count=self.count + other.count,
            total=self.total + other.total,
            total_squares=self.total_squares + other.total_squares,
        )

    @property
    def mean(self) -> float:
        """The mean entropy in nats, 0 for no tokens."""
        return self.total / self.count if self.count > 0 else 0.0

    @property
    def std(self) -> float:
        """The unbiased standard deviation in nats; 1 for fewer than two tokens and where all entropies are equal."""
        if self.count < 2:
            return 1.0
        deviations = self.total_squares - self.total**2 / self.count
        # The difference of two sums carries a rounding error of about 1e-16 of them per addition.
        if deviations <= 1e-12 * self.total_squares:
            return 1.0
        return math.sqrt(deviations / (self.count - 1))
