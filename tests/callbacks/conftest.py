"""A real run that takes a second: in every iteration rollouts, two optimiser steps and a validation."""

from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from aepo_lightning.advantages import EntropyShaping, GroupZScore
from aepo_lightning.branching import EntropyBalanced
from tests.support import training
from tests.support.recording import SetMetrics
from tests.support.training import experience_builder


@pytest.fixture
def make_run(tmp_path):
    """Build a run of `max_epochs` iterations of two optimiser steps each, validated after each."""

    def make(callbacks=(), max_epochs=1, branch_policy=None, has_checkpoints=True, **options):
        # Of this seed, because untrained it happens to call the tool, so that chains can branch.
        policy = training.small_policy(seed=3, num_hidden_layers=1)
        module = training.make_module(policy, optimizer=partial(torch.optim.AdamW, lr=1e-2))
        experience = experience_builder(
            advantage_estimator=GroupZScore(), shaping=EntropyShaping(), questions_per_step=1
        )
        rule = branch_policy or EntropyBalanced(alpha=1.0, penalty_per_step=0.1)
        data = training.make_datamodule(module.policy, experience=experience, branch_policy=rule, num_val_questions=1)
        saver = ModelCheckpoint(tmp_path / "checkpoints", save_last=True, save_on_train_epoch_end=True)
        callbacks = [*callbacks, *([saver] if has_checkpoints else [])]
        options = {"callbacks": callbacks, "max_epochs": max_epochs, "limit_val_batches": 1.0, **options}
        return training.make_run(tmp_path, module, data, **options)

    return make


@pytest.fixture
def set_metrics():
    return SetMetrics
