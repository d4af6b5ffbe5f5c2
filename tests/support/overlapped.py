"""What the tests of overlapped rollouts share: a small run, and what it leaves behind."""

import os
import signal
import threading
import time
from functools import partial

import torch
from lightning import Callback
from typing_extensions import override

from aepo_lightning.advantages import GroupZScore
from aepo_lightning.errors import EngineError
from aepo_lightning.objectives import ImportanceCorrection
from aepo_lightning.rollout import RolloutJournal
from tests.support.builders import canonical
from tests.support.training import RecordingEngine, experience_builder, make_datamodule, make_module, make_run

NUM_STEPS = 2  # optimiser steps of an iteration


class Recorder(Callback):
    """Trees of every iteration and the weights that grew them."""

    def __init__(self):
        self.trees = []
        self.versions = []

    @override
    def on_train_epoch_start(self, trainer, pl_module):
        self.trees.append([canonical(tree) for tree in trainer.datamodule.trees])
        self.versions.append({tree.weights_version for tree in trainer.datamodule.trees})


class SlowEngine(RecordingEngine):
    """Takes longer for each step, in the same order, so that a rollout outlasts the update."""

    def _step(self):
        time.sleep(0.001)
        super()._step()


class CutEngine(RecordingEngine):
    """Fails beside an update, after so many more steps there; None never does."""

    steps_left = None

    def _step(self):
        if self.steps_left is not None and threading.current_thread() in threads():
            self.steps_left -= 1
            if self.steps_left < 0:
                raise EngineError("cut off")
        super()._step()


def overlapped_run(
    folder, engine_type=RecordingEngine, callbacks=(), max_epochs=4, step=1, old_logprobs="auto", **options
):
    """Two questions and two optimiser steps an epoch; trees are kept in a journal below the folder."""
    correction = ImportanceCorrection(mode="truncated", old_logprobs=old_logprobs)
    module = make_module(optimizer=partial(torch.optim.AdamW, lr=1e-2), importance_correction=correction)
    builder = experience_builder(
        advantage_estimator=GroupZScore(),
        questions_per_step=step,
        max_tokens_per_micro_batch=64,
        old_logprobs=old_logprobs,
    )
    engine = engine_type(module.policy, max_num_seqs=16, max_model_len=64)
    data = {key: options.pop(key) for key in ("overlap", "seed", "weights_archive") if key in options}
    data = {"overlap": True, "journal": RolloutJournal(folder / "rollouts")} | data
    datamodule = make_datamodule(module.policy, engine, builder, **data)
    recorder = Recorder()
    run = make_run(folder, module, datamodule, callbacks=[recorder, *callbacks], max_epochs=max_epochs, **options)
    return run, recorder


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("aepo-overlap")]


class Stop(Callback):
    """Ends the run at an optimiser step: by an error, or as `kill -9` does."""

    def __init__(self, step, is_killed=False):
        self.step = step
        self.is_killed = is_killed

    @override
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            if self.is_killed:
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("stop here")
