"""What the guard tells and does, on a trainer that is told what its rollouts were like, and in real runs."""

import logging
from types import SimpleNamespace

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import MLFlowLogger
from typing_extensions import override

from aepo_lightning.branching import EntropyBalanced, NeverBranch
from aepo_lightning.callbacks import AtomicCheckpoint, BranchPenalty, EntropyGuard, EntropyTarget, GuardSettings, Limits
from aepo_lightning.callbacks.guard_acts import lower_rates, read_schedule, wanted_entropy
from aepo_lightning.errors import ConfigError
from tests.support.recording import Experiment

CALM, HIGH = 1.0, 5.0


class Module(LightningModule):
    """What the guard asks of a module."""

    def __init__(self):
        super().__init__()
        self.entropy_coefficient = 0.0
        self.rows = []

    @override
    def log(self, name, value, sync_dist, rank_zero_only):
        assert sync_dist
        assert rank_zero_only
        self.rows.append((name, value))

    def values(self, name):
        return [value for each, value in self.rows if each == name]


class Scripted(Trainer):
    """A trainer at an iteration whose rollouts had an entropy, with one optimiser step."""

    datamodule = current_epoch = callback_metrics = callbacks = optimizers = lr_scheduler_configs = None
    loggers = is_global_zero = should_stop = global_step = lightning_module = checkpoint_callbacks = None

    def __init__(self, policy=None, scheduler=None, callbacks=()):
        parameter = torch.nn.Parameter(torch.zeros(1))
        self.optimizers = [torch.optim.SGD([parameter], lr=0.1)]
        chosen = None if scheduler is None else scheduler(self.optimizers[0])
        self.lr_scheduler_configs = [] if chosen is None else [SimpleNamespace(scheduler=chosen)]
        rollouts = {"trees": [], "metrics": {}, "decode": str}
        self.datamodule = SimpleNamespace(**rollouts, branch_policy=policy or EntropyBalanced(penalty_per_step=0.1))
        self.callbacks, self.checkpoint_callbacks = list(callbacks), []
        self.callback_metrics, self.is_global_zero = {}, True
        self.current_epoch = self.global_step = 0
        self.loggers = [SimpleNamespace(experiment=Experiment())]

    def iterate(self, guard, module, entropy, steps=(), staleness=0.0):
        found = {"rollout/entropy": entropy, "rollout/reward": 0.2, "rollout/staleness_steps": staleness}
        self.datamodule.metrics = found
        guard.on_train_epoch_start(self, module)
        for step in steps:
            self.callback_metrics = step
            guard.on_train_batch_end(self, module, None, None, 0)
        guard.on_train_epoch_end(self, module)
        self.current_epoch += 1


def watch(guard, entropies, trainer=None, module=None):
    trainer, module = trainer or Scripted(), module or Module()
    guard.setup(trainer, module, "fit")
    for entropy in entropies:
        trainer.iterate(guard, module, entropy)
    return trainer, module


def guard_with(*acts, **settings):
    return EntropyGuard(Limits(patience=1), GuardSettings(acts=acts, **settings))


# Telling ------------------------------------------------------------------------------------------------------------


def test_an_alarm_is_told_when_it_begins_and_logged_while_it_lasts(caplog):
    with caplog.at_level(logging.WARNING):
        trainer, module = watch(EntropyGuard(), [CALM, CALM, CALM, 1.6, 1.6, 1.6, CALM])
    assert module.values("guard/eruption") == [0, 0, 0, 0, 1, 1, 0]
    assert module.values("guard/entropy_low") == pytest.approx([0.3 / 1.4] * 2 + [0.3] * 5)
    assert module.values("guard/entropy_high") == pytest.approx([1.5 * 1.4] * 2 + [1.5] * 5)
    assert module.values("guard/act") == module.values("guard/num_acts") == [0] * 7
    (line,) = [record.getMessage() for record in caplog.records]
    assert "Iteration 4, eruption: the entropy is 1.6 nats, above 1.5 for 2 iterations in a row" in line
    assert "the run goes on as it is" in line
    assert [tag for tag, *_ in trainer.loggers[0].experiment.texts] == ["guard/events"]
    assert not trainer.should_stop


@pytest.mark.parametrize(("staleness", "good"), [(0.0, 2), (2.0, 1)])
def test_calm_rollouts_speak_for_the_checkpoint_whose_weights_made_them(staleness, good, tmp_path):
    saver = AtomicCheckpoint(tmp_path)
    for number in range(4):
        (tmp_path / f"iteration{number:04d}.ckpt").write_text("x")
    guard, trainer = EntropyGuard(settings=GuardSettings(acts=["roll_back"])), Scripted()
    trainer.checkpoint_callbacks = [saver]
    trainer.datamodule.weights_were_replaced = list
    guard.setup(trainer, Module(), "fit")
    for _ in range(4):
        trainer.iterate(guard, Module(), CALM, staleness=staleness)
    assert saver.kept_iteration == good


