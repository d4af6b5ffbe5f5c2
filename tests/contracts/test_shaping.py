"""The seam where a shaping is called: what a user's answers is checked, and it is named."""

import pytest
import torch

from aepo_lightning.contracts.shaping import shape_advantages
from aepo_lightning.errors import TrainingError
from tests.support.step_batches import PARTS, make_rows, split

BATCHES = split(make_rows(), *PARTS)


def test_advantages_are_taken_and_those_outside_the_mask_are_not():
    found = shape_advantages(lambda batches: [torch.ones(batch.response_mask.shape) for batch in batches], BATCHES)
    assert all(torch.equal(each, batch.response_mask.float()) for each, batch in zip(found, BATCHES, strict=True))


def explode(batches):
    raise KeyError("temperature")


@pytest.mark.parametrize(
    ("shaping", "message"),
    [
        (explode, r"explode` must not fail, but it raised KeyError: 'temperature'"),
        (lambda _: None, r"must return a list of one tensor for each of 4 micro-batches, but got NoneType"),
        (lambda batches: [batches[0].advantages], "for each of 4 micro-batches, but got 1 of them"),
        (lambda batches: [batch.lengths for batch in batches], r"must return floats of shape \(2, 12\) for each token"),
        (lambda batches: [batch.old_logprobs.log() for batch in batches], "must return finite advantages, but some"),
    ],
    ids=["raises", "none", "too few", "wrong shape", "not finite"],
)
def test_what_is_no_answer_is_refused_by_name(shaping, message):
    with pytest.raises(TrainingError, match=message):
        shape_advantages(shaping, BATCHES)
