"""Keys and values of many sequences at once, one slot each, with reuse of shared prefixes.

`SlotCache` has the one method that a Transformers attention layer calls on its cache (`update`). `PrefixIndex`
remembers which slot holds the keys and values of which token prefix, in blocks, so that the next turn of a chain and
every branch of it start from what is already there.
"""

import logging
import math
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PretrainedConfig

from aepo_lightning.engines.transformers.slot_rows import SlotRows
from aepo_lightning.errors import ConfigError

logger = logging.getLogger(__name__)

_EXCHANGED_AT_ONCE = 16
"""Rows that are copied aside while others take their place."""

_FEWER_SLOTS = (
    "The engine keeps %d sequences instead of %d, and runs no more at once: %g GiB of `max_cache_gib` hold no more of "
    "%d tokens. Raise it where there is memory, or lower `max_model_len`."
)


def slot_bytes(config: PretrainedConfig, length: int, dtype: torch.dtype) -> int:
    """Return what the keys and values of one sequence of `length` tokens take, in bytes."""
    numbers: int = 2 * config.num_hidden_layers * config.num_key_value_heads * length * _head_dim(config)
    return numbers * dtype.itemsize


def slots_within(gib: float, size: int, length: int, num_slots: int) -> int:
    """Return how many slots of `length` tokens there are: `num_slots`, or as many as fit.

    Args:
        gib: Memory for keys and values, in GiB.
        size: Bytes of a slot.
        length: Longest sequence, in tokens.
        num_slots: How many are wanted.

    Raises:
        ConfigError: If not even one fits.
    """
    fitting = int(gib * 2**30) // size
    if fitting < 1:
        raise ConfigError(
            f"`max_cache_gib` must hold at least one sequence of {length} tokens, which is {size / 2**30:.3g} GiB, but "
            f"got {gib:g}. Raise it or lower `max_model_len`."
        )
    if fitting < num_slots:
        logger.info(_FEWER_SLOTS, fitting, num_slots, gib, length)
    return min(num_slots, fitting)


