import io
import sys

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import TQDMProgressBar

from aepo_lightning.callbacks import RunLog, choose_progress
from aepo_lightning.errors import ConfigError


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Supervised(L.LightningModule):
    """Training without rollouts."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def train_dataloader(self):
        return range(5)

    def training_step(self, batch, batch_idx):
        del batch, batch_idx
        loss = self.weight * 1.0
        self.log("coldstart/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.125)


def make_trainer(folder, log, **options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    return L.Trainer(
        accelerator="cpu", devices=1, default_root_dir=folder, callbacks=[log], max_steps=5, **quiet, **options
    )


def fit(folder, log):
    make_trainer(folder, log).fit(Supervised())


class HeldOut(Supervised):
    """Training without rollouts that holds something out, or finds nothing to say of it."""

    def __init__(self, val_loss):
        super().__init__()
        self.val_loss = val_loss

    def val_dataloader(self):
        return range(1)

    def validation_step(self, batch, batch_idx):
        del batch, batch_idx
        if self.val_loss is not None:
            self.log("coldstart/val_loss", self.val_loss, batch_size=1)


@pytest.mark.parametrize(("val_loss", "shown"), [(0.25, ["validation: coldstart/val_loss 0.2500"]), (None, [])])
def test_what_is_held_out_of_demonstrations_is_a_line_where_there_is_something(tmp_path, capsys, val_loss, shown):
    make_trainer(tmp_path, RunLog()).fit(HeldOut(val_loss))
    lines = [line.rsplit(",", 1)[0] for line in capsys.readouterr().out.splitlines()]
    assert [line for line in lines if line.startswith("validation")] == shown


def test_iterations_and_validations_become_rows_of_one_table(make_run, capsys):
    run = make_run([RunLog()], max_epochs=2, enable_progress_bar=True).fit()
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split() == ["stage", "iteration", "reward", "pass@1", "entropy", "loss", "seconds"]
    cells = [row.removeprefix("held out").removeprefix("train").split() for row in rows]
    assert [row.split("  ")[0] for row in rows] == ["held out", "train", "held out", "train"]
    assert [row[0] for row in cells] == ["0", "0", "1", "1"]

    def shown(*names):
        return [f"{float(run.trainer.callback_metrics[name]):.4f}" for name in names]

    assert cells[3][1:5] == shown("rollout/reward", "rollout/correct_fraction", "train/entropy", "train/loss")
    assert cells[2][1:5] == [*shown("val/reward", "val/pass@1", "val/entropy"), "-"]


def test_training_without_rollouts_shows_its_first_and_its_last_step(tmp_path, capsys, recwarn):
    fit(tmp_path, RunLog())
    # The rate is 1/8 and the gradient 1: the loss of step n is 1 - (n - 1) / 8.
    assert [line.rsplit(",", 1)[0] for line in capsys.readouterr().out.splitlines()] == [
        "step 1 of 5: coldstart/loss 1",
        "step 5 of 5: coldstart/loss 0.5",
    ]


def test_old_lines_are_followed_by_new_ones_within_an_iteration(tmp_path, capsys, recwarn):
    fit(tmp_path, RunLog(every_s=0.0))
    steps = [line.split(" of")[0] for line in capsys.readouterr().out.splitlines()]
    assert steps == ["step 1", "step 2", "step 3", "step 4", "step 5", "step 5"]


def test_a_rank_that_is_disabled_writes_nothing(capsys):
    log = RunLog()
    log.disable()
    log.print("something")
    assert capsys.readouterr().out == ""
    log.enable()
    log.print("some", "thing")
    assert capsys.readouterr().out == "some thing\n"


def test_a_terminal_gets_bars_and_a_file_lines(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert isinstance(choose_progress(), TQDMProgressBar)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert isinstance(choose_progress(), RunLog)


def test_lightning_adds_no_bar_of_its_own(tmp_path):
    log = RunLog()
    assert make_trainer(tmp_path, log).progress_bar_callback is log


@pytest.mark.parametrize("make", [RunLog, choose_progress])
def test_a_negative_interval_is_refused(make):
    with pytest.raises(ConfigError, match="`every_s` must be at least 0"):
        make(every_s=-1.0)