class FileStore(MLFlowLogger):
    """Keeps what would become files of a run of MLflow."""

    experiment = run_id = None

    def __init__(self):
        self.files = {}
        self.run_id = "1"
        self.experiment = SimpleNamespace(log_text=lambda _, text, path: self.files.update({path: text}))


def test_every_logger_that_takes_texts_gets_alarms_and_acts_of_an_iteration_at_once():
    guard = EntropyGuard(Limits(num_baseline=1), GuardSettings(acts=["lower_rate"]))
    trainer, mlflow, by_method = Scripted(), FileStore(), []
    numbers_only = SimpleNamespace(experiment=SimpleNamespace())
    tables = SimpleNamespace(log_text=lambda name, columns, data, step: by_method.append((name, columns, data, step)))
    trainer.loggers += [mlflow, numbers_only, tables]
    watch(guard, [CALM, HIGH], trainer)
    [(name, text, step)] = trainer.loggers[0].experiment.texts
    assert (name, step) == ("guard/events", 0)
    alarm, act = text.split("\n\n")
    assert alarm.startswith("eruption: ")
    assert act.startswith("lower_rate (act 1 of 1): ")
    assert mlflow.files == {"guard/events/00000000.md": text}
    assert by_method == [("guard/events", ["text"], [[text]], 0)]
    trainer.is_global_zero = False
    watch(EntropyGuard(Limits(num_baseline=1)), [CALM, HIGH], trainer)
    assert len(by_method) == 1


def test_figures_of_the_update_are_those_of_all_its_steps():
    guard, trainer, module = EntropyGuard(Limits(patience=1, max_kl=0.5, max_ratio_tail=3.0)), Scripted(), Module()
    guard.setup(trainer, module, "fit")
    step = {"train/clip_fraction_high": torch.tensor(0.1), "train/clip_fraction_low": 0.1}
    trainer.iterate(guard, module, CALM, [{**step, "train/approx_kl": 0.1}, {**step, "train/approx_kl": 0.8}])
    trainer.iterate(guard, module, CALM, [{**step, "train/approx_kl": 0.4}, {**step, "train/approx_kl": 0.7}])
    trainer.iterate(guard, module, CALM, [{"train/importance_ratio_p99": each} for each in (1.0, 4.0, 1.0)])
    assert module.values("guard/update") == [0, 1, 1]


# Acting -------------------------------------------------------------------------------------------------------------


def test_acts_are_taken_in_order_each_once_with_a_pause_between(caplog):
    guard = guard_with("lower_rate", ["raise_penalty", "lower_rate"], cooldown=2)
    with caplog.at_level(logging.WARNING):
        trainer, module = watch(guard, [CALM] * 3 + [HIGH] * 12)
    # An act, two iterations of pause, the next; then there is none left.
    assert module.values("guard/act") == [0] * 3 + [1, 0, 0, 1] + [0] * 8
    assert module.values("guard/num_acts")[-1] == 2
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 / 4)
    assert trainer.datamodule.branch_policy.penalty_per_step == pytest.approx(0.2)
    lines = [record.getMessage() for record in caplog.records]
    assert any("lower_rate (act 1 of 2): the learning rate goes from 0.1 to 0.05." in line for line in lines)
    assert any("raise_penalty (act 2 of 2): the branch penalty goes from 0.1 to 0.2." in line for line in lines)


def test_kinds_that_are_not_to_be_acted_upon_are_only_told():
    _, module = watch(guard_with("stop", act_on=["collapse"]), [CALM] * 3 + [HIGH] * 3)
    assert module.values("guard/act") == [0] * 6
    assert module.values("guard/eruption")[-1] == 1


def test_the_run_is_stopped():
    trainer, module = watch(guard_with("stop"), [CALM] * 3 + [HIGH])
    assert trainer.should_stop
    assert module.values("guard/act")[-1] == 5


@pytest.mark.parametrize("cut", [2, 4, 5, 7])
def test_a_resumed_run_acts_as_one_that_was_not_cut_off(cut):
    entropies = [CALM] * 3 + [HIGH, HIGH, 3.0, HIGH, HIGH, 2.0, 1.0]

    def make():
        return guard_with("steer_entropy", "raise_penalty", cooldown=1, coefficient_range=(-1.0, 1.0))

    whole, straight = watch(make(), entropies)
    first = make()
    _, before = watch(first, entropies[:cut])
    second, module, trainer = make(), Module(), Scripted()
    trainer.current_epoch = cut
    second.setup(trainer, module, "fit")
    second.load_state_dict(first.state_dict())
    for entropy in entropies[cut:]:
        trainer.iterate(second, module, entropy)
    assert before.rows + module.rows == straight.rows
    assert module.entropy_coefficient == straight.entropy_coefficient != 0.0
    assert trainer.datamodule.branch_policy == whole.datamodule.branch_policy
    assert second.state_dict() == {**second.state_dict(), "num_acts": 2}


