"""Log-probs and entropies of tokens from hidden states, a few rows of logits at a time.

Logits of N tokens over a vocabulary of V take N * V numbers, several GB for one long trajectory. Here only `chunk_size`
rows of them exist at any moment: forward keeps one log-normaliser per token, backward computes the logits again.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

EntropyMode = Literal["none", "detached", "grad"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LogprobOutput:
    """What the policy says about each token."""

    logprobs: Float[Tensor, " seq"]
    """Log-probability of the target, in nats."""
    entropies: Float[Tensor, " seq"] | None
    """Shannon entropy over the whole vocabulary, in nats. None unless asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """How the logits are computed."""

    temperature: float
    chunk_size: int
    entropy: EntropyMode
    operand_dtype: torch.dtype
    """What enters a matrix product."""
    result_dtype: torch.dtype
    """What a matrix product is accumulated and returned in: float64 for float64 operands, else float32."""

    def product(self, left: Float[Tensor, "_ _"], right: Float[Tensor, "_ _"]) -> Float[Tensor, "_ _"]:
        """Multiply with the result in `result_dtype`, never rounded to a 16-bit type in between."""
        if self.operand_dtype == self.result_dtype:
            return left @ right
        return torch.mm(left, right, out_dtype=self.result_dtype)

    def add_product(self, total: Float[Tensor, "_ _"], left: Float[Tensor, "_ _"], right: Float[Tensor, "_ _"]) -> None:
        """Add a product to `total` in place."""
        if self.operand_dtype == self.result_dtype:
            total.addmm_(left, right)
        else:
            total.add_(self.product(left, right))

    def chunks(self, num_tokens: int) -> list[slice]:
        """Return the slices that cover the tokens in order."""
        return [slice(start, start + self.chunk_size) for start in range(0, num_tokens, self.chunk_size)]

    def logits(
        self, hidden: Float[Tensor, "seq hidden"], weight: Float[Tensor, "vocab hidden"]
    ) -> Float[Tensor, "seq vocab"]:
        """Return the logits of one chunk, divided by the temperature."""
        return self.product(hidden.to(self.operand_dtype), weight.T).div_(self.temperature)


