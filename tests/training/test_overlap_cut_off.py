"""Rollouts beside the update that are cut off: begun again they are the same in every bit, from a checkpoint, too."""

import asyncio

import pytest
import torch
from lightning import Callback
from typing_extensions import override

from aepo_lightning.callbacks import AtomicCheckpoint
from aepo_lightning.contracts.generation import WeightsStamp
from aepo_lightning.distributed import ranks
from aepo_lightning.errors import EngineError, SignalExit
from aepo_lightning.policy.publishing.archive import WeightsArchive
from aepo_lightning.rollout import RolloutSampler
from aepo_lightning.training.overlap import AwaitedRollout, RolloutInFlight
from aepo_lightning.training.question_stream import RolloutOrder
from tests.support.overlapped import NUM_STEPS, CutEngine, overlapped_run, threads
from tests.support.training import flat

FIRST, SECOND = 12, 48
"""Steps of the engine beside updates: in the middle of the first overlapped rollout, and of the second."""


@pytest.fixture(autouse=True)
def no_thread_stays():
    yield
    assert not threads()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run, recorder = overlapped_run(tmp_path_factory.mktemp("whole"), CutEngine, max_epochs=3)
    run.fit()
    return run, recorder


def a_run(folder, keep, *callbacks):
    archive = WeightsArchive(folder / "weights", keep)
    saver = AtomicCheckpoint(folder / "checkpoints", every_n_epochs=10)
    return overlapped_run(folder, CutEngine, [*callbacks, saver], max_epochs=3, weights_archive=archive)


def cut_off(folder, steps, keep="auto"):
    run, _ = a_run(folder, keep)
    run.datamodule.engine.steps_left = steps
    with pytest.raises(EngineError, match="cut off"):
        run.fit()
    assert list((folder / "rollouts").glob("*.steps.jsonl")), "in the middle of a rollout"
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def check_same(folder, whole, first_iteration, ckpt_path=None):
    run, recorder = a_run(folder, "auto")
    run.fit(ckpt_path)
    expected, expected_trees = whole
    start = NUM_STEPS * first_iteration
    assert recorder.trees == expected_trees.trees[first_iteration:]
    assert recorder.versions == expected_trees.versions[first_iteration:]
    found, numbers = ([row for row in each.logger.numbers() if row[0] >= start] for each in (run, expected))
    assert found == numbers
    assert torch.equal(flat(run.network.parameters()), flat(expected.network.parameters()))


@pytest.mark.slow
def test_a_run_that_is_cut_off_before_its_first_checkpoint_has_the_same_weights_when_it_begins_again(tmp_path, whole):
    assert cut_off(tmp_path, FIRST) == ["iteration0000.ckpt", "last.ckpt"]
    check_same(tmp_path, whole, 0)


def test_what_was_cut_off_is_finished_with_the_weights_that_it_began_with(tmp_path, whole):
    assert cut_off(tmp_path, SECOND) == ["iteration0001.ckpt", "last.ckpt"]
    check_same(tmp_path, whole, 2, tmp_path / "checkpoints" / "last.ckpt")


@pytest.mark.slow
def test_without_these_weights_nothing_is_saved_and_one_line_says_so(tmp_path, caplog):
    assert cut_off(tmp_path, SECOND, keep=0) == []
    assert "not saved, because the weights of the overlapped rollouts are not kept" in caplog.text
    assert "The run goes on from the beginning" in caplog.text


def test_a_state_says_what_a_rollout_in_flight_had_begun_with(tmp_path):
    datamodule = overlapped_run(tmp_path)[0].datamodule
    awaited = AwaitedRollout(weights=WeightsStamp(version=3, digest="x"), penalty=0.25)
    assert AwaitedRollout.from_plain({"iteration": 4} | awaited.to_plain()) == awaited
    assert AwaitedRollout.from_plain({"in_flight": "stamp"}) == AwaitedRollout(stamp="stamp")
    assert AwaitedRollout.from_plain({"iteration": 4}) is None
    assert awaited.sampler_of(datamodule.sampler).parts.branch_policy.penalty_per_step == 0.25
    assert datamodule.branch_policy.penalty_per_step != 0.25


class TidySampler(RolloutSampler):
    """Never ends by itself, and has something to tidy up when it is told to."""

    is_tidy = False

    @override
    async def rollout_async(self, *args, **options):
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(10):
                await asyncio.sleep(0)
            type(self).is_tidy = True


def test_a_signal_stops_what_grows_beside_an_update_which_tidies_up_however_often_it_is_told(tmp_path, monkeypatch):
    stops = []
    monkeypatch.setattr("aepo_lightning.distributed.ranks.signals._stops", stops)
    sampler = TidySampler(overlapped_run(tmp_path)[0].datamodule.sampler.parts)
    flight = RolloutInFlight(sampler, RolloutOrder(questions=[], seed=0, name="tidy"), WeightsStamp(version=0))
    stop = stops[0]
    for _ in range(3):
        stop()
    with pytest.raises(asyncio.CancelledError):
        flight.wait()
    flight.cancel()
    assert TidySampler.is_tidy
    assert not stops


class TellToEnd(Callback):
    """A signal comes while a due checkpoint waits for the rollouts beside the update."""

    def __init__(self, folder):
        self.due = folder / "checkpoints" / "iteration0001.ckpt"

    @override
    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            trainer.datamodule._source.overlap.wait = self._raise

    def _raise(self):
        assert not self.due.exists(), "it was written after a wait that no signal ends"
        assert not ranks.signals._current or not ranks.signals._current[-1]._depth, "a signal would not be heard"
        raise SignalExit(15)


def test_a_signal_ends_the_wait_of_a_due_checkpoint_for_rollouts_and_what_is_there_is_saved(tmp_path):
    archive = WeightsArchive(tmp_path / "weights")
    saver = AtomicCheckpoint(tmp_path / "checkpoints", every_n_epochs=2)
    tell = TellToEnd(tmp_path)
    run, _ = overlapped_run(tmp_path, callbacks=[tell, saver], weights_archive=archive)
    with pytest.raises(SignalExit):
        run.fit()
    assert tell.due.exists()
