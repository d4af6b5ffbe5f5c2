"""What module, data and trainer must agree on: set where it can be, checked where it cannot."""

import warnings
from dataclasses import replace

import pytest
import torch
from lightning import Trainer

from aepo_lightning.budgets import PreMonitoring
from aepo_lightning.errors import ConfigError
from aepo_lightning.rollout import RolloutSettings, SamplingSettings
from aepo_lightning.training.consistency import check_time_limit
from aepo_lightning.training.presets import AEPO, ARPO, GRPO
from tests.support.recorded_runs import TreeRecorder, adam, experience, tree_run
from tests.support.training import (
    LIGHTNING_WARNINGS,
    Steps,
    build_experience,
    built_module,
    flat,
    make_datamodule,
    make_module,
    make_trainer,
    random_trees,
    share_algorithm,
)


def test_a_bare_trainer_is_told_what_rollouts_need(tmp_path):
    recorder = TreeRecorder()
    module = make_module(optimizer=adam())
    datamodule = make_datamodule(module.policy, experience=experience())
    share_algorithm(module, datamodule)
    options = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=3, callbacks=[recorder], default_root_dir=tmp_path, **options)
    with warnings.catch_warnings():
        for message in LIGHTNING_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        trainer.fit(module, datamodule=datamodule)
    # Two questions and two optimiser steps an iteration: every epoch asks other questions with newer weights.
    assert recorder.versions == [0, 2, 4]
    assert [questions[0].split(":")[0] for questions in recorder.questions] == ["0", "2", "4"]


def test_loaders_that_are_read_again_too_seldom_are_refused(tmp_path):
    run, _ = tree_run(tmp_path, reload_dataloaders_every_n_epochs=2)
    with pytest.raises(ConfigError, match="`reload_dataloaders_every_n_epochs` must be left out or 1, but got 2"):
        run.fit()


def test_module_and_data_must_have_one_algorithm(tmp_path):
    run, _ = tree_run(tmp_path)
    run.module.algorithm = replace(run.datamodule.algorithm, name="another")
    with pytest.raises(ConfigError, match="`algorithm` must be the same for module and data, but got 'another' and"):
        run.fit()
    run.module.algorithm = replace(run.datamodule.algorithm, budget=5)
    with pytest.raises(ConfigError, match="but got 'test' and 'test' with other parts"):
        run.fit()


def test_a_time_limit_is_for_trajectories_that_decide_about_no_other(tmp_path):
    run, _ = tree_run(tmp_path)
    sampler = run.datamodule.sampler
    sampler.parts = replace(sampler.parts, settings=replace(sampler.parts.settings, timeout_s=9.0))
    with pytest.raises(ConfigError, match="must be null for an algorithm that branches, but got 9 for 'test'"):
        run.fit()
    assert sampler.for_evaluation(2).parts.settings.timeout_s == 9
    check_time_limit(GRPO(), 9.0)
    check_time_limit(AEPO(), None)
    for probe_or_branches in (replace(GRPO(), allocator=PreMonitoring()), ARPO()):
        with pytest.raises(ConfigError, match="must be null"):
            check_time_limit(probe_or_branches, 9.0)


def test_the_module_trains_from_any_loader_of_minibatches(tmp_path):
    module = built_module(optimizer=adam())
    steps = build_experience(module, random_trees(2), questions_per_step=1)
    before = flat(module.network.parameters()).clone()
    trainer = make_trainer(tmp_path, logger=False)
    with warnings.catch_warnings():
        for message in LIGHTNING_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        trainer.fit(module, train_dataloaders=Steps(steps))
    assert trainer.global_step == 2
    assert not torch.equal(before, flat(module.network.parameters()))


def test_settings_of_an_algorithm_are_no_sampling_settings():
    with pytest.raises(ConfigError, match="`sampling` must be `SamplingSettings`, but got RolloutSettings"):
        make_datamodule(make_module().policy, sampling=RolloutSettings(budget=2))


@pytest.mark.parametrize("settings", [{"max_calls": {"serach": 2}}, {"ask_once": ["search", "serach"]}], ids=str)
def test_rules_for_a_tool_that_is_not_there_are_refused(settings):
    sampling = SamplingSettings(max_response_tokens=24, **settings)
    with pytest.raises(ConfigError, match="`max_calls` and `ask_once` must name tools of the run, but got 'serach'"):
        make_datamodule(make_module().policy, sampling=sampling)
