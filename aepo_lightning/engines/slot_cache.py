"""Keys and values of many sequences at once, one slot each, with reuse of shared prefixes.

`SlotCache` has the one method that a Transformers attention layer calls on its cache (`update`). `PrefixIndex` remembers
which slot holds the keys and values of which token prefix, in blocks, so that the next turn of a chain and every branch
of it start from what is already there.
"""

from array import array
from collections import OrderedDict
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PretrainedConfig


class SlotCache:
    """Fixed slots of keys and values for every layer; the sequence axis grows when a longer sequence comes."""

    is_compileable = False

    def __init__(self, config: PretrainedConfig, num_slots: int, device: torch.device, dtype: torch.dtype) -> None:
        heads = config.num_key_value_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (num_slots, heads, 0, head_dim)
        layers = range(config.num_hidden_layers)
        self._keys = [torch.empty(shape, device=device, dtype=dtype) for _ in layers]
        self._values = [torch.empty(shape, device=device, dtype=dtype) for _ in layers]
        self._rows: Tensor = torch.empty(0, dtype=torch.long, device=device)
        self._positions: Tensor = torch.empty(0, 0, dtype=torch.long, device=device)
        self._span = 0

    @property
    def capacity(self) -> int:
        """Longest sequence that fits at present, in tokens."""
        return int(self._keys[0].shape[2])

    def prepare(self, rows: Int[Tensor, " batch"], positions: Int[Tensor, "batch seq"], span: int) -> None:
        """Say where the next forward pass writes, and how many positions from the start it may look at."""
        if span > self.capacity:
            self._grow(max(span, 2 * self.capacity, 64))
        self._rows, self._positions, self._span = rows, positions, span

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
            found.append(buffer[:, :, : self._span].index_select(0, self._rows))
        return found[0], found[1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0: positions and masks are always given explicitly."""
        del layer_idx
        return 0

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one slot to another."""
        for buffer in (*self._keys, *self._values):
            buffer[target, :, :length] = buffer[source, :, :length]


class PrefixIndex:
    """Which slot holds which tokens, and which slot to give to a new request."""

    def __init__(self, num_slots: int, block_size: int) -> None:
        if block_size < 1:
            raise ValueError(f"`block_size` must be at least 1, but got {block_size}.")
        self._block_size = block_size
        self._tokens: list[list[int]] = [[] for _ in range(num_slots)]
        self._lengths = [0] * num_slots
        self._slot_keys: list[list[bytes]] = [[] for _ in range(num_slots)]
        self._owner: dict[bytes, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_slots))

    @property
    def num_idle(self) -> int:
        """Slots that no running request holds."""
        return len(self._idle)

    def match(self, prompt: Sequence[int]) -> tuple[int, int]:
        """Return (slot, length) of the longest known prefix of `prompt[:-1]`; the length is 0 if there is none."""
        limit = len(prompt) - 1
        data = array("q", prompt).tobytes()
        best = -1
        length = self._block_size
        while length <= limit and (slot := self._owner.get(data[: 8 * length])) is not None:
            best = slot
            length += self._block_size
        if best < 0:
            return -1, 0
        length -= self._block_size
        held = self._tokens[best]
        limit = min(limit, self._lengths[best])
        while length < limit and held[length] == prompt[length]:
            length += 1
        return best, length

    def acquire(self, slot: int, length: int) -> int:
        """Take a slot for a request whose first `length` tokens match `slot`; return the slot to use.

        The matching slot itself is taken over when nobody runs in it and the request continues all it holds;
        otherwise the idle slot that was used longest ago is recycled.
        """
        if length and slot in self._idle and self._lengths[slot] == length:
            del self._idle[slot]
            return slot
        if len(self._idle) > 1 and next(iter(self._idle)) == slot:
            self._idle.move_to_end(slot)  # about to be copied from
        target, _ = self._idle.popitem(last=False)
        self._forget(target)
        return target

    def commit(self, slot: int, tokens: list[int], length: int) -> None:
        """Record that `slot` now holds keys and values of `tokens[:length]`. The list may grow later."""
        known = len(self._slot_keys[slot]) * self._block_size
        self._tokens[slot], self._lengths[slot] = tokens, length
        if length < known + self._block_size:
            return
        data = array("q", tokens).tobytes()
        for end in range(known + self._block_size, length + 1, self._block_size):
            key = data[: 8 * end]
            self._owner.setdefault(key, slot)
            self._slot_keys[slot].append(key)

    def release(self, slot: int) -> None:
        """Give a slot back. What it holds stays available until the slot is recycled."""
        self._idle[slot] = None

    def clear(self) -> None:
        """Forget every prefix, as after a change of the weights."""
        for slot in range(len(self._tokens)):
            self._forget(slot)

    def _forget(self, slot: int) -> None:
        for key in self._slot_keys[slot]:
            if self._owner.get(key) == slot:
                del self._owner[key]
        self._slot_keys[slot], self._tokens[slot], self._lengths[slot] = [], [], 0
