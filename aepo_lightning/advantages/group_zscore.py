"""The advantage of GRPO: rewards of one question, centred and scaled."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from aepo_lightning.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupZScore:
    """Subtract the group mean from each reward and, unless switched off, divide by the group standard deviation.

    References:
        DeepSeekMath (GRPO), arXiv:2402.03300, section 4.1.2. Without the division: Dr. GRPO, arXiv:2503.20783.
        The standard deviation is the unbiased one, as in verl. Departure: verl gives a group of one its raw reward.
    """

    normalize_by_std: bool = True
    epsilon: float = 1e-6
    """Added to the standard deviation."""

    def __post_init__(self) -> None:
        """Refuse settings that have no meaning."""
        if not self.epsilon > 0:
            raise ConfigError(f"`epsilon` must be positive, but got {self.epsilon}.")

    def __call__(self, rewards: Float[Tensor, " group"]) -> Float[Tensor, " group"]:
        """Turn the rewards of one group into advantages.

        Args:
            rewards: One scalar reward per trajectory of the same question.

        Returns:
            One advantage per trajectory, in input order. Exact zeros when all rewards are equal or there is only one.

        Raises:
            ValueError: If the group is empty.
        """
        if len(rewards) == 0:
            raise ValueError("`rewards` must have at least one entry, but got none. Skip empty groups.")
        # Shifted first, because the mean of equal numbers need not be that number in floating point.
        shifted = rewards - rewards[0]
        centered = shifted - shifted.mean()
        if not self.normalize_by_std or len(rewards) == 1:
            return centered
        return centered / (torch.std(shifted, correction=1) + self.epsilon)
