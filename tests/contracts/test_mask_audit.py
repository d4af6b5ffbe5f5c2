"""A batch trains on what the policy sampled, and whatever else it would train on is named."""

import re

import pytest

from aepo_lightning.contracts.mask_audit import mask_problem
from aepo_lightning.training.batching import Batcher, Row
from tests.support.training import make_tree, policy_turn, tool_turn

TREE = make_tree(
    [[policy_turn(5, 6), tool_turn(7), policy_turn(8)], [policy_turn(5), tool_turn(9, 9), policy_turn(4, 4)]],
    [0.0, 1.0],
)


def collated(tree=TREE):
    rows = [Row(trajectory=each, group=0, reward=0.0, advantage=0.0) for each in tree.trajectories()]
    return Batcher(max_tokens=100).collate(rows)


def flip(row, place):
    def change(batch):
        batch.response_mask[row, place] = not batch.response_mask[row, place]

    return change


def shift(batch):
    batch.sampler_logprobs = batch.sampler_logprobs.roll(1, dims=1)


def rename(batch):
    batch.input_ids[0, 2] = 11


def test_what_the_batcher_builds_is_right_with_and_without_rows():
    assert mask_problem([TREE], collated()) is None
    assert mask_problem([TREE], Batcher(max_tokens=100).collate([])) is None


# The trajectories are prompt 3 4, sampled 5 6, result 7, sampled 8, and prompt 3 4, sampled 5, result 9 9, sampled 4 4.
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (flip(0, 0), r"row 0 must be False at token 1, of the prompt or of a tool result, but is True"),
        (flip(0, 3), r"row 0 must be False at token 4, of the prompt or of a tool result"),
        (flip(1, 1), r"row 1 must be True at token 2, that the policy sampled, but is False"),
        (flip(0, 5), r"Padding must not be trained on, but the mask of row 0 is true beyond its 6 tokens"),
        (shift, r"row 0 at token 2 must be -0\.5.*not aligned"),
        (rename, r"Row 0 of a batch must be a trajectory of the iteration, but no tree has its 6 tokens"),
    ],
    ids=["prompt", "result", "sampled", "padding", "log-probs", "stranger"],
)
def test_what_is_wrong_is_named(change, problem):
    batch = collated()
    change(batch)
    assert re.search(problem, mask_problem([TREE], batch) or "")
