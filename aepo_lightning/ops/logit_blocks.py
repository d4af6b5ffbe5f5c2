"""Blocks of logits: how large they are, how they are multiplied, and the softmax sums that run over them."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Final, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

MOST_ROWS = 4096
"""Tokens of one block. More would make its part of the vocabulary too narrow for fast matrix products."""
MOST_LOGITS_ON_CPU = 2**22
"""Larger blocks leave the caches and are slower."""
AUTO_BYTES = 2**28
"""A block of float32 logits at most, where no size is chosen."""
AUTO: Final = "auto"
ChunkSize = int | Literal["auto"]
"""Rows of logits that exist at once; `auto` is as many as `AUTO_BYTES` hold."""


def chunk_rows(chunk_size: ChunkSize, num_words: int) -> int:
    """Return how many rows of logits may exist at once, at least one.

    Args:
        chunk_size: The number itself, or `auto`.
        num_words: Size of the vocabulary.

    Raises:
        ValueError: If it is neither.
    """
    if chunk_size == AUTO:
        return max(1, min(MOST_ROWS, AUTO_BYTES // (4 * num_words)))
    if type(chunk_size) is not int or chunk_size < 1:
        raise ValueError(f"`chunk_size` must be auto or at least 1, but got {chunk_size!r}. Write auto.")
    return chunk_size


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockShape:
    """Which part of all logits exists at once."""

    rows: int
    """Tokens."""
    columns: int
    """Words."""

    @classmethod
    def within(cls, num_logits: int, num_tokens: int, num_words: int) -> "BlockShape":
        """Return a block of at most `num_logits`: all tokens up to a limit, by as many words as fit."""
        rows = max(1, min(num_tokens, MOST_ROWS, num_logits))
        columns = min(num_words, num_logits // rows)
        if 64 <= columns < num_words:
            columns -= columns % 64  # matrix products like whole cache lines
        return cls(rows=rows, columns=columns)

    @property
    def numel(self) -> int:
        """Return the number of logits."""
        return self.rows * self.columns


@dataclass(frozen=True, slots=True, kw_only=True)
class Products:
    """How matrices are multiplied."""

    operand_dtype: torch.dtype
    """What enters a product."""
    result_dtype: torch.dtype
    """What a product is accumulated and returned in: float64 for float64 operands, else float32."""
    rounds_operands: bool
    """Whether the processor may round float32 operands to bfloat16 to multiply them faster."""

    def context(self) -> AbstractContextManager[None]:
        """Return the context in which all products are computed."""
        return _bfloat16_products() if self.rounds_operands else nullcontext()

    def logits(
        self, hidden: Float[Tensor, "seq hidden"], words: Float[Tensor, "vocab hidden"], buffer: Float[Tensor, " _"]
    ) -> Float[Tensor, "seq vocab"]:
        """Return `hidden @ words.T`, which lies in `buffer` where the device can write it there."""
        if self.operand_dtype != self.result_dtype:
            return torch.mm(hidden, words.T, out_dtype=self.result_dtype)
        logits = buffer[: len(hidden) * len(words)].view(len(hidden), len(words))
        torch.mm(hidden, words.T, out=logits)
        return logits

    def add(self, total: Float[Tensor, "_ _"], left: Float[Tensor, "_ _"], right: Float[Tensor, "_ _"]) -> None:
        """Add `left @ right` to `total` in place, never rounded to a 16-bit type in between."""
        left = left.to(self.operand_dtype)
        if self.operand_dtype != self.result_dtype:
            total.add_(torch.mm(left, right, out_dtype=self.result_dtype))
        else:
            total.addmm_(left, right)


@contextmanager
def _bfloat16_products() -> Iterator[None]:
    """Let the processor multiply float32 matrices in bfloat16 where it can, accumulating and returning float32.

    PyTorch has no product of bfloat16 matrices into float32 on CPUs. The setting holds for the whole process meanwhile.
    """
    setting = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before


def slices(count: int, size: int) -> list[slice]:
    """Return slices of at most `size` that cover `count` in order."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def within(target: Int[Tensor, " seq"], columns: slice) -> tuple[Int[Tensor, "seq 1"], Bool[Tensor, "seq 1"]]:
    """Return where each target lies in a part of the vocabulary, or anywhere, and whether it does lie there."""
    is_inside = (target >= columns.start) & (target < columns.stop)
    return (target - columns.start).clamp(0, columns.stop - columns.start - 1)[:, None], is_inside[:, None]


