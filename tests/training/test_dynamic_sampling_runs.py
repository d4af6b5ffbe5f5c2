"""Runs that ask again: cut off in a further round they go on the same in every bit, and ranks keep step."""

import math

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from aepo_lightning.callbacks import AtomicCheckpoint
from aepo_lightning.errors import EngineError
from tests.support.ranks import run_ranks
from tests.support.resampling import cut_in_a_further_round, resampled_run
from tests.support.training import flat

pytestmark = pytest.mark.slow


def is_dull(number):
    """One of two, so that every iteration needs a further round."""
    return number % 2 == 0


def a_run(folder, overlap):
    return resampled_run(folder, is_dull, 3, callbacks=[AtomicCheckpoint(folder / "checkpoints")], overlap=overlap)


@pytest.mark.parametrize("overlap", [False, True], ids=["before the update", "beside it"])
def test_a_run_that_is_cut_off_in_a_further_round_goes_on_the_same(tmp_path, overlap):
    whole, expected = a_run(tmp_path / "whole", overlap)
    whole.fit()
    assert [len(trees) for trees in expected.trees] == [4, 4, 4]
    cut, _ = a_run(tmp_path / "cut", overlap)
    cut_in_a_further_round(cut.datamodule, 1)
    with pytest.raises(EngineError, match="cut off"):
        cut.fit()
    assert list((tmp_path / "cut" / "rollouts").glob("*-round1.steps.jsonl")), "in the middle of a further round"
    again, recorder = a_run(tmp_path / "cut", overlap)
    again.fit(tmp_path / "cut" / "checkpoints" / "last.ckpt")
    assert recorder.trees == expected.trees[1:]
    assert again.logger.numbers() == [row for row in whole.logger.numbers() if row[0] >= 1]
    assert torch.equal(flat(again.network.parameters()), flat(whole.network.parameters()))
    assert again.datamodule.state_dict() == whole.datamodule.state_dict()


def on_a_rank(rank, folder, overlap):
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    # Rank 0 gets the even numbers, of which only 0 is dull: rank 1 needs no further round of its own.
    run, _ = resampled_run(
        folder, lambda number: number == 0, 2, per_iteration=4, overlap=overlap, devices=2, strategy=strategy
    )
    run.fit()
    own = sorted(path.name for path in (folder / "rollouts").iterdir() if f"rank{rank}" in path.name)
    return {
        "files": own,
        "asked": run.datamodule.num_asked,
        "losses": run.logger.values("train/loss"),
        "rounds": run.logger.values("rollout/num_resampling_rounds"),
        "discarded": run.logger.values("rollout/discarded_groups_fraction"),
    }


@pytest.mark.distributed
@pytest.mark.parametrize("overlap", [False, True], ids=["before the update", "beside it"])
def test_ranks_ask_again_together(tmp_path, overlap):
    found = run_ranks(on_a_rank, tmp_path, overlap)
    for rank, each in enumerate(found):
        first, round_1, second = (
            f"train-0000{i}-rank{rank}{end}.jsonl" for i, end in ((0, ""), (0, "-round1"), (1, ""))
        )
        assert each["files"] == sorted([first, round_1, second])
        # One is missing, at a rate of 3 in 4: 2 questions of each rank.
        assert each["asked"] == 12
    assert found[0]["rounds"] == [1, 0]
    assert found[0]["discarded"] == [0.5, 0.0]
    assert len(found[0]["losses"]) == 4
    assert all(math.isfinite(loss) for loss in found[0]["losses"])
