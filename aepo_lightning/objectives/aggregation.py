"""From token losses to the loss of an optimiser step, the same however the step is split into micro-batches."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor

from aepo_lightning.errors import ConfigError
from aepo_lightning.ops.masked import zero_outside


@dataclass(frozen=True, slots=True, kw_only=True)
class LossAggregation:
    """How much each token counts.

    Calling it returns the share of one micro-batch in the loss of the whole optimiser step. Shares are divided by
    totals over all micro-batches and ranks, so their sum does not depend on the split. A strategy that averages
    gradients over ranks needs the share multiplied by the number of ranks.

    Where trajectories have weights, token losses come multiplied by them, and the totals count with the same weights:
    with w the weight of a trajectory, T its response tokens and L the sum of its losses, the loss is
    sum(w L) / sum(w T) for `token-mean`, sum(w L / T) / sum(w) for `seq-mean-token-mean` and
    sum(w L) / (norm_length sum(w)) for `seq-mean-token-sum-norm`. A common factor of all weights changes nothing, and a
    trajectory counts as much as two copies of half its weight.

    References:
        token-mean: DAPO, arXiv:2503.14476, section 3.3. seq-mean-token-mean: GRPO, arXiv:2402.03300, eq. 3.
        seq-mean-token-sum-norm: Dr. GRPO, arXiv:2503.20783.
    """

    mode: Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm"] = "token-mean"
    """`token-mean`: every token counts the same. `seq-mean-token-mean`: every trajectory counts the same.
    `seq-mean-token-sum-norm`: the mean over trajectories of their token sum over a constant."""
    norm_length: int | None = None
    """The constant of `seq-mean-token-sum-norm`, in tokens, such as the response budget. None for other modes."""

    def __post_init__(self) -> None:
        """Refuse settings that have no meaning."""
        if self.mode not in ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm"):
            raise ConfigError(
                "`mode` must be 'token-mean', 'seq-mean-token-mean' or 'seq-mean-token-sum-norm', "
                f"but got {self.mode!r}."
            )
        needs_length = self.mode == "seq-mean-token-sum-norm"
        if needs_length != (self.norm_length is not None):
            rule = "be given" if needs_length else "be None"
            raise ConfigError(f"`norm_length` must {rule} for mode {self.mode!r}, but got {self.norm_length}.")
        if self.norm_length is not None and self.norm_length < 1:
            raise ConfigError(f"`norm_length` must be at least 1, but got {self.norm_length}.")

    def __call__(
        self,
        token_losses: Float[Tensor, "batch response"],
        response_mask: Bool[Tensor, "batch response"],
        global_num_tokens: float | int,
        global_num_sequences: float | int,
    ) -> Float[Tensor, ""]:
        """Return the share of this micro-batch in the loss of the optimiser step.

        Args:
            token_losses: Losses of this micro-batch, multiplied by the weights of their trajectories.
            response_mask: True where the token is trained.
            global_num_tokens: Response tokens of the optimiser step, over all micro-batches and ranks, each counted
                with the weight of its trajectory.
            global_num_sequences: Trajectories of the optimiser step, counted with their weights; rows without response
                tokens add nothing, and are counted or not as the caller decides.

        Returns:
            A scalar; 0 for a micro-batch without response tokens.

        Raises:
            ValueError: If the total that the mode divides by is not positive.
        """
        name = "global_num_tokens" if self.mode == "token-mean" else "global_num_sequences"
        total = global_num_tokens if self.mode == "token-mean" else global_num_sequences
        if not total > 0:
            raise ValueError(f"`{name}` must be positive, but got {total}. Skip steps without response tokens.")
        row_sums = zero_outside(token_losses, response_mask).sum(-1)
        if self.mode == "seq-mean-token-mean":
            row_sums = row_sums / response_mask.sum(-1).clamp(min=1)
        return row_sums.sum() / (total * (self.norm_length or 1))
