"""The cold start on conversations as a stage of a run: its plan, its schedule, what it is made of."""

import io
import math

import pytest
import torch
from omegaconf import OmegaConf
from rich.console import Console

from aepo_lightning.app.build import build
from aepo_lightning.app.made_of import cold_start_made_of, evaluation_made_of, is_sft, misfits
from aepo_lightning.app.plan import cold_start_input, make_plan, print_plan, render_cold_start
from aepo_lightning.app.sft import build_sft_data, scheduler_of
from aepo_lightning.errors import ConfigError
from tests.support.composed import composed
from tests.support.conversations import row_of, write

EXPERIMENT = "+experiment=coldstart_qwen3_14b"


def test_the_experiment_has_the_papers_settings_and_is_planned(capsys):
    cfg = composed(EXPERIMENT)
    own = cfg.coldstart
    assert is_sft(cfg)
    assert (own.num_epochs, own.batch_size, own.optimizer.lr, own.optimizer.weight_decay) == (3, 128, 7e-6, 0.1)
    assert (own.schedule, own.warmup_ratio, own.limits.max_length, own.scheduler) == ("cosine", 0.1, 4096, None)
    plan = make_plan(cold_start_input(cfg))
    # 54,800 conversations in batches of 128 are 429 steps a pass.
    assert (plan.batch.num_steps, plan.batch.trajectories_per_step, plan.engine) == (3 * 429, 128, None)
    assert plan.settings.pass_tokens == 16384
    assert plan.fits
    console = Console(file=io.StringIO(), width=120)
    console.print(render_cold_start(plan))
    assert "optimiser steps, at most" in console.file.getvalue()
    print_plan(cfg)
    shown = capsys.readouterr().out
    assert "conversations of a pass" in shown
    assert "trajectories per question" not in shown, "the run ends with this stage"


def test_the_rate_rises_over_its_share_of_the_steps_and_falls_to_zero():
    """Against the cosine written out."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = scheduler_of("cosine", 0.25, 10)(optimizer)
    found = []
    for _ in range(10):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    # 0.25 of 10 steps, rounded up, are 3.
    falling = [1 + math.cos(math.pi * done / 7) for done in range(7)]
    assert found == pytest.approx([0.0, 2 / 3, 4 / 3, *falling])
    assert scheduler.get_last_lr() == pytest.approx([0.0])


@pytest.mark.parametrize(("arguments", "problem"), [(("wavy", 0.1, 5), "`schedule`"), (("cosine", 1.5, 5), "`warmup_")])
def test_a_schedule_without_meaning_is_refused(arguments, problem):
    with pytest.raises(ConfigError, match=problem):
        scheduler_of(*arguments)


def test_changed_conversations_make_the_stage_anew_and_ending_with_it_or_a_plan_does_not(tmp_path):
    cfg = composed("coldstart=sft", "coldstart.data.path=a.jsonl", f"coldstart.data.data_dir={tmp_path}")
    write(tmp_path / "a.jsonl", [row_of(("user", "q"), ("assistant", "a"))])
    first, evaluation = cold_start_made_of(cfg), evaluation_made_of(cfg)
    cfg.coldstart.only, cfg.coldstart.expected_rows = True, 1200
    assert misfits(first, cold_start_made_of(cfg)) == []
    changes = {
        "coldstart.num_epochs": 1,
        "module.adapter": {"rank": 2},
        "module.mixed_precision": True,
        "trainer.precision": "bf16-mixed",
    }
    for key, value in changes.items():
        other = cfg.copy()
        OmegaConf.update(other, key, value)
        assert misfits(first, cold_start_made_of(other)) == ["configuration"], key
        assert misfits(evaluation, evaluation_made_of(other)) == ["configuration"], key
    write(tmp_path / "a.jsonl", [row_of(("user", "q"), ("assistant", "b"))])
    assert misfits(first, cold_start_made_of(cfg)) == ["files"]
    assert misfits(evaluation, evaluation_made_of(cfg)) == ["files"]


def test_rows_are_written_as_the_run_writes_them(tmp_path):
    rows = [row_of(("user", "find"), ("assistant", "<think> x </think> <answer> y </answer>"))] * 3
    path = write(tmp_path / "a.jsonl", rows)
    words = (
        "coldstart=sft",
        f"coldstart.data.path={path}",
        "coldstart.limits.val_fraction=0",
        "coldstart.batch_size=2",
    )
    cfg = composed("model=tiny_qwen3_bytes", "data=arithmetic", *words)
    data = build_sft_data(cfg, build(cfg.model))
    assert data.num_steps == 5  # three rows, three times, two at once


def test_without_conversations_the_stage_is_refused():
    cfg = composed("coldstart=sft")
    with pytest.raises(ConfigError, match=r"coldstart\.data\.path=my\.jsonl"):
        build_sft_data(cfg, build(cfg.model))
