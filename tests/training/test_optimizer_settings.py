"""A resume goes on as before, with what was set otherwise since."""

import logging
from functools import partial

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    SequentialLR,
    StepLR,
)

from aepo_lightning.callbacks import AtomicCheckpoint
from aepo_lightning.training.optimizer_settings import ResumedSettings, rates_of
from tests.support.ranks import run_ranks
from tests.support.training import make_datamodule, make_module, make_run, small_policy


def warm_up(step):
    return min(1.0, (step + 1) / 4)


def chained(optimizer):
    return SequentialLR(optimizer, [LinearLR(optimizer, 0.1, total_iters=2), ExponentialLR(optimizer, 0.9)], [2])


SCHEDULERS = {
    "none": None,
    "lambda": partial(LambdaLR, lr_lambda=warm_up),
    "cosine": partial(CosineAnnealingLR, T_max=20),
    "step": partial(StepLR, step_size=2),
    "chained": chained,
}


class Start:
    """Optimizer and scheduler of one start, and what the module does with them."""

    def __init__(self, scheduler=None, optimizer=AdamW, **settings):
        weight = torch.nn.Parameter(torch.ones(2))
        self.optimizer = optimizer([weight], **settings)
        rates = rates_of(self.optimizer)
        self.scheduler = scheduler and scheduler(self.optimizer)
        self.settings = ResumedSettings()
        self.settings.made(self.optimizer, self.scheduler, rates)

    def run(self, steps):
        found = []
        for _ in range(steps):
            found.append(self.lr)
            self.optimizer.step()
            if self.scheduler is not None:
                self.scheduler.step()
        return found

    @property
    def lr(self):
        return float(self.optimizer.param_groups[0]["lr"])

    def resume(self, other, with_settings=True):
        """Go on after another start, as Lightning restores it; return what was applied."""
        checkpoint = {}
        if with_settings:
            other.settings.save(checkpoint)
        self.settings.load(checkpoint)
        self.optimizer.load_state_dict(other.optimizer.state_dict())
        if self.scheduler is not None and other.scheduler is not None:
            self.scheduler.load_state_dict(other.scheduler.state_dict())
        lines = self.settings.apply(self.optimizer, self.scheduler)
        assert self.settings.apply(self.optimizer, self.scheduler) == [], "once"
        return lines


def after(steps, *arguments, **settings):
    start = Start(*arguments, **settings)
    start.run(steps)
    return start


@pytest.mark.parametrize("with_settings", [True, False])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_same_settings_change_no_bit(name, with_settings):
    whole = after(3, SCHEDULERS[name], lr=0.3)
    again = Start(SCHEDULERS[name], lr=0.3)
    assert again.resume(after(3, SCHEDULERS[name], lr=0.3), with_settings) == []
    assert again.optimizer.param_groups[0] | {"params": 0} == whole.optimizer.param_groups[0] | {"params": 0}
    assert again.run(9) == whole.run(9)


@pytest.mark.parametrize("with_settings", [True, False])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_new_rate_goes_on_as_if_it_had_been_there_from_the_start(name, with_settings):
    again = Start(SCHEDULERS[name], lr=0.1)
    assert again.resume(after(3, SCHEDULERS[name], lr=0.3), with_settings) == ["lr 0.3 -> 0.1"]
    assert again.run(9) == pytest.approx(after(3, SCHEDULERS[name], lr=0.1).run(9))


def test_a_rate_that_something_else_has_changed_in_training_stays():
    other = after(3, lr=0.3)
    other.optimizer.param_groups[0]["lr"] = 0.01
    again = Start(lr=0.3)
    assert again.resume(other) == []
    assert again.lr == 0.01


@pytest.mark.parametrize("with_settings", [True, False])
def test_other_settings_of_the_optimizer_are_applied(with_settings):
    again = Start(lr=0.3, betas=(0.5, 0.9), weight_decay=0.1)
    lines = again.resume(after(3, lr=0.3), with_settings)
    assert lines == ["betas (0.9, 0.999) -> (0.5, 0.9)", "weight_decay 0.01 -> 0.1"]
    assert again.optimizer.param_groups[0]["betas"] == (0.5, 0.9)
    assert again.optimizer.param_groups[0]["weight_decay"] == 0.1


def test_other_settings_of_a_schedule_are_applied():
    again = Start(partial(StepLR, step_size=5, gamma=0.5), lr=0.3)
    assert again.resume(after(3, partial(StepLR, step_size=2), lr=0.3)) == [
        "StepLR.step_size 2 -> 5",
        "StepLR.gamma 0.1 -> 0.5",
    ]
    assert again.run(4) == pytest.approx([0.03, 0.03, 0.015, 0.015])


def test_a_schedule_may_begin_with_a_resume_and_end_with_one():
    begun = Start(partial(ConstantLR, factor=0.5, total_iters=2), lr=0.3)
    begun.resume(after(3, lr=0.3))
    assert begun.run(4) == pytest.approx([0.15, 0.15, 0.3, 0.3])
    for with_settings in (True, False):
        ended = Start(lr=0.3)
        ended.resume(after(3, SCHEDULERS["step"], lr=0.3), with_settings)
        assert ended.run(2) == [0.3, 0.3]


def test_a_rate_on_the_device_is_changed_in_place():
    again = Start(lr=torch.tensor(0.125))
    rate = after(3, lr=torch.tensor(0.5))
    assert again.resume(rate) == ["lr 0.5 -> 0.125"]
    assert isinstance(again.optimizer.param_groups[0]["lr"], torch.Tensor)
    assert again.lr == 0.125


def test_the_module_applies_a_new_rate_and_a_checkpoint_of_it_goes_on_with_that(tmp_path, caplog):
    def run(lr, epochs):
        policy = small_policy()
        run = make_run(
            tmp_path,
            make_module(policy, optimizer=partial(SGD, lr=lr)),
            make_datamodule(policy, questions_per_iteration=2),
            callbacks=[AtomicCheckpoint(tmp_path / "checkpoints", every_n_epochs=1, keep=-1)],
            max_epochs=epochs,
        )
        with caplog.at_level(logging.INFO):
            run.fit(str(tmp_path / "checkpoints" / "last.ckpt") if epochs > 1 else None)
        return float(run.trainer.callback_metrics["train/lr"])

    assert [run(0.5, 1), run(0.25, 2), run(0.25, 3)] == [0.5, 0.25, 0.25]
    assert caplog.text.count("Set otherwise than in the checkpoint, and applied: lr 0.5 -> 0.25.") == 1


def train_on_ranks(_, folder, lr, max_epochs, ckpt_path=None):
    policy = small_policy()
    run = make_run(
        folder,
        make_module(policy, optimizer=partial(AdamW, lr=lr), scheduler=partial(LambdaLR, lr_lambda=warm_up)),
        make_datamodule(policy),
        callbacks=[AtomicCheckpoint(folder / "checkpoints", every_n_epochs=1, keep=-1)],
        max_epochs=max_epochs,
        devices=2,
        strategy=ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
    )
    run.fit(ckpt_path)
    return run.logger.values("train/lr")


@pytest.mark.slow
@pytest.mark.distributed
def test_a_sharded_checkpoint_takes_a_new_rate_too(tmp_path):
    first = run_ranks(train_on_ranks, tmp_path, 0.4, 2)[0]
    assert first == pytest.approx([0.1, 0.2])
    path = str(tmp_path / "checkpoints" / "iteration0001.ckpt")
    assert run_ranks(train_on_ranks, tmp_path, 0.2, 4, path)[0][-2:] == pytest.approx([0.15, 0.2])
