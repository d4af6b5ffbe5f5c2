"""What Lightning would refuse, or step in another way, is refused here first, in words that say what does it here."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, Timer
from torch.optim import SGD
from torch.optim.lr_scheduler import ChainedScheduler, CosineAnnealingLR, LinearLR, ReduceLROnPlateau, SequentialLR

from aepo_lightning.app import stages
from aepo_lightning.errors import ConfigError
from aepo_lightning.training.coldstart import ColdStartModule
from aepo_lightning.training.lightning_settings import check_options, expect_iteration, prepare_trainer
from tests.support.composed import composed
from tests.support.slow import first_quick
from tests.support.training import FixedData, built_module, make_module, make_trainer, small_policy

OPTIONS = {
    "clip": ({"gradient_clip_val": 1.0}, "`gradient_clip_val` must be left out, but got 1.0.* `module.max_grad_norm`"),
    "clip by": ({"gradient_clip_algorithm": "value"}, "`gradient_clip_algorithm` must be left out, but got value"),
    "accumulate": (
        {"accumulate_grad_batches": 4},
        "`accumulate_grad_batches` must be left out or 1, but got 4.* `experience.questions_per_step`",
    ),
    "schedule": (
        {"callbacks": [GradientAccumulationScheduler({0: 2})]},
        "must not have GradientAccumulationScheduler.* `experience.questions_per_step`",
    ),
    "reload": (
        {"reload_dataloaders_every_n_epochs": 2},
        "`reload_dataloaders_every_n_epochs` must be left out or 1, but got 2",
    ),
    "some steps": (
        {"limit_train_batches": 0.5},
        r"`limit_train_batches` must be left out or 1\.0, but got 0\.5.*fewer `questions_per_iteration`",
    ),
    "one step": ({"limit_train_batches": 1}, r"`limit_train_batches` must be left out or 1\.0, but got 1\."),
    "overfit": ({"overfit_batches": 2}, "`overfit_batches` must be left out, but got 2.*`questions_per_iteration`"),
    "some questions": (
        {"limit_val_batches": 2},
        r"`limit_val_batches` must be left out or 1\.0, but got 2.*`num_val_questions`",
    ),
    "time": ({"callbacks": [Timer("00:12:00:00")]}, "`interval` of Timer must be epoch, but got step"),
}


@pytest.mark.parametrize(("options", "message"), OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("method", ["fit", "validate"])
def test_options_of_a_trainer_are_refused_before_anything_else(tmp_path, options, message, method):
    trainer = make_trainer(tmp_path, logger=False, **options)
    with pytest.raises(ConfigError, match=message):
        getattr(trainer, method)(make_module(), datamodule=FixedData([]))


def test_an_option_from_the_environment_is_refused_too(tmp_path, monkeypatch):
    monkeypatch.setenv("PL_TRAINER_GRADIENT_CLIP_VAL", "0.5")
    trainer = make_trainer(tmp_path, logger=False)
    with pytest.raises(ConfigError, match=r"`gradient_clip_val` must be left out, but got 0\.5"):
        trainer.fit(make_module(), datamodule=FixedData([]))


@pytest.mark.parametrize("name", first_quick(["some steps", "clip", "clip by", "accumulate", "reload"]))
def test_a_configuration_is_refused_before_the_run_has_a_folder(tmp_path, name):
    options, message = OPTIONS[name]
    words = [f"++trainer.{key}={value}" for key, value in options.items()]
    cfg = composed(f"run_dir={tmp_path / 'run'}", *words)
    with pytest.raises(ConfigError, match=message):
        stages.open_run(cfg)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "module.scheduler={_target_: torch.optim.lr_scheduler.ReduceLROnPlateau, _partial_: true}",
            "but got ReduceLROnPlateau",
        ),
        ("module.optimizer={_target_: torch.optim.LBFGS, _partial_: true}", "but got LBFGS"),
        ("evaluation.benchmarks=[gsm8l]", "but got 'gsm8l'. Did you mean gsm8k"),
        ("rollout.sampling.timeout_s=9.0", "must be null for an algorithm that branches, but got 9 for 'aepo"),
    ],
    ids=["scheduler", "optimizer", "benchmark", "time limit"],
)
def test_what_a_later_stage_would_refuse_is_refused_before_the_cold_start(tmp_path, word, message):
    cfg = composed(f"run_dir={tmp_path / 'run'}", word)
    with pytest.raises(ConfigError, match=message):
        stages.open_run(cfg)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "options", [{}, {"gradient_clip_val": None}, {"gradient_clip_val": 0.0}, {"devices": 2}], ids=str
)
def test_options_that_change_nothing_are_left_alone(options):
    check_options(options | {"accumulate_grad_batches": 1, "reload_dataloaders_every_n_epochs": 0})


# Ends within an iteration -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("max_steps", "is_taken"), [(3, False), (4, True), (-1, True)])
def test_a_run_ends_at_the_end_of_an_iteration(tmp_path, max_steps, is_taken):
    trainer = make_trainer(tmp_path, logger=False, max_steps=max_steps)
    with (
        nullcontext() if is_taken else pytest.raises(ConfigError, match=r"`max_steps` must be a multiple of 2, .*got 3")
    ):
        prepare_trainer(trainer, num_steps=2)


@pytest.mark.parametrize(
    ("max_steps", "num_steps", "said"), [(3, 4, "1 of its 4 optimiser steps"), (4, 4, ""), (-1, 4, "")]
)
def test_steps_that_come_after_the_last_one_are_counted(tmp_path, caplog, max_steps, num_steps, said):
    expect_iteration(make_trainer(tmp_path, logger=False, max_steps=max_steps), num_steps)
    assert said in caplog.text if said else "max_steps" not in caplog.text


# Optimisers and schedulers ------------------------------------------------------------------------------------------

PLATEAU = r"`scheduler` must be one that steps without a metric, but got ReduceLROnPlateau.* LinearLR"


class Plateau(ReduceLROnPlateau):
    pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheduler": partial(ReduceLROnPlateau, patience=3)}, PLATEAU),
        ({"scheduler": ReduceLROnPlateau}, PLATEAU),
        ({"scheduler": partial(Plateau)}, "metric, but got Plateau"),
        ({"optimizer": partial(torch.optim.LBFGS, lr=1.0)}, "`optimizer` must step once for each batch, but got LBFGS"),
    ],
    ids=["partial", "class", "subclass", "LBFGS"],
)
def test_a_kind_that_cannot_be_stepped_is_refused_before_there_is_a_model(options, message):
    with pytest.raises(ConfigError, match=message):
        make_module(**options)
    with pytest.raises(ConfigError, match=message):
        ColdStartModule(small_policy(), **({"optimizer": partial(SGD, lr=1.0)} | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheduler": lambda optimizer: ReduceLROnPlateau(optimizer)}, PLATEAU),
        ({"scheduler": lambda _: "cosine"}, "`scheduler` must return a torch LRScheduler, but got str. Name its class"),
        ({"scheduler": lambda optimizer: [LinearLR(optimizer)]}, "but got list"),
        ({"optimizer": lambda parameters: list(parameters)}, "`optimizer` must return a torch optimizer, but got list"),
        ({"optimizer": lambda parameters: torch.optim.LBFGS(parameters)}, "but got LBFGS"),
    ],
    ids=["plateau", "word", "list", "no optimizer", "LBFGS"],
)
def test_what_a_function_builds_is_refused_before_anything_is_rolled_out(options, message):
    with pytest.raises(ConfigError, match=message):
        built_module(**options).configure_optimizers()


@pytest.mark.parametrize(
    "scheduler",
    [
        partial(CosineAnnealingLR, T_max=10),
        lambda optimizer: SequentialLR(optimizer, [LinearLR(optimizer), CosineAnnealingLR(optimizer, 9)], [1]),
        lambda optimizer: ChainedScheduler([LinearLR(optimizer), CosineAnnealingLR(optimizer, 9)]),
    ],
    ids=["cosine", "sequential", "chained"],
)
def test_schedulers_that_follow_the_steps_are_taken(scheduler):
    assert built_module(scheduler=scheduler).configure_optimizers()["lr_scheduler"]["scheduler"].get_last_lr()
