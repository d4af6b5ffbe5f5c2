"""Runs with dynamic sampling in which a question's number says whether its group is worth anything."""

from functools import partial

import torch

from aepo_lightning.advantages import GroupZScore
from aepo_lightning.contracts.reward import RewardOutput
from aepo_lightning.errors import EngineError
from aepo_lightning.objectives import ImportanceCorrection
from aepo_lightning.rollout import RolloutJournal
from aepo_lightning.training.dynamic_sampling import DynamicSampling
from tests.support.overlapped import Recorder
from tests.support.training import (
    RecordingEngine,
    WordCountReward,
    experience_builder,
    make_datamodule,
    make_module,
    make_run,
    rollout_algorithm,
)


class SometimesReward(WordCountReward):
    """Gives every answer to some of the questions the same."""

    def __init__(self, is_dull):
        self.is_dull = is_dull

    async def __call__(self, sample):
        if self.is_dull(int(sample.question.question_id.rpartition("-")[2])):
            return RewardOutput(reward=0.5, is_correct=False, is_well_formed=True)
        return await super().__call__(sample)


class EndingEngine(RecordingEngine):
    """Fails after so many more steps; None never does."""

    steps_left = None

    def _step(self):
        if self.steps_left is not None:
            self.steps_left -= 1
            if self.steps_left < 0:
                raise EngineError("cut off")
        super()._step()


def cut_in_a_further_round(datamodule, iteration):
    """Have the engine fail in the middle of the first further round of an iteration."""
    further = datamodule._further_order

    def cutting(trees):
        order = further(trees)
        if order is not None and datamodule.iteration == iteration:
            datamodule.engine.steps_left = 6
        return order

    datamodule._further_order = cutting


def resampled_run(folder, is_dull, max_epochs=2, max_rounds=9, per_iteration=2, callbacks=(), overlap=False, **options):
    """An iteration of two questions and one optimiser step, with a journal and a record of all that is grown."""
    correction = ImportanceCorrection(mode="truncated") if overlap else ImportanceCorrection()
    module = make_module(optimizer=partial(torch.optim.AdamW, lr=1e-2), importance_correction=correction)
    builder = experience_builder(advantage_estimator=GroupZScore(), questions_per_step=2, max_tokens_per_micro_batch=64)
    datamodule = make_datamodule(
        module.policy,
        EndingEngine(module.policy, max_num_seqs=16, max_model_len=64),
        builder,
        algorithm=rollout_algorithm(shaping=None, dynamic_sampling=DynamicSampling(max_rounds=max_rounds)),
        reward=SometimesReward(is_dull),
        questions_per_iteration=per_iteration,
        journal=RolloutJournal(folder / "rollouts"),
        overlap=overlap,
    )
    recorder = Recorder()
    run = make_run(folder, module, datamodule, callbacks=[recorder, *callbacks], max_epochs=max_epochs, **options)
    return run, recorder