def test_states_that_say_nothing_of_it_leave_the_guard_as_it_begins():
    guard = EntropyGuard()
    guard.load_state_dict({"num_low": 3, "has_warned": True})
    assert guard.state_dict() == EntropyGuard().state_dict()


def test_the_entropy_is_steered_towards_the_baseline_or_a_schedule():
    settings = {"cooldown": 9, "coefficient_step": 0.1, "coefficient_range": (-1.0, 0.5)}
    _, module = watch(guard_with("steer_entropy", **settings), [CALM] * 3 + [HIGH, 3.0, 2.0])
    assert module.entropy_coefficient == pytest.approx(0.1 * (1 - 3) + 0.1 * (1 - 2))
    # The target at iterations 4 and 5 of a line from 0 at 9 nats to 10 at 4: 7 and 6.5.
    settings["target_nats"] = [[0, 9.0], [10, 4.0]]
    _, module = watch(guard_with("steer_entropy", **settings), [CALM] * 3 + [HIGH, 3.0, 5.9])
    assert module.entropy_coefficient == pytest.approx(0.1 * 4 + 0.1 * 0.6)


@pytest.mark.parametrize(("at", "nats"), [(0, 3.0), (5, 3.0), (10, 2.0), (15, 1.0), (99, 1.0)])
def test_a_schedule_has_lines_between_its_points(at, nats):
    assert wanted_entropy(read_schedule([[5, 3.0], [15, 1.0]]), at) == nats
    assert wanted_entropy(read_schedule(0.7), at) == 0.7


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda it: torch.optim.lr_scheduler.LambdaLR(it, lambda step: 1 / (1 + step)),
        lambda it: torch.optim.lr_scheduler.StepLR(it, 1, 0.5),
        lambda it: torch.optim.lr_scheduler.CosineAnnealingLR(it, 10),
        lambda it: torch.optim.lr_scheduler.SequentialLR(
            it,
            [torch.optim.lr_scheduler.ConstantLR(it, 1.0), torch.optim.lr_scheduler.LinearLR(it, 1.0, 0.1, 5)],
            [2],
        ),
    ],
    ids=["closed form", "steps", "cosine", "chained"],
)
def test_a_lowered_rate_stays_lowered_along_its_schedule(scheduler):
    lowered, plain = Scripted(scheduler=scheduler), Scripted(scheduler=scheduler)
    lower_rates(lowered, 0.5)
    for _ in range(5):
        for trainer in (lowered, plain):
            trainer.optimizers[0].step()
            trainer.lr_scheduler_configs[0].scheduler.step()
        rates = [trainer.optimizers[0].param_groups[0]["lr"] for trainer in (lowered, plain)]
        assert rates[0] == pytest.approx(rates[1] / 2)


# Refusals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"acts": ["jump"]}, "`acts` must hold lower_rate, .* only, but got jump"),
        ({"acts": [[]]}, "An entry of `acts` must name an act"),
        ({"act_on": ["noise"]}, "`act_on` must hold collapse, .* but got noise"),
        ({"cooldown": -1}, "`cooldown` must be at least 0"),
        ({"rate_factor": 1.0}, r"`rate_factor` must be in \(0, 1\)"),
        ({"penalty_step": 0.0}, "`penalty_step` must be positive"),
        ({"coefficient_range": (1.0, 0.0)}, "`coefficient_range` must be two rising numbers"),
        ({"target_nats": [[5, 0.1], [5, 0.2]]}, "pairs of a rising iteration"),
        ({"target_nats": -1.0}, "`target_nats` must be None, positive"),
    ],
)
def test_refuses_settings_without_meaning(settings, message):
    with pytest.raises(ConfigError, match=message):
        GuardSettings(**settings)


@pytest.mark.parametrize(
    ("act", "trainer", "module", "message"),
    [
        ("raise_penalty", {"policy": NeverBranch()}, Module, "must have a penalty .* but got NeverBranch"),
        ("raise_penalty", {"callbacks": [BranchPenalty(0.5)]}, Module, "not stand beside a BranchPenalty"),
        ("steer_entropy", {}, LightningModule, "but LightningModule has none"),
        ("steer_entropy", {"callbacks": [EntropyTarget(0.2)]}, Module, "not stand beside an EntropyTarget"),
        ("roll_back", {}, Module, "beside an AtomicCheckpoint only"),
    ],
)
def test_refuses_acts_that_have_nothing_to_act_upon(act, trainer, module, message):
    with pytest.raises(ConfigError, match=message):
        guard_with(act).setup(Scripted(**trainer), module(), "fit")


def test_refuses_another_kind_of_data(make_run):
    run = make_run()
    with pytest.raises(ConfigError, match="must have `metrics` for this callback"):
        EntropyGuard().setup(run.trainer, run.module, "fit")
