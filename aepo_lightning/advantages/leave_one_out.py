"""The advantage of RLOO: each reward against the mean of the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from aepo_lightning.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaveOneOut:
    """Subtract from each reward the mean of the others, in which nothing depends on the trajectory itself.

    With independent trajectories it is n / (n - 1) times the distance from the mean of all. Trajectories of one root
    chain share turns, so the reward of one depends on what another did; `unit="root"` leaves out the whole chain.

    References:
        RLOO, arXiv:2402.14740. Departure: where there are no others, the advantage is 0.
    """

    unit: Literal["trajectory", "root"] = "trajectory"
    """What is left out: the trajectory, or every trajectory of its root chain."""

    def __post_init__(self) -> None:
        """Refuse an unknown unit."""
        if self.unit not in ("trajectory", "root"):
            raise ConfigError(f"`unit` must be 'trajectory' or 'root', but got {self.unit!r}.")

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
            roots: The root chain that each trajectory descends from. None: all independent.

        Returns:
            One advantage per trajectory, in input order. Exact zeros when all rewards are equal or there is only one.

        Raises:
            ValueError: If the group is empty.
        """
        if len(rewards) == 0:
            raise ValueError("`rewards` must have at least one entry, but got none. Skip empty groups.")
        weights = torch.ones_like(rewards) if weights is None else weights
        own = torch.eye(len(rewards), dtype=torch.bool, device=rewards.device)
        if self.unit == "root" and roots is not None:
            chains = torch.tensor(roots, device=rewards.device)
            own = chains[:, None] == chains[None]
        shares = torch.where(own, 0.0, weights[None])  # of each other trajectory in the baseline of a row
        total = shares.sum(-1)
        differences = rewards[:, None] - rewards[None]
        return torch.where(total > 0, (shares * differences).sum(-1) / total.clamp(min=1e-30), 0.0)
