"""The curve of a run: a row for each iteration and validation, in files that are whole at any moment."""

import csv
from types import SimpleNamespace

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


def test_iterations_and_validations_have_a_row_each(make_run, tmp_path, monkeypatch):
    drawn = []
    figure = SimpleNamespace(savefig=lambda path: drawn.append((path.name, len(curve.rows))))
    monkeypatch.setattr("aepo_lightning.callbacks.learning_curve.draw_rows", lambda _: figure)
    curve = LearningCurve(Clock())
    run = make_run([curve])
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
