"""Log-probs and entropies of tokens from hidden states, a block of logits at a time.

Logits of N tokens over a vocabulary of V take N * V numbers, several GB for one long trajectory. Here only one block of
them exists at any moment: some thousand tokens by a part of the vocabulary. The forward pass keeps sums that run over
the parts and leaves one log-normaliser per token to the backward pass, which computes the logits again. The weight and
its gradient are converted part by part, so that neither is ever copied as a whole.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from aepo_lightning.ops.logit_blocks import (
    AUTO,
    MOST_LOGITS_ON_CPU,
    BlockShape,
    ChunkSize,
    Cotangents,
    Products,
    RunningSums,
    chunk_rows,
    slices,
)
from aepo_lightning.ops.logit_map import PLAIN, LogitMap

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
    block: BlockShape
    entropy: EntropyMode
    products: Products
    logit_map: LogitMap

    def logits(
        self,
        hidden: Float[Tensor, "seq hidden"],
        words: Float[Tensor, "vocab hidden"],
        bias: Float[Tensor, " vocab"] | None,
        buffer: Float[Tensor, " _"],
    ) -> Float[Tensor, "seq vocab"]:
        """Return one block of logits, divided by the temperature."""
        outputs = self.products.logits(hidden, words, buffer)
        logits = self.logit_map.apply_(outputs if bias is None else outputs.add_(bias))
        return logits if self.temperature == 1.0 else logits.div_(self.temperature)

    def bias(self, bias: Float[Tensor, " vocab"] | None, columns: slice) -> Float[Tensor, " part"] | None:
        """Return the bias of a part of the vocabulary; None without one."""
        return None if bias is None else bias[columns].to(self.products.result_dtype)

    def buffer(self, device: torch.device) -> Float[Tensor, " _"]:
        """Return room for one block."""
        return torch.empty(self.block.numel, dtype=self.products.result_dtype, device=device)


class _ChunkedLogprob(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Float[Tensor, "seq hidden"],
        weight: Float[Tensor, "vocab hidden"],
        bias: Float[Tensor, " vocab"] | None,
        target: Int[Tensor, " seq"],
        plan: _Plan,
    ) -> tuple[Float[Tensor, " seq"], Float[Tensor, " seq"] | None]:
        ctx.set_materialize_grads(False)
        products = plan.products
        sums = RunningSums(target, products.result_dtype, has_entropy=plan.entropy != "none")
        operand, buffer = hidden.to(products.operand_dtype), plan.buffer(hidden.device)
        with products.context():
            for columns in slices(len(weight), plan.block.columns):
                words, part = weight[columns].to(products.operand_dtype), plan.bias(bias, columns)
                for rows in slices(len(target), plan.block.rows):
                    sums.add(plan.logits(operand[rows], words, part, buffer), rows, columns)
        entropies = sums.entropies
        ctx.save_for_backward(hidden, weight, bias, target, sums.log_normalizers, entropies)
        ctx.plan = plan
        if plan.entropy == "detached":
            ctx.mark_non_differentiable(entropies)
        return sums.logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logprobs: Tensor | None, grad_entropies: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        hidden, weight, bias, target, log_normalizers, entropies = ctx.saved_tensors
        # One division, so that a scale of 1 leaves gradients bit for bit as they are without one.
        divisor = ctx.plan.temperature / ctx.plan.logit_map.scale
        cotangents = Cotangents(
            target=target,
            log_normalizers=log_normalizers,
            grad_logprobs=torch.zeros_like(log_normalizers) if grad_logprobs is None else grad_logprobs / divisor,
            grad_entropies=None if grad_entropies is None else grad_entropies / divisor,
            entropies=entropies,
        )
        with torch.autocast(hidden.device.type, enabled=False):
            grads = _gradients(hidden, weight, bias, cotangents, ctx.plan, ctx.needs_input_grad)
        return *grads, None, None


def _gradients(
    hidden: Float[Tensor, "seq hidden"],
    weight: Float[Tensor, "vocab hidden"],
    bias: Float[Tensor, " vocab"] | None,
    cotangents: Cotangents,
    plan: _Plan,
    needs_grad: tuple[bool, ...],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of hidden states, weight and bias, each where it is needed."""
    products = plan.products
    grad_hidden = torch.zeros_like(hidden, dtype=products.result_dtype) if needs_grad[0] else None
    grad_weight = torch.empty_like(weight) if needs_grad[1] else None
    grad_bias = torch.zeros_like(bias, dtype=products.result_dtype) if bias is not None and needs_grad[2] else None
    operand, block = hidden.to(products.operand_dtype), _GradientBlock(plan, cotangents, hidden.device)
    with products.context():
        for columns in slices(len(weight), plan.block.columns):
            words, part = weight[columns].to(products.operand_dtype), plan.bias(bias, columns)
            grad_words = words.new_zeros(words.shape, dtype=products.result_dtype) if needs_grad[1] else None
            for rows in slices(len(hidden), plan.block.rows):
                grad_outputs = block(operand[rows], words, part, rows, columns)
                if grad_hidden is not None:
                    products.add(grad_hidden[rows], grad_outputs, words)
                if grad_words is not None:
                    products.add(grad_words, grad_outputs.T, operand[rows])
                if grad_bias is not None:
                    grad_bias[columns] += grad_outputs.sum(0)
            if grad_weight is not None and grad_words is not None:
                grad_weight[columns] = grad_words
    grad_hidden = None if grad_hidden is None else grad_hidden.to(hidden.dtype)
    grad_bias = None if grad_bias is None or bias is None else grad_bias.to(bias.dtype)
    return grad_hidden, grad_weight, grad_bias


