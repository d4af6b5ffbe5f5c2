"""Only the tokens at which the policy was most uncertain are trained."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from aepo_lightning.advantages.step_tokens import kth_largest, num_chosen, response_tokens
from aepo_lightning.contracts.batch import TrajectoryBatch
from aepo_lightning.errors import ConfigError
from aepo_lightning.ops.masked import zero_outside


@dataclass(frozen=True, slots=True, kw_only=True)
class TopEntropyMask:
    """Keep the advantage of the tokens with the highest entropy, and set that of all others to 0.

    Tokens without an advantage have no gradient, and still count where the loss is divided by the number of tokens. KL
    penalty and entropy bonus stay on all tokens. Of tokens with the entropy at the border, all are kept.

    References:
        Beyond the 80/20 rule, arXiv:2506.01939: the DAPO objective times the indicator of an entropy of at least the
        quantile of the batch, with 20 % of the tokens kept. Departure: the batch is the whole optimiser step on all
        ranks, and entropies are those of the policy before the update, so that the tokens do not depend on the split.
    """

    fraction: float = 0.2
    """Share of the response tokens of an optimiser step that is trained, in (0, 1]."""

    def __post_init__(self) -> None:
        """Refuse settings that have no meaning."""
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"`fraction` must be in (0, 1], but got {self.fraction}. 1 keeps every token.")

    def __call__(self, batches: Sequence[TrajectoryBatch]) -> list[Float[Tensor, "_ _"]]:
        """Return the advantages that are left. Collective.

        Args:
            batches: All micro-batches of this rank, with `advantages` and `old_entropies`.
        """
        entropies = [batch.old_entropies for batch in batches if batch.old_entropies is not None]
        own = response_tokens(entropies, batches)
        border = kth_largest(own, num_chosen(self.fraction, own))
        return [
            zero_outside(batch.advantages, batch.response_mask & (entropy.float() >= border))
            for entropy, batch in zip(entropies, batches, strict=True)
            if batch.advantages is not None
        ]