class _ChunkedLogprob(torch.autograd.Function):
    """d logprob / d z = onehot - p and d H / d z = -p (log p + H), with z the logits over the temperature."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Float[Tensor, "seq hidden"],
        weight: Float[Tensor, "vocab hidden"],
        target: Int[Tensor, " seq"],
        plan: _Plan,
    ) -> tuple[Float[Tensor, " seq"], Float[Tensor, " seq"] | None]:
        ctx.set_materialize_grads(False)
        logprobs = torch.empty(len(target), dtype=plan.result_dtype, device=hidden.device)
        log_normalizers = torch.empty_like(logprobs)
        entropies = None if plan.entropy == "none" else torch.empty_like(logprobs)
        operand = weight.to(plan.operand_dtype)
        for rows in plan.chunks(len(target)):
            logits = plan.logits(hidden[rows], operand)
            log_normalizers[rows] = logits.logsumexp(-1)
            log_p = logits.sub_(log_normalizers[rows, None])
            logprobs[rows] = log_p.gather(-1, target[rows, None])[:, 0]
            if entropies is not None:
                entropies[rows] = -torch.linalg.vecdot(log_p.exp(), log_p)
        ctx.save_for_backward(hidden, weight, target, log_normalizers, entropies)
        ctx.plan = plan
        if plan.entropy == "detached":
            ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logprobs: Tensor | None, grad_entropies: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden, weight, target, log_normalizers, entropies = ctx.saved_tensors
        plan: _Plan = ctx.plan
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=plan.result_dtype) if needs_weight else None
        with torch.autocast(hidden.device.type, enabled=False):
            operand = weight.to(plan.operand_dtype)
            for rows in plan.chunks(len(target)):
                log_p = plan.logits(hidden[rows], operand).sub_(log_normalizers[rows, None])
                grad_logits = _grad_logits(
                    log_p,
                    target[rows],
                    None if grad_logprobs is None else grad_logprobs[rows, None],
                    None if grad_entropies is None else grad_entropies[rows, None],
                    None if entropies is None else entropies[rows, None],
                )
                grad_logits = grad_logits.div_(plan.temperature).to(plan.operand_dtype)
                if grad_hidden is not None:
                    grad_hidden[rows] = plan.product(grad_logits, operand).to(hidden.dtype)
                if grad_weight is not None:
                    plan.add_product(grad_weight, grad_logits.T, hidden[rows].to(plan.operand_dtype))
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None, None


def _grad_logits(
    log_p: Float[Tensor, "seq vocab"],
    target: Int[Tensor, " seq"],
    grad_logprobs: Float[Tensor, "seq 1"] | None,
    grad_entropies: Float[Tensor, "seq 1"] | None,
    entropies: Float[Tensor, "seq 1"] | None,
) -> Float[Tensor, "seq vocab"]:
    """Return the gradient of the loss by the scaled logits. Overwrites `log_p`."""
    p = log_p.exp()
    if grad_entropies is None or entropies is None:
        grad = log_p.zero_()
    else:
        grad = log_p.add_(entropies).mul_(p).mul_(-grad_entropies)
    if grad_logprobs is not None:
        grad -= p.mul_(grad_logprobs)
        grad.scatter_add_(-1, target[:, None], grad_logprobs)
    return grad


def _dtypes(hidden: Tensor, weight: Tensor) -> tuple[torch.dtype, torch.dtype]:
    """Return the dtypes of operands and results of the matrix products."""
    device = hidden.device.type
    operand = torch.promote_types(hidden.dtype, weight.dtype)
    if torch.is_autocast_enabled(device) and operand != torch.float64:
        operand = torch.get_autocast_dtype(device)
    result = torch.float64 if operand == torch.float64 else torch.float32
    # Only CUDA multiplies 16-bit operands into a float32 result; elsewhere the operands are widened first.
    return (operand if device == "cuda" else result), result


def chunked_logprob(
    hidden: Float[Tensor, "seq hidden"],
    weight: Float[Tensor, "vocab hidden"],
    target: Int[Tensor, " seq"],
    temperature: float = 1.0,
    *,
    chunk_size: int = 256,
    entropy: EntropyMode = "none",
) -> LogprobOutput:
    """Return log softmax(hidden @ weight.T / temperature)[target] without ever holding all logits.

    Args:
        hidden: Last hidden states; row `t` predicts `target[t]`. Rows of any number of sequences in any order.
        weight: The output embedding.
        target: Token ids in [0, vocab).
        temperature: What the logits are divided by, the temperature the tokens were sampled at.
        chunk_size: Rows of logits that exist at once. Changes memory and speed, not values.
        entropy: Whether to return entropies, and whether gradients flow through them.

    Returns:
        Log-probs and entropies in float32, or float64 for float64 inputs. Matrix products of 16-bit inputs are
        accumulated and kept in float32, and so is the gradient of the weight until the end.

    Raises:
        ValueError: If `temperature` or `chunk_size` is not positive, or `entropy` is unknown.
    """
    if not temperature > 0:
        raise ValueError(f"`temperature` must be positive, but got {temperature}. Use 1.0 for greedy sampling.")
    if chunk_size < 1:
        raise ValueError(f"`chunk_size` must be at least 1, but got {chunk_size}.")
    if entropy not in ("none", "detached", "grad"):
        raise ValueError(f"`entropy` must be 'none', 'detached' or 'grad', but got {entropy!r}.")
    operand_dtype, result_dtype = _dtypes(hidden, weight)
    plan = _Plan(
        temperature=temperature,
        chunk_size=chunk_size,
        entropy=entropy,
        operand_dtype=operand_dtype,
        result_dtype=result_dtype,
    )
    with torch.autocast(hidden.device.type, enabled=False):
        logprobs, entropies = _ChunkedLogprob.apply(hidden, weight, target, plan)  # type: ignore[no-untyped-call]
    return LogprobOutput(logprobs=logprobs, entropies=entropies)