def _head_dim(config: PretrainedConfig) -> int:
    own: int | None = getattr(config, "head_dim", None)
    return own or int(config.hidden_size // config.num_attention_heads)


def _zeros(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return room for keys and values. What was never written is masked, and 0 times NaN would be NaN."""
    try:
        return torch.zeros(shape, device=device, dtype=dtype)
    except torch.OutOfMemoryError as error:
        gib = math.prod(shape) * dtype.itemsize / 2**30
        raise ConfigError(
            f"`max_cache_gib` must fit into the free memory of {device}, but the engine needs {gib:.1f} GiB for keys "
            "and values. Lower it, `max_num_seqs` or `max_model_len`."
        ) from error


class SlotCache:
    """Fixed slots of keys and values for every layer.

    The sequence axis grows when a longer sequence comes, or has its full length from the start and never moves, which
    is what a captured step needs. Only such a static cache can be read without a copy, from its first rows on.
    """

    is_compileable = False

    def __init__(
        self,
        config: PretrainedConfig,
        num_slots: int,
        max_length: int,
        device: torch.device,
        dtype: torch.dtype,
        *,
        is_static: bool = False,
    ) -> None:
        heads, layers = config.num_key_value_heads, config.num_hidden_layers
        shape = (layers, 2, num_slots, heads, max_length if is_static else 0, _head_dim(config))
        block = _zeros(shape, device, dtype)
        self._block = block if is_static else None
        self._keys = list(block[:, 0].unbind())
        self._values = list(block[:, 1].unbind())
        self._rows: Tensor = torch.empty(0, dtype=torch.long, device=device)
        self._positions: Tensor = torch.empty(0, 0, dtype=torch.long, device=device)
        self._span = 0
        self._max_length = max_length
        self._reads_first_rows = False
        self.rows = SlotRows(num_slots)

    @property
    def capacity(self) -> int:
        """Longest sequence that fits at present, in tokens."""
        return int(self._keys[0].shape[2])

    def prepare(self, rows: Int[Tensor, " batch"], positions: Int[Tensor, "batch seq"], span: int) -> None:
        """Say where the next forward pass writes, and how many positions from the start it may look at."""
        if span > self.capacity:
            self._grow(max(span, min(max(2 * self.capacity, 64), self._max_length)))
        self._rows, self._positions, self._span = rows, positions, span
        self._reads_first_rows = False

    def prepare_first(self, rows: Int[Tensor, " batch"], positions: Int[Tensor, "batch seq"], span: int) -> None:
        """Say the same of the first rows of a static cache, which are then read where they are.

        Args:
            rows: 0 to the number of rows, on the device.
            positions: Where each row writes.
            span: At most the capacity.
        """
        assert self._block is not None, "only a static cache has its rows in one place"
        self._rows, self._positions, self._span = rows, positions, span
        self._reads_first_rows = True

    def _grow(self, capacity: int) -> None:
        for buffers in (self._keys, self._values):
            for layer, old in enumerate(buffers):
                new = old.new_zeros(old.shape[0], old.shape[1], capacity, old.shape[3])
                new[:, :, : old.shape[2]] = old
                buffers[layer] = new

    def update(
        self, key_states: Float[Tensor, "batch heads seq head_dim"], value_states: Tensor, layer_idx: int, *_: object
    ) -> tuple[Tensor, Tensor]:
        """Store the new keys and values of one layer and return all of the prepared rows, from position 0."""
        rows, positions = self._rows[:, None], self._positions
        found = []
        for buffer, states in ((self._keys[layer_idx], key_states), (self._values[layer_idx], value_states)):
            buffer[rows, :, positions] = states.transpose(1, 2)
            seen = buffer[:, :, : self._span]
            found.append(seen[: len(rows)] if self._reads_first_rows else seen.index_select(0, self._rows))
        return found[0], found[1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0: positions and masks are always given explicitly."""
        del layer_idx
        return 0

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one slot to another."""
        source, target = self.rows[source], self.rows[target]
        if self._block is not None:
            self._block[:, :, target, :, :length] = self._block[:, :, source, :, :length]
            return
        for buffer in (*self._keys, *self._values):
            buffer[target, :, :length] = buffer[source, :, :length]

    def bring_forward(self, slots: Sequence[int], count: int, length: int) -> None:
        """Move the first `length` positions of slots into the first `count` rows of a static cache.

        What lies there moves to where they were.
        """
        assert self._block is not None, "only a static cache has its rows in one place"
        seen, pairs = self._block[:, :, :, :, :length], self.rows.to_exchange(slots, count)
        for start in range(0, len(pairs), _EXCHANGED_AT_ONCE):
            some = pairs[start : start + _EXCHANGED_AT_ONCE]
            left, right = torch.tensor(some, device=seen.device).unbind(1)
            moved = seen.index_select(2, torch.cat((right, left)))
            seen.index_copy_(2, torch.cat((left, right)), moved)
            self.rows.exchange(some)


class PrefixIndex:
    """Which slot holds which tokens, and which slot to give to a new request.

    A prefix is known by a 128-bit digest of its whole blocks, each chained to the one before, so that the memory for a
    sequence grows with its length and not with its square. A prefix that several slots hold is found until the last of
    them is recycled.
    """

    def __init__(self, num_slots: int, block_size: int) -> None:
        if block_size < 1:
            raise ConfigError(f"`block_size` must be at least 1, but got {block_size}.")
        self._block_size = block_size
        self._tokens: list[list[int]] = [[] for _ in range(num_slots)]
        self._lengths = [0] * num_slots
        self._keys: list[list[bytes]] = [[] for _ in range(num_slots)]
        self._holders: dict[bytes, dict[int, None]] = {}
        self._idle: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_slots))

    @property
    def num_idle(self) -> int:
        """Slots that no running request holds."""
        return len(self._idle)

    def match(self, prompt: Sequence[int]) -> tuple[int, int]:
        """Return (slot, length) of the longest known prefix of `prompt[:-1]`; (-1, 0) if there is none."""
        limit, length, key = len(prompt) - 1, 0, b""
        holders: dict[int, None] = {}
        while length + self._block_size <= limit:
            key = _chain(key, prompt[length : length + self._block_size])
            if (found := self._holders.get(key)) is None:
                break
            holders, length = found, length + self._block_size
        if not holders:
            return -1, 0
        lengths = {slot: self._extend(slot, prompt, length, limit) for slot in holders}
        best = max(lengths, key=lambda slot: (lengths[slot], self._can_continue(slot, lengths[slot])))
        return best, lengths[best]

    def _extend(self, slot: int, prompt: Sequence[int], length: int, limit: int) -> int:
        """Return how far beyond the whole blocks a slot agrees with the prompt."""
        held, limit = self._tokens[slot], min(limit, self._lengths[slot])
        while length < limit and held[length] == prompt[length]:
            length += 1
        return length

    def _can_continue(self, slot: int, length: int) -> bool:
        return slot in self._idle and self._lengths[slot] == length

    def acquire(self, slot: int, length: int) -> int:
        """Take a slot for a request whose first `length` tokens match `slot`; return the slot to use.

        The matching slot itself is taken over when nobody runs in it and the request continues all it holds;
        otherwise the idle slot that was used longest ago is recycled.
        """
        if length and self._can_continue(slot, length):
            del self._idle[slot]
            return slot
        if len(self._idle) > 1 and next(iter(self._idle)) == slot:
            self._idle.move_to_end(slot)  # about to be copied from
        target, _ = self._idle.popitem(last=False)
        self._forget(target)
        return target

    def commit(self, slot: int, tokens: list[int], length: int) -> None:
        """Record that `slot` now holds keys and values of `tokens[:length]`. The list may grow later."""
        self._tokens[slot], self._lengths[slot] = tokens, length
        keys, size = self._keys[slot], self._block_size
        for start in range(len(keys) * size, length - size + 1, size):
            keys.append(_chain(keys[-1] if keys else b"", tokens[start : start + size]))
            self._holders.setdefault(keys[-1], {})[slot] = None

    @property
    def longest(self) -> int:
        """Most positions of any slot that hold what is known here."""
        return max(self._lengths)

    def release(self, slot: int) -> None:
        """Give a slot back. What it holds stays available until the slot is recycled."""
        self._idle[slot] = None

    def clear(self) -> None:
        """Forget every prefix, as after a change of the weights."""
        for slot in range(len(self._tokens)):
            self._forget(slot)

    def _forget(self, slot: int) -> None:
        for key in self._keys[slot]:
            del self._holders[key][slot]
            if not self._holders[key]:
                del self._holders[key]
        self._keys[slot], self._tokens[slot], self._lengths[slot] = [], [], 0


def _chain(key: bytes, block: Sequence[int]) -> bytes:
    """Return the digest of a prefix that ends in `block`, from the digest of all before it."""
    return blake2b(key + array("q", block).tobytes(), digest_size=16).digest()
