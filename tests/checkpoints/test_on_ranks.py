"""Sharded checkpoints: written by two ranks, read by two, by one, and where nothing is sharded; damaged; killed."""

import os
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

from aepo_lightning.callbacks import AtomicCheckpoint
from aepo_lightning.checkpoints import EitherCheckpointIO, verify_checkpoint
from aepo_lightning.errors import DataError, TrainingError
from aepo_lightning.policy.publishing.gather import named_weights
from tests.checkpoints.test_hostile_index import hostile_index
from tests.support.killed_runs import check_same, train_to_the_end, train_until_killed
from tests.support.ranks import RankDraws, run_ranks
from tests.support.slow import first_quick
from tests.support.training import make_datamodule, make_module, make_run, small_policy

pytestmark = pytest.mark.distributed


def strategy_of(name, num_ranks):
    if name == "fsdp":
        return ModelParallelStrategy(data_parallel_size=num_ranks, tensor_parallel_size=1)
    return DDPStrategy(process_group_backend="gloo") if name == "ddp" else "auto"


def train(rank, folder, strategy, num_ranks, max_epochs, ckpt_path=None, breaks=None, **architecture):
    """Iterations of one optimiser step on two questions, saved after each. Return what came out of them."""
    policy, draws = small_policy(**architecture), RankDraws()
    run = make_run(
        folder,
        make_module(policy, optimizer=partial(torch.optim.AdamW, lr=1e-3, eps=1e-5)),
        make_datamodule(policy),
        callbacks=[draws, AtomicCheckpoint(folder / "checkpoints", every_n_epochs=1, keep=-1)],
        max_epochs=max_epochs,
        devices=num_ranks,
        strategy=strategy_of(strategy, num_ranks),
    )
    if strategy == "auto":
        run.trainer.strategy.checkpoint_io = EitherCheckpointIO()
    if breaks is not None:
        breaks(run, rank)
    run.fit(ckpt_path)
    return {
        "weights": {name: weight.clone() for name, weight in named_weights(run.network)},
        "losses": run.logger.values("train/loss"),
        "draws": draws.numbers,
    }


def run_as(strategy, num_ranks, *args, **options):
    return run_ranks(partial(train, **options), args[0], strategy, num_ranks, *args[1:], world=num_ranks)


def path_of(folder, epoch):
    return folder / "checkpoints" / f"iteration{epoch:04d}.ckpt"


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """Three iterations of two FSDP2 ranks."""
    folder = tmp_path_factory.mktemp("two")
    return folder, run_as("fsdp", 2, folder, 3)


@pytest.fixture
def copied(tmp_path, two_ranks):
    shutil.copytree(path_of(two_ranks[0], 1), path_of(tmp_path, 1))
    return path_of(tmp_path, 1)


def test_two_ranks_go_on_in_every_bit_each_with_its_own_generators(tmp_path, two_ranks):
    folder, whole = two_ranks
    assert whole[0]["draws"] != whole[1]["draws"]
    found = run_as("fsdp", 2, tmp_path, 3, path_of(folder, 1))
    for each, expected in zip(found, whole, strict=True):
        assert each["losses"] == expected["losses"][2:]
        assert each["draws"] == expected["draws"][2:]
        assert all(torch.equal(each["weights"][name], weight) for name, weight in expected["weights"].items())