class RunningSums:
    """Softmax sums of every token over the words seen so far, relative to the largest logit seen so far."""

    def __init__(self, target: Int[Tensor, " seq"], dtype: torch.dtype, has_entropy: bool) -> None:
        """Start before the first word.

        Args:
            target: Token ids.
            dtype: Of the sums.
            has_entropy: Whether the entropies are wanted, too.
        """
        self._target = target
        self._has_entropy = has_entropy
        # The lowest number and not -inf, of which rescaling would make NaN.
        self._largest = torch.full((len(target),), torch.finfo(dtype).min, dtype=dtype, device=target.device)
        self._total = torch.zeros_like(self._largest)  # sum of exp(z - largest)
        self._weighted = torch.zeros_like(self._largest)  # sum of exp(z - largest) (z - largest)
        self._target_logits = torch.full_like(self._largest, torch.nan)  # stays so outside the vocabulary

    def add(self, logits: Float[Tensor, "seq vocab"], rows: slice, columns: slice) -> None:
        """Take in one block. Overwrites it."""
        index, is_inside = within(self._target[rows], columns)
        found = logits.gather(-1, index).where(is_inside, self._target_logits[rows, None])
        self._target_logits[rows] = found[:, 0]
        largest = torch.maximum(self._largest[rows], logits.amax(-1))
        fall = self._largest[rows] - largest
        scale = fall.exp()
        shifted = logits.sub_(largest[:, None])
        terms = shifted.exp() if self._has_entropy else shifted.exp_()
        if self._has_entropy:
            before = self._weighted[rows] + fall * self._total[rows]
            self._weighted[rows] = scale * before + shifted.mul_(terms).sum(-1)
        self._total[rows] = scale * self._total[rows] + terms.sum(-1)
        self._largest[rows] = largest

    @property
    def logprobs(self) -> Float[Tensor, " seq"]:
        """Return the log-probs of the targets, after the last block."""
        return self._target_logits - self._largest - self._total.log()

    @property
    def log_normalizers(self) -> Float[Tensor, " seq"]:
        """Return the logarithm of the sum of exp(z), after the last block."""
        return self._largest + self._total.log()

    @property
    def entropies(self) -> Float[Tensor, " seq"] | None:
        """Return the entropies, after the last block. None unless wanted."""
        return self._total.log() - self._weighted / self._total if self._has_entropy else None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cotangents:
    """What the gradient of the logits is made of: d logprob / d z = onehot - p and d H / d z = -p (log p + H)."""

    target: Int[Tensor, " seq"]
    log_normalizers: Float[Tensor, " seq"]
    grad_logprobs: Float[Tensor, " seq"]
    grad_entropies: Float[Tensor, " seq"] | None
    entropies: Float[Tensor, " seq"] | None

    def grad_logits(
        self, logits: Float[Tensor, "seq vocab"], rows: slice, columns: slice
    ) -> Float[Tensor, "seq vocab"]:
        """Return the gradient of the loss by one block of logits. Overwrites the block."""
        log_p = logits.sub_(self.log_normalizers[rows, None])
        grad_logprobs = self.grad_logprobs[rows, None]
        if self.grad_entropies is None or self.entropies is None:
            grad = log_p.exp_().mul_(-grad_logprobs)
        else:
            p = log_p.exp()
            by_entropy = log_p.add_(self.entropies[rows, None]).mul_(self.grad_entropies[rows, None])
            grad = by_entropy.add_(grad_logprobs).mul_(p).neg_()
        index, is_inside = within(self.target[rows], columns)
        return grad.scatter_add_(-1, index, grad_logprobs.where(is_inside, 0))
