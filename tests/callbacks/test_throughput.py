import lightning as L
import pytest
from typing_extensions import override

from aepo_lightning.callbacks import Throughput

REL = 1e-5  # Lightning keeps logged values in float32


NAP = 1000.0
"""Seconds of the clock below: far more than what a tiny run takes of the machine's time."""


class Clock:
    """A clock that moves when somebody sleeps by it, and a little at each look."""

    now = 0.0

    def __call__(self):
        self.now += 0.001
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("aepo_lightning.callbacks.throughput.perf_counter", clock)
    return clock


class Sleep(L.Callback):
    """Sleeps in one hook."""

    def __init__(self, hook, clock):
        setattr(self, hook, lambda *_args, **_kwargs: clock.sleep(NAP))


def count(trees):
    return sum(tree.num_generated_tokens for tree in trees), sum(len(tree.leaves) for tree in trees)


def test_logs_what_an_iteration_took_and_made(make_run):
    run = make_run([Throughput()]).fit()
    [iteration_s] = run.logger.values("time/iteration_s")
    phases = [run.logger.values(f"time/{name}_s")[0] for name in ("rollout", "experience", "update")]
    assert min(phases) > 0
    assert sum(phases) <= iteration_s * (1 + REL)
    assert sum(phases) + run.logger.values("time/other_s")[0] == pytest.approx(iteration_s, rel=REL)
    [num_run], [rate] = (
        run.logger.values(name) for name in ("experience/num_tokens_run", "throughput/update_tokens_per_s")
    )
    assert rate * phases[-1] == pytest.approx(num_run, rel=REL)
    num_tokens, num_trajectories = count(run.datamodule.trees)
    assert run.logger.values("rollout/num_generated_tokens") == [num_tokens]
    num_calls = sum(tree.num_tool_calls for tree in run.datamodule.trees)
    assert run.logger.values("rollout/num_answered_calls") == [num_calls]
    assert num_calls > 0
    assert run.logger.values("throughput/tokens_per_s")[0] * iteration_s == pytest.approx(num_tokens, rel=REL)
    assert run.logger.values("throughput/trajectories_per_s")[0] * iteration_s == pytest.approx(
        num_trajectories, rel=REL
    )


def test_totals_add_up_over_iterations(make_run):
    throughput = Throughput()
    run = make_run([throughput], max_epochs=2).fit()
    assert throughput.totals["iterations"] == 2
    assert throughput.totals["trajectories"] == 2 * 2 * 4  # iterations, questions, budget
    for name in ("iteration_s", "rollout_s", "experience_s", "update_s"):
        assert throughput.totals[name] == pytest.approx(sum(run.logger.values(f"time/{name}")), rel=REL)


@pytest.mark.parametrize(
    ("hook", "name", "is_counted"),
    [
        pytest.param("on_validation_batch_start", "iteration_s", False, id="validation is no part of the iteration"),
        pytest.param("on_train_epoch_end", "iteration_s", True, id="other callbacks are"),
        pytest.param("on_before_optimizer_step", "update_s", True, id="optimiser steps are the update"),
        pytest.param("on_train_epoch_end", "update_s", False, id="the end of the epoch is not the update"),
    ],
)
def test_time_goes_where_it_belongs(make_run, clock, hook, name, is_counted):
    throughput = Throughput()
    make_run([Sleep(hook, clock), throughput]).fit()
    assert (throughput.totals[name] >= NAP) == is_counted


def test_a_resumed_run_goes_on_with_the_totals(make_run, tmp_path):
    make_run([Throughput()]).fit()
    throughput = Throughput()
    run = make_run([throughput], max_epochs=2)
    run.fit(tmp_path / "checkpoints" / "last.ckpt")
    assert throughput.totals["iterations"] == 2
    assert throughput.totals["trajectories"] == 16
    [iteration_s] = run.logger.values("time/iteration_s")
    assert iteration_s < throughput.totals["iteration_s"]


def test_an_iteration_knows_nothing_of_the_one_before(make_run, clock):
    class SlowStart(L.Callback):
        @override
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            clock.sleep(NAP if trainer.global_step == 0 else 0)

    run = make_run([SlowStart(), Throughput()], max_epochs=2).fit()
    for name in ("time/update_s", "time/iteration_s"):
        first, second = run.logger.values(name)
        assert second < NAP <= first
