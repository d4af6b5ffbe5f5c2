"""A few of the tokens that would lower the entropy most are left out of an update."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from aepo_lightning.advantages.step_tokens import covariance_terms, kth_largest, num_chosen, response_tokens
from aepo_lightning.contracts.batch import TrajectoryBatch
from aepo_lightning.errors import ConfigError
from aepo_lightning.ops.masked import zero_outside


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipCov:
    """Set the advantage of some tokens to 0, drawn from those whose covariance with the log-prob is high.

    The entropy falls with the covariance of log-prob and advantage, to which likely tokens with a high advantage and
    unlikely ones with a low one add most. Tokens without an advantage have no gradient and still count where the loss
    is divided by the number of tokens.

    References:
        Clip-Cov: The entropy mechanism, arXiv:2505.22617, eqs. 10 to 12; defaults from its code. Departures: log-probs
        are those before the update and the covariance is that of the whole optimiser step on all ranks, where the code
        takes the current log-probs of a micro-batch; so no token is beyond the clip range yet, and none is left out
        for that.
    """

    fraction: float = 2e-4
    """How many tokens are drawn, as a share of the response tokens of an optimiser step; at least one."""
    lowest: float = 1.0
    """Tokens are drawn from those with a covariance above this."""
    highest: float = 5.0
    """Tokens are drawn from those with a covariance below this."""
    seed: int = 0
    """The draw of a token depends on this, its trajectory and its place in it."""

    def __post_init__(self) -> None:
        """Refuse settings that have no meaning."""
        if not 0 < self.fraction <= 1:
            raise ConfigError(
                f"`fraction` must be in (0, 1], but got {self.fraction}. Use no mask to train all tokens."
            )
        if not self.lowest < self.highest:
            raise ConfigError(f"`lowest` must be below `highest`, but got {self.lowest} and {self.highest}. Swap them.")

    def __call__(self, batches: Sequence[TrajectoryBatch]) -> list[Float[Tensor, "_ _"]]:
        """Return the advantages that are left. Collective.

        Args:
            batches: All micro-batches of this rank, with `advantages` and `old_logprobs`.
        """
        covariances = covariance_terms(batches)
        draws = [
            torch.where((self.lowest < each) & (each < self.highest) & batch.response_mask, self._draws(batch), -1.0)
            for each, batch in zip(covariances, batches, strict=True)
        ]
        own = response_tokens(draws, batches)
        # With fewer candidates than are wanted the border is -1, and all of them are above it.
        border = max(0.0, kth_largest(own, num_chosen(self.fraction, own)))
        return [
            zero_outside(batch.advantages, batch.response_mask & (draw < border))
            for draw, batch in zip(draws, batches, strict=True)
            if batch.advantages is not None
        ]

    def _draws(self, batch: TrajectoryBatch) -> Float[Tensor, "batch response"]:
        """Return a number in [0, 1) for each token, which depends on its trajectory only, not on what is beside it."""
        found = torch.zeros(batch.response_mask.shape)
        for row, length in enumerate(batch.lengths.tolist()):
            tokens = batch.input_ids[row, :length].tolist()
            place = repr((self.seed, int(batch.group_index[row]), tokens)).encode()
            digest = hashlib.blake2b(place, digest_size=8).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
            found[row, : max(0, length - 1)] = torch.rand(max(0, length - 1), generator=generator)
        return found
