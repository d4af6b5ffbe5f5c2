"""The layout is data: its names are compared with the documented ones, and with what a run of the command logs."""

import re
from collections import Counter

import pytest
from lightning import LightningModule
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from aepo_lightning.callbacks import Dashboard
from aepo_lightning.callbacks.layout import FINAL_METRICS, LAYOUT, custom_scalars
from aepo_lightning.errors import ConfigError
from tests.callbacks.test_metrics_table import ONLY_ON_GPUS, read_table
from tests.support.killed_runs import train_to_the_end
from tests.support.training import make_trainer

CHARTS = [(group, chart) for group, charts in LAYOUT.items() for chart in charts]


def by_title(chart):
    return getattr(chart, "title", None)


def test_groups_stand_in_order_and_titles_once():
    assert [group.split()[1] for group in LAYOUT] == ["stability", "learning", "balance", "update", "tools", "speed"]
    assert list(LAYOUT) == sorted(LAYOUT)
    assert max(Counter(chart.title for _, chart in CHARTS).values()) == 1


@pytest.mark.parametrize("chart", [chart for _, chart in CHARTS], ids=by_title)
def test_every_name_of_a_chart_is_documented(chart):
    documented = read_table()[0]
    assert {*chart.tags, *chart.optional} <= documented
    assert all(any(re.fullmatch(pattern, name) for name in documented) for pattern in chart.patterns)
    assert bool({*chart.tags} & ONLY_ON_GPUS) == (chart.needs == "gpu")


@pytest.mark.parametrize("chart", [chart for _, chart in CHARTS], ids=by_title)
def test_tensorboard_matches_the_names_of_a_chart_and_no_others(chart):
    kind, tags = next(charts[chart.title] for charts in custom_scalars().values() if chart.title in charts)
    assert kind == ("Margin" if chart.is_band else "Multiline")
    if chart.is_band:
        line, low, high = tags
        assert low.startswith(line)
        assert high.startswith(line)
        return
    # As its plugin does: each is looked for from the beginning of a name.
    found = {name for name in read_table()[0] for tag in tags if re.compile(tag).match(name)}
    given = {name for name in read_table()[0] for pattern in chart.patterns if re.fullmatch(pattern, name)}
    assert found == {*chart.tags, *chart.optional} | given


def test_runs_are_compared_by_what_is_documented():
    assert set(FINAL_METRICS) <= read_table()[0]


def events_of(folder):
    return EventAccumulator(str(next(folder.rglob("events.*")).parent)).Reload()


def layout_of(events):
    (event,) = events.Tensors("custom_scalars__config__")
    return Layout.FromString(event.tensor_proto.string_val[0])


def session_of(events):
    """Hyper-parameters and names of metrics in the HParams tab."""
    found = {
        name: HParamsPluginData.FromString(events.SummaryMetadata(f"_hparams_/{name}").plugin_data.content)
        for name in ("experiment", "session_start_info")
    }
    given = found["session_start_info"].session_start_info.hparams
    metrics = [info.name.tag for info in found["experiment"].experiment.metric_infos]
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in given.items()}, metrics


def parts_of_the_hparams_tab(folder):
    return events_of(folder).PluginTagToContent("hparams")


def test_layout_and_hyper_parameters_are_written_before_anything_is_logged(tmp_path):
    logger = TensorBoardLogger(tmp_path, default_hp_metric=False)
    Dashboard({"lr": 0.5, "algorithm": "aepo", "beta": None}).on_fit_start(
        make_trainer(tmp_path, logger=logger), LightningModule()
    )
    logger.experiment.flush()
    events = events_of(tmp_path)
    found = {category.title: [chart.title for chart in category.chart] for category in layout_of(events).category}
    assert found == {group: [chart.title for chart in charts] for group, charts in LAYOUT.items()}
    assert session_of(events) == ({"lr": 0.5, "algorithm": "aepo"}, list(FINAL_METRICS))
    assert events.Tags()["scalars"] == []


def test_the_session_of_the_hparams_tab_ends_where_training_ends_and_not_where_it_is_cut_off(tmp_path, monkeypatch):
    logger = TensorBoardLogger(tmp_path, default_hp_metric=False)
    trainer = make_trainer(tmp_path, logger=logger, callbacks=[Dashboard({"lr": 0.5})])
    module = BoringModel()
    monkeypatch.setattr(module, "on_train_batch_end", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.fit(module)
    logger.experiment.flush()
    assert "_hparams_/session_end_info" not in parts_of_the_hparams_tab(tmp_path)
    trainer.fit(BoringModel())
    logger.experiment.flush()
    assert "_hparams_/session_end_info" in parts_of_the_hparams_tab(tmp_path)


def test_other_loggers_get_the_hyper_parameters_in_their_own_way(tmp_path, make_run):
    run = make_run()
    given = []
    run.logger.log_hyperparams = given.append
    Dashboard({"lr": 0.5, "beta": None}).setup(run.trainer, run.module, "validate")
    assert given == [{"lr": 0.5}]


def test_a_setting_of_several_values_is_refused():
    with pytest.raises(ConfigError, match=r"`hyper_parameters.betas` must be one value, but got \[0.9, 0.999\]"):
        Dashboard({"betas": [0.9, 0.999]})


@pytest.mark.slow
def test_the_quickstart_fills_every_group(tmp_path):
    """Every chart has a line, and every name that a chart demands is logged, but for those of GPUs."""
    train_to_the_end(tmp_path / "run", "trainer.max_epochs=3", "coldstart.num_steps=60", "algorithm.budget=8")
    events = events_of(tmp_path / "run" / "tensorboard")
    logged = set(events.Tags()["scalars"])
    assert logged <= read_table()[0]
    for _, chart in CHARTS:
        if chart.needs:
            continue
        assert set(chart.tags) <= logged, chart.title
        assert chart.tags or any(re.fullmatch(p, name) for p in chart.patterns for name in logged), chart.title
    assert len(layout_of(events).category) == len(LAYOUT)
    given, metrics = session_of(events)
    assert given["algorithm"] == "aepo"
    assert given["budget"] == 8
    assert given["penalty_per_step"] == 0.05
    assert set(metrics) <= logged
