"""What two ranks agree on."""

import pytest
import torch.distributed as dist

from aepo_lightning.distributed.collectives import (
    all_gather,
    all_names,
    all_reduce,
    from_rank_zero,
    on_rank_zero,
    world_size,
)
from aepo_lightning.errors import RewardError
from aepo_lightning.rollout import Tally
from aepo_lightning.training.metrics import reduce_tally
from tests.support.ranks import run_ranks

pytestmark = pytest.mark.distributed


def collect(rank):
    dist.init_process_group("gloo")
    tally = Tally()
    tally.add("reward", float(rank), weight=1.0 + rank)
    if rank:
        tally.add("branch_reward", 0.5)
    tally.observe("entropy_p{}", [1.0, 3.0] if rank else [2.0])
    found = {
        "world_size": world_size(),
        "sum": all_reduce([1, 2.5 * rank, 2**40 + rank]),
        "max": all_reduce([len("ab") - rank, -1.0], "max"),
        "nothing": all_reduce([]),
        "names": all_names(["both", f"only{rank}"]),
        "values": all_gather({"rank": rank}),
        "of rank 0": from_rank_zero(("rank", rank)),
        "tally": reduce_tally(tally),
    }
    dist.destroy_process_group()
    return found


def test_two_ranks_reduce_to_the_same_numbers_and_names():
    first, second = run_ranks(collect)
    assert first == second
    assert first["world_size"] == 2
    # float64: 2^41 + 1 would not fit float32.
    assert first["sum"] == [2.0, 2.5, 2**41 + 1]
    assert first["max"] == [2.0, -1.0]
    assert first["nothing"] == []
    assert first["names"] == ["both", "only0", "only1"]
    assert first["values"] == [{"rank": 0}, {"rank": 1}]
    assert first["of rank 0"] == ("rank", 0)
    # Rank 0 adds 0 with weight 1, rank 1 adds 1 with weight 2; only rank 1 has seen a branch.
    percentiles = {"entropy_p10": 1.0, "entropy_p90": 3.0}
    assert first["tally"] == {"reward": pytest.approx(2 / 3), "branch_reward": 0.5, **percentiles}


def refuse_as_rank(rank):
    dist.init_process_group("gloo")
    calls = refuse(rank)
    dist.destroy_process_group()
    return calls


def refuse(rank):
    calls = []
    on_rank_zero(lambda: calls.append(rank))

    def fail():
        raise RewardError(f"no score on rank {rank}")

    with pytest.raises(RewardError, match="no score on rank 0"):
        on_rank_zero(fail)
    return calls


def test_what_one_rank_tries_fails_on_all_or_none():
    assert run_ranks(refuse_as_rank) == [[0], []]


def test_a_single_process_is_the_first_rank():
    assert refuse(0) == [0]
