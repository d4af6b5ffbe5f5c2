"""Rollouts beside the update that fail, or are cut off: the error surfaces and no thread stays."""

import asyncio
import threading
import traceback

import pytest
import torch
from lightning import Callback
from typing_extensions import override

from aepo_lightning.contracts.generation import WeightsStamp
from aepo_lightning.errors import ConfigError, EngineError, RewardError, TrainingError
from aepo_lightning.training.overlap import RolloutInFlight
from aepo_lightning.training.question_stream import RolloutOrder
from tests.support.overlapped import SlowEngine, Stop, overlapped_run, threads
from tests.support.training import TASK, RecordingEngine, make_module


@pytest.fixture(autouse=True)
def no_thread_stays():
    yield
    assert not threads()


class BreakingEngine(RecordingEngine):
    """Fails at the second rollout, which is the first beside an update."""

    async def generate(self, prompt_ids, params, on_probe=None):
        if threads() and threading.current_thread() in threads():
            raise EngineError("the engine broke")
        return await super().generate(prompt_ids, params, on_probe)


def test_what_fails_beside_the_update_is_raised_by_the_trainer_with_its_own_traceback(tmp_path):
    run, recorder = overlapped_run(tmp_path, BreakingEngine)
    with pytest.raises(EngineError, match="the engine broke") as caught:
        run.fit()
    frames = [frame.name for frame in traceback.extract_tb(caught.tb)]
    assert "_take_trees" in frames
    assert "rollout_async" in frames
    assert len(recorder.trees) == 1, "the update under way was finished"


def test_an_error_of_the_reward_surfaces_too(tmp_path):
    run, _ = overlapped_run(tmp_path)
    parts = run.datamodule.sampler.parts

    class Breaking(type(parts.reward)):
        async def __call__(self, sample):
            if threading.current_thread() in threads():
                raise ZeroDivisionError("no score")
            return await super().__call__(sample)

    object.__setattr__(parts, "reward", Breaking())
    with pytest.raises(RewardError, match="raised ZeroDivisionError: no score"):
        run.fit()


class EndlessEngine(RecordingEngine):
    """Never answers beside an update."""

    async def generate(self, prompt_ids, params, on_probe=None):
        if threading.current_thread() in threads():
            await asyncio.Event().wait()
        return await super().generate(prompt_ids, params, on_probe)


def test_an_error_of_the_update_ends_the_rollout_in_flight(tmp_path):
    run, _ = overlapped_run(tmp_path, EndlessEngine, [Stop(1)])
    with pytest.raises(RuntimeError, match="stop here"):
        run.fit()
    assert not threads()


def test_teardown_ends_the_rollout_in_flight(tmp_path):
    run, _ = overlapped_run(tmp_path, EndlessEngine, callbacks=[EarlyEnd()])
    run.fit()
    assert not threads()


class EarlyEnd(Callback):
    @override
    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = True


def test_a_rollout_can_be_cancelled_at_any_moment(tmp_path):
    run, _ = overlapped_run(tmp_path, EndlessEngine)
    sampler = run.datamodule.sampler
    for _ in range(20):
        order = RolloutOrder(questions=[TASK.question("train", 0)], seed=0, name="cancelled")
        RolloutInFlight(sampler, order, WeightsStamp(version=0)).cancel()
        assert not threads()


def test_settings_are_checked_before_anything_is_generated(tmp_path):
    run, _ = overlapped_run(tmp_path)
    run.module.policy_loss = make_module().policy_loss
    with pytest.raises(ConfigError, match="must be that of the experience, 'auto', but got 'recompute'"):
        run.fit()


def test_a_loss_that_is_not_finite_still_ends_the_run(tmp_path):
    run, _ = overlapped_run(tmp_path, SlowEngine, [Spoil()])
    with pytest.raises(TrainingError, match="must be finite"):
        run.fit()


class Spoil(Callback):
    @override
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        batch.micro_batches[0].advantages.fill_(torch.inf)
