"""Attention over packed trajectories: every token attends to those before it on its path, to nothing else.

Four back ends compute the same. `segment` runs fused kernels over runs of queries and keys, without any mask, and does
no work that the structure does not ask for. `varlen` is FlashAttention over sequences of different lengths, for rows in
which nothing is shared, and `flex` a FlexAttention block mask for all others; both are for CUDA. `dense` is plain
scaled-dot-product attention under a mask of all pairs: slow for long rows, and the reference for the others.
"""

import inspect
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from aepo_lightning.contracts.batch import AttentionBlock, PackedTokens

BackEnd = Literal["segment", "varlen", "flex", "dense"]
_FLASH_DTYPES = (torch.bfloat16, torch.float16)
_FLASH_MAX_DIM = 256
_FLASH_DIM_MULTIPLE = 8
_FLEX_BLOCK = 128
"""Tokens of a block that FlexAttention skips or computes."""
_FLASH_CAPABILITY = (8, 0)
"""What FlashAttention 2 asks for: an Ampere GPU or newer."""


@runtime_checkable
class PackedAttention(Protocol):
    """Attention over one packed row. It is built once per forward pass and called by every layer."""

    def __call__(
        self,
        query: Float[Tensor, "batch heads seq dim"],
        key: Float[Tensor, "batch kv_heads seq dim"],
        value: Float[Tensor, "batch kv_heads seq dim"],
        scale: float,
    ) -> Float[Tensor, "batch heads seq dim"]:
        """Return what each token reads. Query heads share key heads in equal groups."""


class QueryKind(NamedTuple):
    """What the choice of a back end rests on, beside the packed row."""

    device: torch.device
    dtype: torch.dtype
    head_dim: int

    @classmethod
    def of(cls, query: Float[Tensor, "batch heads seq dim"]) -> "QueryKind":
        """Return the kind of these queries."""
        return cls(query.device, query.dtype, query.shape[-1])


def pick_back_end(packed: PackedTokens, kind: QueryKind) -> BackEnd:
    """Return the fastest back end for a packed row and the queries over it."""
    if kind.device.type == "cpu":
        return "segment"
    if kind.device.type != "cuda":
        return "dense"
    return "varlen" if is_flat(packed) and why_not_varlen(kind) is None else "flex"


def is_flat(packed: PackedTokens) -> bool:
    """Whether no token is shared, so that the row is whole trajectories one after another."""
    return all(block.is_causal for block in packed.blocks)


def why_not_varlen(kind: QueryKind) -> str | None:
    """Return what keeps FlashAttention from queries of a kind, or None."""
    dim = kind.head_dim
    if kind.dtype not in _FLASH_DTYPES:
        return f"it needs bfloat16 or float16, but the layers compute in {str(kind.dtype).removeprefix('torch.')}"
    if dim > _FLASH_MAX_DIM or dim % _FLASH_DIM_MULTIPLE:
        return f"it needs heads of a multiple of {_FLASH_DIM_MULTIPLE} up to {_FLASH_MAX_DIM}, but these have {dim}"
    if kind.device.type != "cuda" or torch.cuda.get_device_capability(kind.device) < _FLASH_CAPABILITY:
        return "it needs a CUDA device of compute capability 8.0 or higher"
    return None


def build_attention(packed: PackedTokens, back_end: BackEnd | str) -> PackedAttention:
    """Return the attention over one packed row.

    Raises:
        ValueError: If the back end is unknown, or cannot run this row.
    """
    built: dict[str, Callable[[PackedTokens], PackedAttention]] = {
        "segment": SegmentAttention,
        "varlen": VarlenAttention,
        "flex": FlexTreeAttention,
        "dense": DenseAttention,
    }
    if back_end not in built:
        raise ValueError(f"`back_end` must be one of {sorted(built)}, but got {back_end!r}.")
    return built[back_end](packed)


def dense_mask(packed: PackedTokens) -> Bool[Tensor, "seq seq"]:
    """Return for each query (row) and key (column) whether the one sees the other."""
    index = torch.arange(len(packed.input_ids), device=packed.subtree_end.device)
    return (index[None, :] <= index[:, None]) & (index[:, None] < packed.subtree_end[None, :])


class DenseAttention:
    """Every pair of tokens is computed, then most of them masked."""

    def __init__(self, packed: PackedTokens) -> None:
        """Build the mask."""
        self._mask = dense_mask(packed)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Return what each token reads; see `PackedAttention`."""
        return scaled_dot_product_attention(query, key, value, attn_mask=self._mask, scale=scale, enable_gqa=True)


class VarlenAttention:
    """FlashAttention over whole trajectories of different lengths."""

    def __init__(self, packed: PackedTokens, attend: Callable[..., Any] = varlen_attn) -> None:
        """Find where each trajectory begins and ends.

        Args:
            packed: A row without shared tokens.
            attend: What computes, with the signature of torch's `varlen_attn`. Before 2.13 that has no `enable_gqa`:
                the kernel below it lets query heads share key heads without being asked.

        Raises:
            ValueError: If tokens are shared.
        """
        if not is_flat(packed):
            raise ValueError("`varlen` needs a row without shared tokens, but got a tree. Use `flex`.")
        stops = [0, *sorted(block.query_stop for block in packed.blocks)]
        self._offsets = torch.tensor(stops, dtype=torch.int32, device=packed.input_ids.device)
        self._longest = max(stop - start for start, stop in pairwise(stops))
        self._attend = attend
        self._options = {"enable_gqa": True} if "enable_gqa" in inspect.signature(attend).parameters else {}

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Return what each token reads; see `PackedAttention`."""
        rows = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
        attended: Tensor = self._attend(
            *rows,
            self._offsets,
            self._offsets,
            self._longest,
            self._longest,
            scale=scale,
            window_size=(-1, 0),  # every token before, none after
            **self._options,
        )
        return attended.transpose(0, 1)[None]


