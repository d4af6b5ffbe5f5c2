"""Rollouts beside the update: the trees of a loop with stale weights, exactly, and nothing left behind."""

import logging
import multiprocessing
import signal
import threading
import warnings
from dataclasses import replace

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from typing_extensions import override

from aepo_lightning.contracts.generation import WeightsStamp
from aepo_lightning.distributed.ranks.evidence import progress
from aepo_lightning.rollout import RolloutSampler
from aepo_lightning.training.datamodule import RolloutDataModule
from aepo_lightning.training.overlap import OverlappedRollouts, RolloutInFlight
from aepo_lightning.training.question_stream import RolloutOrder
from tests.support.builders import canonical
from tests.support.overlapped import NUM_STEPS, SlowEngine, Stop, overlapped_run, threads
from tests.support.slow import first_quick
from tests.support.training import TASK, flat


class OneAfterTheOther(RolloutDataModule):
    """The same stale weights without a thread: the next rollouts are made before the update, by the same loop."""

    kept = None

    def _take_trees(self):
        kept, self.kept = self.kept, None
        self.publish_weights()
        if kept is None:
            kept = self._source.rollout(self.sampler, self._order(self.iteration))
            self.rest()
            self.publish_weights()
        self.trees = kept
        self.kept = self._source.rollout(self.sampler, self._order(self.iteration + 1))


