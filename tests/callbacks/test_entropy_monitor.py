import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typing_extensions import override

from aepo_lightning.callbacks import EntropyMonitor, RolloutLogger
from aepo_lightning.callbacks.entropy_monitor import draw_curves
from aepo_lightning.errors import ConfigError


def steps(curve):
    return [step for step, _ in curve]


def values(curve):
    return [value for _, value in curve]


def test_keeps_what_reached_the_logger_at_its_step(make_run):
    monitor = EntropyMonitor()
    run = make_run([monitor], max_epochs=2).fit()
    # Two iterations of two optimiser steps; rollouts come before the steps, validation after them.
    expected_steps = {
        "train/entropy": [0, 1, 2, 3],
        "rollout/entropy": [0, 2],
        "rollout/reward": [0, 2],
        "val/pass@1": [2, 4],
    }
    for name, expected in expected_steps.items():
        assert steps(monitor.curves[name]) == expected
        # Lightning keeps logged values in float32.
        assert values(monitor.curves[name]) == pytest.approx(run.logger.values(name), rel=1e-6)
    assert len(monitor.curves["rollout/entropy_after_tool"]) > 0


def test_a_resumed_run_goes_on_with_the_curves(make_run, tmp_path):
    straight = EntropyMonitor()
    make_run([straight], max_epochs=2, has_checkpoints=False).fit()
    make_run([EntropyMonitor()]).fit()
    resumed = EntropyMonitor()
    make_run([resumed], max_epochs=2).fit(tmp_path / "checkpoints" / "last.ckpt")
    assert resumed.curves == straight.curves


def test_state_holds_plain_types_and_comes_back_whole():
    monitor, other = EntropyMonitor(), EntropyMonitor()
    monitor.curves["rollout/reward"] = [(0, 0.25), (2, 0.5)]
    assert monitor.state_dict()["curves"]["rollout/reward"] == [[0, 0.25], [2, 0.5]]
    other.load_state_dict(monitor.state_dict())
    assert other.curves == monitor.curves


@pytest.mark.parametrize(
    ("has_checkpoints", "output_path", "expected"),
    [
        pytest.param(True, None, "checkpoints/entropy.png", id="beside the checkpoints"),
        pytest.param(False, None, "entropy.png", id="in the root folder"),
        pytest.param(True, "figures/curve.png", "figures/curve.png", id="where it was asked for"),
    ],
)
def test_writes_a_picture(make_run, tmp_path, has_checkpoints, output_path, expected):
    monitor = EntropyMonitor(None if output_path is None else str(tmp_path / output_path))
    make_run([monitor], has_checkpoints=has_checkpoints).fit()
    assert imread(tmp_path / expected).shape == (720, 960, 4)  # 6 x 8 inches at 120 dots
    assert len(list(tmp_path.rglob("*.png"))) == 1


def test_draws_every_n_epochs_and_at_the_end(make_run, tmp_path):
    path = tmp_path / "curve.png"

    class Look(L.Callback):
        """Takes the picture away at the end of an epoch and notes whether there was one."""

        def __init__(self):
            self.seen = []

        @override
        def on_train_epoch_end(self, trainer, pl_module):
            self.seen.append(path.exists())
            path.unlink(missing_ok=True)

    look = Look()
    make_run([EntropyMonitor(str(path), every_n_epochs=2), look], max_epochs=3).fit()
    assert look.seen == [False, True, False]
    assert path.exists()


def test_gives_the_figure_to_the_loggers_at_the_end(make_run):
    run = make_run([EntropyMonitor()], max_epochs=2).fit()
    assert [(tag, step) for tag, _, step in run.logger.experiment.pictures] == [("entropy", 4)]


def test_tensorboard_takes_the_figure_and_the_trajectories(make_run, tmp_path):
    logger = TensorBoardLogger(tmp_path / "board")
    make_run([EntropyMonitor(), RolloutLogger()], logger=logger).fit()
    events = EventAccumulator(logger.log_dir).Reload()
    assert events.Tags()["images"] == ["entropy"]
    assert "rollout/trajectories/text_summary" in events.Tags()["tensors"]


def test_a_validation_outside_of_training_is_no_part_of_the_curve(make_run):
    monitor = EntropyMonitor()
    run = make_run([monitor]).fit()
    before = monitor.state_dict()
    monitor.on_validation_end(run.trainer, run.module)
    run.trainer.state.fn = TrainerFn.VALIDATING
    taken = len(monitor.curves["val/pass@1"])
    monitor.on_validation_end(run.trainer, run.module)
    assert taken == len(before["curves"]["val/pass@1"]) + 1
    assert len(monitor.curves["val/pass@1"]) == taken


def test_figure_has_one_line_for_each_curve_with_values():
    monitor = EntropyMonitor()
    monitor.curves["train/entropy"] = [(0, 1.5), (1, 1.25)]
    monitor.curves["rollout/reward"] = [(0, 0.5)]
    upper, lower = draw_curves(monitor.curves).axes
    assert [line.get_xydata().tolist() for line in upper.lines] == [[[0, 1.5], [1, 1.25]]]
    assert [line.get_xydata().tolist() for line in lower.lines] == [[[0, 0.5]]]
    assert "nats" in upper.get_ylabel()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"output_path": "curve.pdf"}, "`output_path` must end in .png", id="no png"),
        pytest.param({"every_n_epochs": 0}, "`every_n_epochs` must be at least 1", id="never"),
    ],
)
def test_refuses_settings_without_meaning(settings, message):
    with pytest.raises(ConfigError, match=message):
        EntropyMonitor(**settings)


def test_state_survives_a_weights_only_checkpoint(make_run, tmp_path):
    make_run([EntropyMonitor()]).fit()
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert [key for key in saved["callbacks"] if "EntropyMonitor" in key]