class _GradientBlock:
    """Computes one block of logits again and turns it into the gradient of the loss by the outputs of the head."""

    def __init__(self, plan: _Plan, cotangents: Cotangents, device: torch.device) -> None:
        self._plan, self._cotangents = plan, cotangents
        self._buffer = plan.buffer(device)
        self._slopes = None if plan.logit_map.cap is None else plan.buffer(device)

    def __call__(
        self,
        hidden: Float[Tensor, "seq hidden"],
        words: Float[Tensor, "vocab hidden"],
        bias: Float[Tensor, " vocab"] | None,
        rows: slice,
        columns: slice,
    ) -> Float[Tensor, "seq vocab"]:
        logits = self._plan.logits(hidden, words, bias, self._buffer)
        if self._slopes is None:
            return self._cotangents.grad_logits(logits, rows, columns)
        room = self._slopes[: logits.numel()].view(logits.shape)
        slopes = self._plan.logit_map.slopes(logits, self._plan.temperature, out=room)
        return self._cotangents.grad_logits(logits, rows, columns).mul_(slopes)


def _choose_products(hidden: Tensor, weight: Tensor, operand_dtype: torch.dtype | None) -> Products:
    """Return how to multiply on the device of the inputs."""
    device = hidden.device.type
    operand = torch.promote_types(hidden.dtype, weight.dtype)
    if operand_dtype is not None:
        operand = operand_dtype
    elif torch.is_autocast_enabled(device) and operand != torch.float64:
        operand = torch.get_autocast_dtype(device)
    result = torch.float64 if operand == torch.float64 else torch.float32
    # Only CUDA multiplies 16-bit operands into a float32 result; elsewhere the operands are widened first.
    is_widened_bfloat16 = device == "cpu" and operand == hidden.dtype == weight.dtype == torch.bfloat16
    return Products(
        operand_dtype=operand if device == "cuda" else result,
        result_dtype=result,
        rounds_operands=is_widened_bfloat16,
    )


def chunked_logprob(  # noqa: PLR0913 -- what a head computes from, and how
    hidden: Float[Tensor, "seq hidden"],
    weight: Float[Tensor, "vocab hidden"],
    target: Int[Tensor, " seq"],
    temperature: float = 1.0,
    *,
    bias: Float[Tensor, " vocab"] | None = None,
    logit_map: LogitMap = PLAIN,
    chunk_size: ChunkSize = AUTO,
    entropy: EntropyMode = "none",
    operand_dtype: torch.dtype | None = None,
) -> LogprobOutput:
    """Return log softmax(logits / temperature)[target], logits = f(hidden @ weight.T + bias), never holding all logits.

    Args:
        hidden: Last hidden states; row `t` predicts `target[t]`. Rows of any number of sequences in any order.
        weight: The output embedding.
        target: Token ids in [0, vocab).
        temperature: What the logits are divided by, scaled and capped as they are: the temperature the tokens were
            sampled at.
        bias: Bias of the head, if it has one.
        logit_map: What the model does to the outputs of its head.
        chunk_size: At most as many logits exist at once as this many tokens have, and as many slopes where they are
            capped; `auto` is 256 MiB of them. Changes memory and speed, not values.
        entropy: Whether to return entropies, and whether gradients flow through them.
        operand_dtype: What hidden states and weight are converted to before they are multiplied, part by part.
            `torch.float32` computes a head of 16-bit weights in float32, its gradients included. None leaves them as
            they are, or as autocast wants them.

    Returns:
        Log-probs and entropies in float32, or float64 for float64 operands. Products of 16-bit operands are
        accumulated and kept in float32, and each gradient is rounded to the type of its input once, at the end.

    Raises:
        ValueError: If `temperature` or `chunk_size` is not positive, `entropy` is unknown or `operand_dtype` is not a
            floating-point type.
    """
    if not temperature > 0:
        raise ValueError(f"`temperature` must be positive, but got {temperature}. Use 1.0 for greedy sampling.")
    if entropy not in ("none", "detached", "grad"):
        raise ValueError(f"`entropy` must be 'none', 'detached' or 'grad', but got {entropy!r}.")
    if operand_dtype is not None and not operand_dtype.is_floating_point:
        raise ValueError(f"`operand_dtype` must be a floating-point type, but got {operand_dtype}. Use torch.float32.")
    num_logits = chunk_rows(chunk_size, len(weight)) * len(weight)
    if hidden.device.type == "cpu":
        num_logits = min(num_logits, MOST_LOGITS_ON_CPU)
    plan = _Plan(
        temperature=temperature,
        block=BlockShape.within(num_logits, len(hidden), len(weight)),
        entropy=entropy,
        products=_choose_products(hidden, weight, operand_dtype),
        logit_map=logit_map,
    )
    with torch.autocast(hidden.device.type, enabled=False):
        logprobs, entropies = _ChunkedLogprob.apply(hidden, weight, bias, target, plan)  # type: ignore[no-untyped-call]
    return LogprobOutput(logprobs=logprobs, entropies=entropies)
