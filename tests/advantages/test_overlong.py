"""Soft overlong punishment (DAPO, eq. 13) and what is masked."""

import pytest

from aepo_lightning.advantages import OverlongPenalty
from aepo_lightning.contracts.generation import StopReason
from aepo_lightning.errors import ConfigError
from tests.support.training import make_tree, policy_turn, tool_turn


def equation_13(length, longest, cache):
    """As the paper writes it, in three cases."""
    if length <= longest - cache:
        return 0.0
    if length <= longest:
        return ((longest - cache) - length) / cache
    return -1.0


@pytest.mark.parametrize(("longest", "cache"), [(20_480, 4_096), (96, 19), (10, 1)])
def test_is_equation_13_at_every_length(longest, cache):
    penalty = OverlongPenalty(max_tokens=longest, buffer_tokens=cache)
    lengths = {
        *range(0, longest + 50, max(1, longest // 300)),
        longest - cache,
        longest - cache + 1,
        longest,
        longest + 1,
    }
    for length in lengths:
        assert penalty(length) == pytest.approx(equation_13(length, longest, cache), abs=1e-12)


def test_a_number_worked_by_hand():
    # 20,480 - 4,096 = 16,384; 1,024 tokens beyond it are a quarter of the buffer.
    assert OverlongPenalty(factor=2.0).within(20_480)(16_384 + 1_024) == -0.5


def test_what_was_cut_off_counts_as_longer_than_the_limit():
    assert OverlongPenalty().within(100)(5, is_truncated=True) == -1.0


def test_lengths_default_to_the_limit_of_the_rollouts_and_a_fifth_of_it():
    found = OverlongPenalty().within(20_480)
    assert (found.max_tokens, found.buffer_tokens) == (20_480, 4_096)
    assert OverlongPenalty(max_tokens=50).within(100).buffer_tokens == 10


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_tokens": 97}, r"`overlong.max_tokens` must be at most `max_response_tokens` \(96\), but got 97"),
        ({"buffer_tokens": 96}, r"`overlong.buffer_tokens` must be less than the 96 tokens .*, but got 96"),
    ],
)
def test_lengths_that_do_not_fit_the_limit_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        OverlongPenalty(**fields).within(96)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_tokens": 0}, "`max_tokens` must be at least 1 or null, but got 0"),
        ({"buffer_tokens": -1}, "`buffer_tokens` must be at least 1 or null, but got -1"),
        ({"factor": -0.5}, "`factor` must be at least 0 and finite, but got -0.5"),
        ({"factor": float("nan")}, "`factor` must be at least 0 and finite, but got nan"),
    ],
)
def test_numbers_without_meaning_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        OverlongPenalty(**fields)


def test_the_length_is_that_after_the_prompt_with_tool_results():
    tree = make_tree([[policy_turn(5, 5), tool_turn(6, 6, 6), policy_turn(7)], [policy_turn(5)]], [1.0, 0.0])
    penalty = OverlongPenalty(max_tokens=8, buffer_tokens=4)
    assert [penalty.of(tree, leaf) for leaf in tree.leaves] == [-0.5, 0.0]


@pytest.mark.parametrize(
    ("is_on", "reason", "expected"), [(True, "length", True), (True, "eos", False), (False, "length", False)]
)
def test_only_what_was_cut_off_is_masked_and_only_if_asked_for(is_on, reason, expected):
    tree = make_tree([[policy_turn(5)]], [1.0])
    tree.leaves[0].stop_reason = StopReason(reason)
    assert OverlongPenalty(mask_truncated=is_on).is_masked(tree.leaves[0]) is expected
