"""The slot cache: what the index promises is in the slots, and a slot belongs to one request at a time."""

from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aepo_lightning.engines.transformers.slot_cache import PrefixIndex, SlotCache
from tests.support.builders import tiny_policy

NUM_SLOTS, BLOCK = 3, 2


def common_length(left, right):
    length = 0
    while length < min(len(left), len(right)) and left[length] == right[length]:
        length += 1
    return length


class SlowIndex:
    """What slots hold, as plain lists, and a request that grows in each running one."""

    def __init__(self, num_slots=NUM_SLOTS, block=BLOCK):
        self.index = PrefixIndex(num_slots, block)
        self.block = block
        self.held = [[] for _ in range(num_slots)]
        """What the keys and values of each slot belong to."""
        self.known = [0] * num_slots
        """How much of it the index has been told about."""
        self.running: dict[int, list[int]] = {}

    def longest(self, prompt):
        """The longest prefix of `prompt[:-1]` in any slot, if it has a whole block."""
        known = [held[:length] for held, length in zip(self.held, self.known, strict=True)]
        lengths = [common_length(tokens, prompt[:-1]) for tokens in known]
        return max((length for length in lengths if length >= self.block), default=0)

    def start(self, prompt):
        source, length = self.index.match(prompt)
        assert length == self.longest(prompt)
        assert length < len(prompt)
        before = list(self.held[source]) if length else []
        continues = length > 0 and source not in self.running and self.known[source] == length
        slot = self.index.acquire(source, length)
        assert slot not in self.running
        assert before[:length] == prompt[:length]
        assert slot == source or not continues
        self.held[slot] = before[:length]
        self.known[slot] = length if continues and slot == source else 0
        self.running[slot] = list(prompt)

    def advance(self, slot, token):
        tokens = self.running[slot]
        self.held[slot], self.known[slot] = list(tokens), len(tokens)
        self.index.commit(slot, tokens, len(tokens))
        tokens.append(token)

    def release(self, slot):
        del self.running[slot]
        self.index.release(slot)

    def check(self):
        assert self.index.num_idle == len(self.held) - len(self.running)


token = st.integers(0, 1)
action = st.one_of(
    st.tuples(st.just("start"), st.lists(token, min_size=1, max_size=9)),
    st.tuples(st.just("continue"), st.integers(0, 5)),
    st.tuples(st.just("advance"), st.integers(0, 5), token),
    st.tuples(st.just("release"), st.integers(0, 5)),
    st.tuples(st.just("clear")),
)


def apply(slow, step, past):
    kind, *arguments = step
    running = sorted(slow.running)
    if kind == "clear":
        slow.index.clear()
        slow.held, slow.known = [[] for _ in slow.held], [0] * len(slow.held)
        for slot in running:
            slow.release(slot)
    elif kind in ("start", "continue"):
        if slow.index.num_idle:
            prompt = arguments[0] if kind == "start" else [*past[arguments[0] % len(past)], 1, 0]
            slow.start(prompt)
    elif running:
        slot = running[arguments[0] % len(running)]
        if kind == "advance":
            slow.advance(slot, arguments[1])
        else:
            past.append(list(slow.running[slot]))
            slow.release(slot)
    slow.check()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(action, max_size=40))
def test_any_sequence_of_requests_agrees_with_plain_lists(steps):
    slow, past = SlowIndex(), [[0, 1, 0]]
    for step in steps:
        apply(slow, step, past)


@pytest.mark.parametrize("block", [1, 2, 3, 8])
def test_long_random_traffic_agrees_with_plain_lists(block):
    random = Random(block)
    slow = SlowIndex(num_slots=5, block=block)
    past = [[0]]
    for _ in range(1_500):
        kind = random.choices(("start", "continue", "advance", "release", "clear"), (2, 3, 12, 4, 0.05))[0]
        choices = {
            "start": ([random.randrange(2) for _ in range(random.randrange(1, 20))],),
            "advance": (random.randrange(99), random.randrange(2)),
            "clear": (),
        }
        apply(slow, (kind, *choices.get(kind, (random.randrange(99),))), past)


