"""The plain advantage of REINFORCE: the reward."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class NoBaseline:
    """Take the reward as it is: for advantages that are whitened over the step, and credit that has its own baseline.

    References:
        REINFORCE++, arXiv:2501.03262, eq. 8 without the KL term.
    """

    def __call__(
        self, rewards: Float[Tensor, " group"], weights: Float[Tensor, " group"] | None = None
    ) -> Float[Tensor, " group"]:
        """Return the rewards.

        Args:
            rewards: One scalar reward per trajectory of the same question.
            weights: Without meaning where nothing is averaged.
        """
        del weights
        return rewards
