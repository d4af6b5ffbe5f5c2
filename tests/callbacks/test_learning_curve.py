"""The curve of a run: a row for each iteration and validation, in files that are whole at any moment."""

import csv
from types import SimpleNamespace
from unittest.mock import Mock

import lightning as L
import pytest

from aepo_lightning.callbacks import LearningCurve
from aepo_lightning.callbacks.learning_curve import COLUMNS, draw_rows


def read(folder):
    with (folder / "curve.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


class Clock:
    now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


class SecondCurve(LearningCurve):
    """Stands beside another one."""

    state_key = "second"


def test_iterations_and_validations_have_a_row_each(make_run, tmp_path, monkeypatch):
    drawn = []
    figure = SimpleNamespace(savefig=lambda path: drawn.append((path.name, len(curve.rows))))
    monkeypatch.setattr("aepo_lightning.callbacks.learning_curve.draw_rows", lambda _: figure)
    curve, every = LearningCurve(Clock()), SecondCurve(Clock(), every_metric=True, has_picture=False)
    run = make_run([every, curve])
    run.validate()
    run.fit()
    rows = read(tmp_path)
    # before the training, then at the end of its only epoch, before the epoch's own row
    assert [row["kind"] for row in rows] == ["held out", "held out", "iteration"]
    # its rollouts come from the weights before its two optimiser steps
    assert [row["step"] for row in rows] == ["0", "2", "0"]
    assert [float(row["seconds"]) for row in rows] == [1.0, 2.0, 3.0]
    assert set(rows[0]) == set(COLUMNS)
    for name, column in (("rollout/reward", "reward"), ("rollout/correct_fraction", "correct_fraction")):
        assert [float(rows[2][column])] == pytest.approx(run.logger.values(name), rel=1e-5)
    assert rows[2]["policy_entropy"]
    assert drawn == [("curve.png", 1), ("curve.png", 2), ("curve.png", 3)]
    logged = {name for name in run.logger.names if name.startswith(("rollout/", "experience/", "train/", "time/"))}
    assert logged == {name for name in every.rows[2] if "/" in name}
    of_steps = run.logger.values("train/entropy")
    assert len(of_steps) == 2
    assert every.rows[2]["train/entropy"] == pytest.approx(sum(of_steps) / 2, rel=1e-5)
    assert every.rows[1]["val/pass@1"] == run.logger.values("val/pass@1")[-1]
    assert every.rows[2]["num_generated_tokens"] == run.logger.values("rollout/num_generated_tokens")[0]


def test_a_metric_that_comes_later_has_a_column(tmp_path):
    curve = LearningCurve(Clock(), every_metric=True, has_picture=False)
    metrics = {"val/pass@1": 0.5}
    own = {
        "sanity_checking": False,
        "is_global_zero": True,
        "default_root_dir": str(tmp_path),
        "callback_metrics": metrics,
    }
    trainer, module = Mock(spec=L.Trainer, current_epoch=0, global_step=0, **own), L.LightningModule()
    curve.setup(trainer, module, "fit")
    curve.on_validation_end(trainer, module)
    metrics |= {"val/pass@4": 0.75, "rollout/reward": 0.1}
    curve.on_validation_end(trainer, module)
    assert [(row["val/pass@1"], row["val/pass@4"]) for row in read(tmp_path)] == [("0.5", ""), ("0.5", "0.75")]
    assert "rollout/reward" not in read(tmp_path)[1]


def test_a_resumed_run_goes_on_with_the_rows_and_the_seconds():
    curve, other = LearningCurve(Clock()), LearningCurve(Clock())
    curve.rows = [{"kind": "iteration", "iteration": 0, "step": 2, "seconds": 50.0, "reward": 0.5}]
    other.setup(L.Trainer(logger=False, barebones=True), L.LightningModule(), "fit")  # at second 1
    other.load_state_dict(curve.state_dict())  # at second 2
    assert other.rows == curve.rows
    assert other.rows is not curve.rows
    assert other.seconds() == 51.0


def test_the_picture_has_a_line_for_what_there_is():
    rows = [
        {"kind": "held out", "iteration": 0, "step": 0, "seconds": 1.0, "correct_fraction": 0.25},
        {
            "kind": "iteration",
            "iteration": 0,
            "step": 2,
            "seconds": 2.0,
            "correct_fraction": 0.5,
            "entropy": 0.3,
        },
    ]
    upper, lower = draw_rows(rows).axes
    assert [line.get_xydata().tolist() for line in upper.lines] == [[[2, 0.5]], [[0, 0.25]]]
    assert [line.get_xydata().tolist() for line in lower.lines] == [[[2, 0.3]]]