def run_one(slow, prompt, new_tokens=()):
    """Start a request, compute everything, release it, and return its slot."""
    slow.start(prompt)
    slot = next(iter(slow.running))
    for new in (*new_tokens, -1):
        slow.advance(slot, new)
    slow.release(slot)
    return slot


def test_a_chain_that_continues_keeps_its_slot():
    slow = SlowIndex()
    first = run_one(slow, [1, 2, 3, 4], [5, 6])
    assert run_one(slow, [1, 2, 3, 4, 5, 6, 7, 8]) == first


def test_a_branch_from_the_middle_leaves_the_trunk_alone():
    slow = SlowIndex()
    trunk = run_one(slow, [1, 2, 3, 4, 5, 6])
    branch = run_one(slow, [1, 2, 3, 4, 9, 9, 9])
    assert branch != trunk
    assert slow.held[trunk] == [1, 2, 3, 4, 5, 6]


def test_the_slot_used_longest_ago_is_recycled_but_not_the_one_to_copy_from():
    slow = SlowIndex()
    slots = [run_one(slow, [number] * 4) for number in (1, 2, 3)]
    assert run_one(slow, [1, 1, 9, 9, 9]) == slots[1]


def test_a_shared_prefix_is_found_after_its_first_holder_was_recycled():
    slow = SlowIndex()
    run_one(slow, [1, 2, 3, 4, 5, 5])
    second = run_one(slow, [1, 2, 3, 4, 6, 6])
    run_one(slow, [7] * 4)
    run_one(slow, [8] * 4)  # takes the first slot
    assert slow.index.match([1, 2, 3, 4, 6, 6, 0]) == (second, 6)


def test_memory_for_a_sequence_grows_with_its_length_only():
    index = PrefixIndex(1, 8)
    slot = index.acquire(-1, 0)
    index.commit(slot, list(range(8_000)), 8_000)
    assert sum(map(len, index._holders)) == 16 * 1_000


def test_a_prompt_is_never_matched_to_its_end():
    slow = SlowIndex(block=1)
    run_one(slow, [1, 2, 3])
    assert slow.index.match([1, 2, 3]) == (0, 2)  # one token must be left to compute the next from


def test_nothing_is_known_after_clear():
    slow = SlowIndex()
    run_one(slow, [1, 2, 3, 4])
    slow.index.clear()
    assert slow.index.match([1, 2, 3, 4, 5]) == (-1, 0)


def test_blocks_must_be_positive():
    with pytest.raises(ValueError, match=r"`block_size` must be at least 1, but got 0"):
        PrefixIndex(1, 0)


def make_cache(num_slots=3, max_length=100):
    return SlotCache(tiny_policy().config, num_slots, max_length, torch.device("cpu"), torch.float32)


def write(cache, slot, start, values):
    """Store one number per position in layer 0 of a slot and return the keys of the slot."""
    positions = torch.arange(start, start + len(values))[None]
    cache.prepare(torch.tensor([slot]), positions, start + len(values))
    states = torch.tensor(values).float()[None, None, :, None].expand(1, 2, -1, 8)
    keys, found = cache.update(states, -states, 0)
    assert torch.equal(found, -keys)
    return keys[0, 0, :, 0].tolist()


def test_keys_and_values_come_back_from_the_start():
    cache = make_cache()
    assert write(cache, 1, 0, [1, 2, 3]) == [1, 2, 3]
    assert write(cache, 1, 3, [4]) == [1, 2, 3, 4]


def test_growing_keeps_what_was_stored_and_stops_at_the_longest_sequence():
    cache = make_cache(max_length=100)
    write(cache, 0, 0, list(range(64)))
    assert cache.capacity == 64
    assert write(cache, 0, 64, [64]) == list(range(65))
    assert cache.capacity == 100


def test_copying_a_prefix_makes_the_slots_independent():
    cache = make_cache()
    write(cache, 0, 0, [1, 2, 3])
    cache.copy_prefix(0, 2, 2)
    assert write(cache, 2, 2, [9]) == [1, 2, 9]
    assert write(cache, 0, 3, [4]) == [1, 2, 3, 4]