class FlexTreeAttention:
    """A compiled FlexAttention kernel that skips blocks without a visible pair."""

    def __init__(self, packed: PackedTokens) -> None:
        """Build the block mask."""
        self.block_mask = flex_mask(packed)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Return what each token reads; see `PackedAttention`."""
        attend = _compiled_flex()
        attended: Tensor = attend(query, key, value, block_mask=self.block_mask, scale=scale, enable_gqa=True)
        return attended


def flex_mask(packed: PackedTokens) -> BlockMask:
    """Return the block mask of a packed row on its device, without a mask of all pairs on the way."""
    subtree_end = packed.subtree_end
    size = len(subtree_end)

    # A lambda: FlexAttention counts the parameters, which a decorated function hides.
    sees = lambda batch, head, query, key: (key <= query) & (query < subtree_end[key])  # noqa: E731, ARG005
    some, whole = _seen_blocks(subtree_end)
    return BlockMask.from_kv_blocks(
        *_ordered(some & ~whole), *_ordered(whole), BLOCK_SIZE=_FLEX_BLOCK, mask_mod=sees, seq_lengths=(size, size)
    )


def _seen_blocks(
    subtree_end: Int[Tensor, " seq"],
) -> tuple[Bool[Tensor, "blocks blocks"], Bool[Tensor, "blocks blocks"]]:
    """Return for each block of queries (row) and keys (column) whether some pair is visible, and whether all are."""
    count = -(-len(subtree_end) // _FLEX_BLOCK)
    ends = nn.functional.pad(subtree_end, (0, count * _FLEX_BLOCK - len(subtree_end))).view(count, _FLEX_BLOCK)
    starts = torch.arange(count, device=subtree_end.device)[:, None] * _FLEX_BLOCK
    is_before = starts > starts.T  # every key of the block comes before every query
    some = is_before & (ends.amax(1) > starts)
    whole = is_before & (ends.amin(1) >= starts + _FLEX_BLOCK)
    return some | torch.eye(count, dtype=torch.bool, device=starts.device), whole


def _ordered(blocks: Bool[Tensor, "blocks blocks"]) -> tuple[Tensor, Tensor]:
    """Return how many blocks each row has and which, these first, as FlexAttention keeps them."""
    indices = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32)[None, None], indices.int()[None, None]


@cache
def _compiled_flex() -> Any:
    return torch.compile(flex_attention, dynamic=True)


class SegmentAttention:
    """Fused attention run by run on a CPU; what several runs give a token is merged by their log-normalisers."""

    def __init__(self, packed: PackedTokens) -> None:
        """Take the runs."""
        self._blocks = packed.blocks

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Return what each token reads; see `PackedAttention`."""
        attended: Tensor = _SegmentAttention.apply(query, key, value, self._blocks, scale)  # type: ignore[no-untyped-call]
        return attended


class _SegmentAttention(torch.autograd.Function):
    """Attention over the union of key runs, from fused kernels that see one run at a time.

    With (o_i, z_i) output and log-normaliser over run i, the whole is z = log sum exp(z_i), o = sum exp(z_i - z) o_i.
    The kernel's backward pass computes probabilities as exp(score - z), so with the whole z and o it returns each run's
    exact share of the gradients.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, blocks: tuple[AttentionBlock, ...], scale: float
    ) -> Tensor:
        batch, heads, size, _ = query.shape
        # The layout in which the kernel writes and in which the output projection reads.
        out = query.new_empty(batch, size, heads, value.shape[-1]).transpose(1, 2)
        normalizers: Tensor | None = None
        for block in blocks:
            q, (k, v) = _queries(block, query), _keys(block, key, value)
            attended, log_z = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q, k, v, 0.0, block.is_causal, scale=scale
            )
            if normalizers is None:
                normalizers = log_z.new_empty(batch, size, heads).transpose(1, 2)
            own_out, own_log_z = _queries(block, out), _queries(block, normalizers)
            if block.is_causal:
                own_out.copy_(attended)
                own_log_z.copy_(log_z)
            else:
                own_out.lerp_(attended, torch.sigmoid(log_z - own_log_z)[..., None].to(out.dtype))
                torch.logaddexp(own_log_z, log_z, out=own_log_z)
        ctx.save_for_backward(query, key, value, out, normalizers)
        ctx.blocks, ctx.scale = blocks, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, out, normalizers = ctx.saved_tensors
        grads = (torch.empty_like(query), torch.empty_like(key), torch.empty_like(value))
        for block in ctx.blocks:
            q, (k, v) = _queries(block, query), _keys(block, key, value)
            found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                _queries(block, grad_out),
                q,
                k,
                v,
                _queries(block, out),
                _queries(block, normalizers),
                0.0,
                block.is_causal,
                scale=ctx.scale,
            )
            shares = (_queries(block, grads[0]), *_keys(block, grads[1], grads[2]))
            for total, share in zip(shares, found, strict=True):
                # Causal runs come first and hold every token once, so they need no zeros to be added to.
                _ = total.copy_(share) if block.is_causal else total.add_(share)
        return (*grads, None, None)


def _queries(block: AttentionBlock, tensor: Tensor) -> Tensor:
    return tensor[:, :, block.query_start : block.query_stop]


def _keys(block: AttentionBlock, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    rows = slice(block.key_start, block.key_stop)
    return key[:, :, rows], value[:, :, rows]
