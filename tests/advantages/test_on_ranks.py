"""What looks at a whole optimiser step answers the same on two ranks as in one process."""

import pytest
import torch
import torch.distributed as dist

from aepo_lightning.advantages import ClipCov, EntropyModulation, EntropyShaping, KLCov, TopEntropyMask
from tests.support.ranks import run_ranks
from tests.support.step_batches import WHOLE, by_row, make_rows, split

PARTS = {
    "shaping": EntropyShaping(scope="minibatch"),
    "modulation": EntropyModulation(),
    "top entropy": TopEntropyMask(fraction=0.3),
    "clip-cov": ClipCov(fraction=0.1, lowest=0.1, highest=2.0),
    "kl-cov": KLCov(fraction=0.1),
}
ROWS_OF_RANKS = ([[0], [3, 1]], [[2, 4, 5], [6], [7]])


def answers(rank):
    dist.init_process_group("gloo")
    batches = split(make_rows(), *ROWS_OF_RANKS[rank])
    found = {name: [each.tolist() for each in part(batches)] for name, part in PARTS.items()}
    dist.destroy_process_group()
    return found


@pytest.mark.distributed
def test_two_ranks_answer_as_one_process():
    by_rank = run_ranks(answers)
    parts = [part for parts in ROWS_OF_RANKS for part in parts]
    for name, part in PARTS.items():
        found = by_row([torch.tensor(each) for rank in by_rank for each in rank[name]], *parts)
        (expected,) = part(split(make_rows(), *WHOLE))
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7, msg=name)