@pytest.fixture(autouse=True)
def no_thread_stays():
    yield
    assert not threads()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of four iterations that is never stopped."""
    run, recorder = overlapped_run(tmp_path_factory.mktemp("whole"))
    run.fit()
    return run, recorder


def test_an_overlapped_run_is_that_of_a_loop_with_stale_weights(tmp_path, whole):
    run, recorder = whole
    other, sequential = overlapped_run(tmp_path, overlap=False)
    other.datamodule.__class__ = OneAfterTheOther
    other.fit()
    assert recorder.trees == sequential.trees
    assert run.logger.numbers() == other.logger.numbers()
    assert torch.equal(flat(run.network.parameters()), flat(other.network.parameters()))


def test_rollouts_are_fresh_once_and_one_iteration_old_afterwards(whole):
    run, recorder = whole
    assert recorder.versions == [{0}, {0}, {2}, {4}]
    assert run.logger.values("rollout/staleness_steps") == [0, NUM_STEPS, NUM_STEPS, NUM_STEPS]
    assert run.datamodule.engine.versions == [0, 0, 2, 4, 6]


def test_stale_rollouts_show_in_the_mismatch_and_are_weighted(whole):
    run, _ = whole
    mismatch = run.logger.values("train/mismatch_kl")
    assert max(mismatch[:NUM_STEPS]) < 1e-9
    assert min(mismatch[NUM_STEPS:]) > 1e-5
    assert all(value == value for value in run.logger.values("train/loss"))
    # The trainer has scored the tokens, so ratios begin at 1 whatever the sampler says.
    assert run.logger.values("train/importance_ratio")[::NUM_STEPS] == pytest.approx([1.0] * 4, abs=1e-5)


def test_the_last_iteration_starts_no_rollout(whole):
    run, _ = whole
    names = sorted(path.name for path in run.datamodule.sampler.journal.path("any").parent.glob("*.jsonl*"))
    assert names == [f"train-0000{index}-rank0.jsonl" for index in range(4)]


@pytest.mark.parametrize("limit", [{"max_epochs": 2}, {"max_epochs": -1, "max_steps": 4}], ids=["epochs", "steps"])
def test_the_end_is_seen_whatever_sets_it(tmp_path, limit):
    run, recorder = overlapped_run(tmp_path, **limit)
    run.fit()
    assert len(recorder.trees) == len(list((tmp_path / "rollouts").glob("*.jsonl*"))) == 2


@pytest.mark.slow
def test_validation_waits_and_changes_nothing(tmp_path, whole):
    run, recorder = overlapped_run(tmp_path, SlowEngine, limit_val_batches=1.0, check_val_every_n_epoch=1)
    run.fit()
    assert recorder.trees == whole[1].trees
    assert torch.equal(flat(run.network.parameters()), flat(whole[0].network.parameters()))
    assert len(run.logger.values("val/pass@1")) == 4
    # Published again after each, so that no rollout starts from prefixes that validation has cached.
    assert run.datamodule.engine.versions == [0, 0, 2, 2, 4, 4, 6, 6, 8]


def test_stale_rollouts_are_always_scored(tmp_path):
    run, _ = overlapped_run(tmp_path, max_epochs=3, step=2)
    run.fit()
    # One step per iteration: the fresh rollouts of the first need no scoring pass, the others do.
    assert run.logger.values("rollout/staleness_steps") == [0, 1, 1]
    assert len(run.logger.values("experience/max_importance_weight")) == 2
    assert run.logger.values("train/mismatch_kl")[0] < 1e-9 < run.logger.values("train/mismatch_kl")[1]


def test_sampler_log_probs_need_no_scoring_pass_and_train_on(tmp_path):
    run, recorder = overlapped_run(tmp_path, old_logprobs="sampler", max_epochs=3)
    run.fit()
    assert recorder.versions == [{0}, {0}, {2}]
    # The ratio is to the sampler, which is one iteration old.
    assert run.logger.values("train/importance_ratio")[NUM_STEPS] != pytest.approx(1, abs=1e-4)
    assert not run.logger.values("experience/max_importance_weight")


class HeldSampler(RolloutSampler):
    """Begins only once it is allowed to."""

    gate = threading.Event()

    @override
    async def rollout_async(self, *args, **options):
        self.gate.wait()
        return await super().rollout_async(*args, **options)


def test_what_is_set_on_the_sampler_is_for_later_rollouts(tmp_path):
    # Three engines, because cached prefixes change the last bits.
    parts, same, other = (overlapped_run(tmp_path)[0].datamodule.sampler.parts for _ in range(3))
    questions = [TASK.question("train", index) for index in range(4)]
    sampler = HeldSampler(parts)
    order = RolloutOrder(questions=questions, seed=0, name="held")
    flight = RolloutInFlight(sampler, order, WeightsStamp(version=0))
    shorter = replace(parts.settings, max_response_tokens=3)
    sampler.parts = replace(parts, settings=shorter)
    sampler.gate.set()
    found = [canonical(tree) for tree in flight.wait()]
    expected, later = (
        [canonical(tree) for tree in RolloutSampler(each).rollout(questions, 0)]
        for each in (same, replace(other, settings=shorter))
    )
    assert found == expected != later


def test_every_tree_beside_an_update_counts_as_progress(tmp_path):
    sampler = overlapped_run(tmp_path)[0].datamodule.sampler
    order = RolloutOrder(questions=[TASK.question("train", index) for index in range(3)], seed=0, name="counted")
    before = progress()
    RolloutInFlight(sampler, order, WeightsStamp(version=0)).wait()
    assert progress() == before + 3


# Stopped and continued ----------------------------------------------------------------------------------------------


def saver(folder):
    return ModelCheckpoint(folder, filename="{epoch}", save_last=True, save_on_train_epoch_end=True)


def kill_at(step, folder):
    """Fork a run that is killed at a step; a fork needs no imports."""

    def work():
        torch.set_num_threads(1)
        overlapped_run(folder, SlowEngine, [saver(folder), Stop(step, is_killed=True)])[0].fit()

    process = multiprocessing.get_context("fork").Process(target=work, daemon=True)
    with warnings.catch_warnings():
        # Python 3.12 and later; the child uses no lock of another thread.
        warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
        process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def check_continued(folder, whole, first_iteration):
    run, recorder = overlapped_run(folder, callbacks=[saver(folder)])
    run.fit(ckpt_path=folder / "last.ckpt")
    expected, expected_trees = whole
    assert recorder.trees == expected_trees.trees[first_iteration:]
    assert recorder.versions == expected_trees.versions[first_iteration:]
    start = NUM_STEPS * first_iteration
    assert run.logger.numbers() == [row for row in expected.logger.numbers() if row[0] >= start]
    assert torch.equal(flat(run.network.parameters()), flat(expected.network.parameters()))


# Step 4 is the first after the second checkpoint, 5 is in the middle of an update, 7 in that of the last one.
@pytest.mark.parametrize("step", first_quick([5, 4, 2, 7]))
def test_a_killed_run_continues_as_if_nothing_had_happened(tmp_path, whole, step):
    kill_at(step, tmp_path)
    check_continued(tmp_path, whole, step // NUM_STEPS)


@pytest.mark.slow
def test_a_run_that_an_error_ended_continues_as_if_nothing_had_happened(tmp_path, whole):
    run, _ = overlapped_run(tmp_path, SlowEngine, [saver(tmp_path), Stop(5)])
    with pytest.raises(RuntimeError, match="stop here"):
        run.fit()
    assert not threads()
    check_continued(tmp_path, whole, 2)


def test_a_run_whose_journal_is_lost_goes_on_with_fresh_rollouts_and_says_so(tmp_path, caplog):
    run, _ = overlapped_run(tmp_path, callbacks=[saver(tmp_path), Stop(2)])
    with pytest.raises(RuntimeError, match="stop here"):
        run.fit()
    (tmp_path / "rollouts" / "train-00001-rank0.jsonl").unlink()
    again, recorder = overlapped_run(tmp_path, callbacks=[saver(tmp_path)], max_epochs=3)
    with caplog.at_level(logging.WARNING, logger="aepo_lightning.training.tree_source"):
        again.fit(ckpt_path=tmp_path / "last.ckpt")
    assert "The journal lacks trees of train-00001-rank0 that the checkpoint waited for" in caplog.text
    assert recorder.versions == [{2}, {2}]


def test_trees_of_other_weights_are_not_taken_for_those_in_flight(tmp_path):
    run, _ = overlapped_run(tmp_path, callbacks=[saver(tmp_path), Stop(2)])
    with pytest.raises(RuntimeError, match="stop here"):
        run.fit()
    order, sampler = run.datamodule._order(1), run.datamodule.sampler
    rollouts = OverlappedRollouts()
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["RolloutDataModule"]
    rollouts.restore(saved)
    assert [tree.weights_version for tree in rollouts.take(sampler, order)] == [0, 0]
    rollouts.restore(saved | {"in_flight": "other"})
    assert rollouts.take(sampler, order) is None


def test_state_without_a_rollout_in_flight_is_the_iteration_alone(whole):
    assert "in_flight" not in whole[0].datamodule.state_dict()
