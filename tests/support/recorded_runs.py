"""Runs of two optimiser steps an epoch that remember their trees."""

from functools import partial

import torch
from lightning import Callback
from typing_extensions import override

from aepo_lightning.advantages import EntropyShaping, GroupZScore
from tests.support.builders import canonical
from tests.support.training import (
    experience_builder,
    make_datamodule,
    make_module,
    make_run,
)


class TreeRecorder(Callback):
    """Keeps the trees, the engine's version and the old log-probs of every iteration."""

    def __init__(self):
        self.trees = []
        self.versions = []
        self.questions = []

    @override
    def on_train_epoch_start(self, trainer, pl_module):
        datamodule = trainer.datamodule
        self.trees.append([canonical(tree) for tree in datamodule.trees])
        self.questions.append([tree.question.question_id for tree in datamodule.trees])
        self.versions.append(datamodule.engine.weights_version)


def adam(lr=1e-2):
    return partial(torch.optim.AdamW, lr=lr)


def experience(**options):
    defaults = {"advantage_estimator": GroupZScore(), "shaping": EntropyShaping(), "questions_per_step": 1}
    return experience_builder(**(defaults | {"max_tokens_per_micro_batch": 64} | options))


def tree_run(folder, max_epochs=2, callbacks=(), **options):
    """A run of two questions and two optimiser steps an epoch, with a record of its trees."""
    recorder = TreeRecorder()
    module = make_module(optimizer=adam())
    datamodule = make_datamodule(module.policy, experience=experience())
    run = make_run(folder, module, datamodule, max_epochs=max_epochs, callbacks=[recorder, *callbacks], **options)
    return run, recorder