@pytest.mark.parametrize("strategy", first_quick(["fsdp", "auto"]))
@pytest.mark.slow
def test_a_checkpoint_of_two_ranks_loads_on_one(tmp_path, two_ranks, strategy):
    folder, whole = two_ranks
    # Nothing left to train: what is loaded comes out.
    (loaded,) = run_as(strategy, 1, tmp_path, 2, path_of(folder, 1))
    (again,) = run_as("fsdp", 1, tmp_path, 2, path_of(folder, 1))
    assert all(torch.equal(loaded["weights"][name], weight) for name, weight in again["weights"].items())
    # One more step has the optimizer's state in it. Two ranks add up their gradients in another order.
    (found,) = run_as(strategy, 1, tmp_path, 3, path_of(folder, 1))
    assert found["losses"] == pytest.approx(whole[0]["losses"][2:], rel=1e-5, abs=1e-6)
    for name, weight in whole[0]["weights"].items():
        torch.testing.assert_close(found["weights"][name], weight, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("strategy", first_quick(["fsdp", "ddp"]))
def test_a_checkpoint_of_one_process_loads_on_two_ranks(tmp_path, strategy):
    whole = train(0, tmp_path / "one", "auto", 1, 3)
    for found in run_as(strategy, 2, tmp_path / "two", 3, path_of(tmp_path / "one", 1)):
        for name, weight in whole["weights"].items():
            torch.testing.assert_close(found["weights"][name], weight, atol=1e-5, rtol=1e-5)


# Damaged, or of something else --------------------------------------------------------------------------------------


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


DAMAGES = {
    "no shard": ("__1_0.distcp", Path.unlink, "it is missing"),
    "half a shard": ("__0_0.distcp", truncate, "bytes instead of"),
    "no state": ("meta.pt", Path.unlink, "it is missing"),
    "half a state": ("meta.pt", truncate, "it cannot be read"),
    "no index": (".metadata", Path.unlink, "it is missing"),
    "half an index": (".metadata", truncate, "it cannot be read"),
    "empty index": (".metadata", lambda path: path.write_bytes(b""), "it cannot be read"),
}


@pytest.mark.parametrize(("name", "damage", "reason"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_folder_is_refused_and_the_part_is_named(copied, name, damage, reason):
    damage(copied / name)
    with pytest.raises(DataError, match=rf"{copied / name} must be a whole part .*{reason}"):
        verify_checkpoint(copied)


def test_a_whole_folder_tells_where_its_run_is(copied):
    summary = verify_checkpoint(copied)
    assert (summary.epoch, summary.global_step, summary.identity["num_ranks"]) == (1, 2, 2)


def refuse_other_model(rank, path):
    with pytest.raises(BaseException, match=r"ize mismatch|of another model") as caught:
        train(rank, path.parent, "fsdp", 2, 3, path, hidden_size=32)
    return str(caught.value)


def test_another_model_is_refused_by_all_ranks(copied):
    assert len(run_ranks(refuse_other_model, copied)) == 2


def refuse_hostile_index(rank, path, witness):
    with pytest.raises(DataError, match=r"\.metadata must be a whole part .*it names") as caught:
        train(rank, path.parent.parent, "fsdp", 2, 3, path)
    return str(caught.value), witness.exists()


@pytest.mark.slow
def test_a_folder_that_would_run_code_is_refused_by_all_ranks(copied, tmp_path):
    witness = tmp_path / "it ran"
    hostile_index(copied, witness)
    assert [ran for _, ran in run_ranks(refuse_hostile_index, copied, witness)] == [False, False]


# Failures of one rank -----------------------------------------------------------------------------------------------


def fill_the_disk(run, rank, of):
    """Let one rank fail in its second save."""
    save = run.trainer.strategy.save_checkpoint

    def fail(checkpoint, filepath, storage_options=None):
        save(checkpoint, filepath, storage_options)
        if rank == of and run.trainer.current_epoch == 1:
            raise OSError(28, "No space left on device")

    run.trainer.strategy.save_checkpoint = fail


def fail_to_save(rank, folder, of):
    with pytest.raises(TrainingError, match=r"No space left on device.*iteration0000.ckpt is intact") as caught:
        train(rank, folder, "fsdp", 2, 3, breaks=partial(fill_the_disk, of=of))
    return str(caught.value)


@pytest.mark.parametrize("of", first_quick([1, 0]))
@pytest.mark.slow
def test_a_rank_that_cannot_save_stops_all_and_leaves_the_checkpoint_before(tmp_path, of):
    assert len(run_ranks(fail_to_save, tmp_path, of)) == 2
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["iteration0000.ckpt", "last.ckpt"]
    verify_checkpoint(path_of(tmp_path, 0))


# The command ---------------------------------------------------------------------------------------------------------

TWO_RANKS = ["strategy=fsdp", "trainer.devices=2", "trainer.max_epochs=3", "callbacks.checkpoint.every_n_epochs=1"]
POINTS = {
    "rank 1 in the update": {"where": "aepo_lightning.training.module:AEPOModule.training_step", "count": 4, "rank": 1},
    "rank 0 in a save": {
        "where": "aepo_lightning.callbacks.atomic_checkpoint:put_in_place",
        "count": 2,
        "cuts": True,
        "rank": 0,
    },
}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_ranks_that_are_killed_and_continued_are_bit_equal(tmp_path):
    train_to_the_end(tmp_path / "whole", *TWO_RANKS)
    for name, point in POINTS.items():
        folder = tmp_path / name.replace(" ", "_")
        train_until_killed(folder, *TWO_RANKS, kill=point)
        output = train_to_the_end(folder, *TWO_RANKS, "ckpt_path=last")
        assert "Continuing after iteration 0" in output
        check_same(folder, tmp_path / "whole")
