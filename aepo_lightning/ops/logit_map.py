"""What models do to the products of hidden states and output embedding before they call them logits."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitMap:
    """Logits from the output `x` of the head, its bias included: `y = scale * x`, then `cap * tanh(y / cap)`.

    References:
        Logit soft-capping: Gemma 2, arXiv:2408.00118, section 2. Scales: muP, arXiv:2203.03466, as in Granite
        (divides), Cohere and Falcon-H1 (multiply) and MiniCPM (divides the hidden states).
    """

    scale: float = 1.0
    cap: float | None = None
    """None for logits without bounds."""

    @property
    def is_identity(self) -> bool:
        """Whether the output of the head is the logits."""
        return self.scale == 1.0 and self.cap is None

    def apply_(self, outputs: Float[Tensor, "seq vocab"]) -> Float[Tensor, "seq vocab"]:
        """Turn outputs of the head into logits, in place."""
        if self.cap is not None:
            return outputs.mul_(self.scale / self.cap).tanh_().mul_(self.cap)
        return outputs if self.scale == 1.0 else outputs.mul_(self.scale)

    def slopes(
        self, logits: Float[Tensor, "seq vocab"], temperature: float, out: Float[Tensor, "seq vocab"]
    ) -> Float[Tensor, "seq vocab"]:
        """Return d tanh(y) / d y of capped logits: `1 - (logits / cap) ** 2`, written to `out`.

        Args:
            logits: Logits that were divided by the temperature.
            temperature: That temperature.
            out: Room for the result.
        """
        assert self.cap is not None, "only a cap bends"
        torch.mul(logits, temperature / self.cap, out=out)
        return out.square_().neg_().add_(1.0)


PLAIN = LogitMap()
"""Of models whose head is a matrix, with or without a bias."""
