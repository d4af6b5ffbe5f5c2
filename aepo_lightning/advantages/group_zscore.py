"""The advantage of GRPO: rewards of one question, centred and scaled."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from aepo_lightning.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupZScore:
    """Subtract the group mean from each reward and, unless switched off, divide by the group standard deviation.

    With weights w, the mean is sum(w r) / sum(w), and the variance is n / (n - 1) sum(w (r - mean)^2) / sum(w), where n
    is the number of root chains: the trajectories of one chain are no independent samples. Without branches, or
    without weights, that is the unbiased variance over the trajectories.

    References:
        DeepSeekMath (GRPO), arXiv:2402.03300, section 4.1.2. Without the division: Dr. GRPO, arXiv:2503.20783.
        The standard deviation is the unbiased one, as in verl. Departure: verl gives a group of one its raw reward.
    """

    normalize_by_std: bool = True
    """False only subtracts the mean."""
    epsilon: float = 1e-6
    """Added to the standard deviation."""

    def __post_init__(self) -> None:
        """Refuse settings that have no meaning."""
        if not self.epsilon > 0:
            raise ConfigError(f"`epsilon` must be positive, but got {self.epsilon}.")

    def __call__(
        self,
        rewards: Float[Tensor, " group"],
        weights: Float[Tensor, " group"] | None = None,
        roots: Sequence[int] | None = None,
    ) -> Float[Tensor, " group"]:
        """Turn the rewards of one group into advantages.

        Args:
            rewards: One scalar reward per trajectory of the same question.
            weights: How much each trajectory counts. None: all the same.
            roots: The root chain that each trajectory descends from; read beside weights only. None: all independent.

        Returns:
            One advantage per trajectory, in input order. Exact zeros when all rewards are equal or there is only one.

        Raises:
            ValueError: If the group is empty.
        """
        if len(rewards) == 0:
            raise ValueError("`rewards` must have at least one entry, but got none. Skip empty groups.")
        # Shifted first, because the mean of equal numbers need not be that number in floating point.
        shifted = rewards - rewards[0]
        if weights is not None:
            return self._weighted(shifted, weights, len(set(roots)) if roots is not None else len(rewards))
        centered = shifted - shifted.mean()
        if not self.normalize_by_std or len(rewards) == 1:
            return centered
        return centered / (torch.std(shifted, correction=1) + self.epsilon)

    def _weighted(
        self, shifted: Float[Tensor, " group"], weights: Float[Tensor, " group"], num_independent: int
    ) -> Float[Tensor, " group"]:
        total = weights.sum()
        if not bool(total > 0):
            return torch.zeros_like(shifted)
        centered = shifted - (weights * shifted).sum() / total
        if not self.normalize_by_std or len(shifted) == 1:
            return centered
        correction = num_independent / (num_independent - 1) if num_independent > 1 else 1.0
        variance = correction * (weights * centered.square()).sum() / total
        return centered / (variance.sqrt() + self.epsilon)
