"""The weight of the entropy bonus: how it moves, where it acts, and that a resumed run goes on with it."""

from types import SimpleNamespace

import pytest
import torch
from lightning import LightningModule, Trainer
from typing_extensions import override

from aepo_lightning.callbacks import EntropyTarget
from aepo_lightning.errors import ConfigError


class Module(LightningModule):
    """What the callback asks of a module."""

    def __init__(self, entropy_coefficient=0.0):
        super().__init__()
        self.entropy_coefficient = entropy_coefficient
        self.logged = []

    @override
    def log(self, name, value, sync_dist, rank_zero_only):
        assert sync_dist
        assert rank_zero_only
        self.logged.append((name, value))


class Scripted(Trainer):
    """A trainer at an iteration whose rollouts had an entropy."""

    datamodule = current_epoch = lightning_module = None

    def __init__(self, entropy=None, epoch=0):
        self.current_epoch = epoch
        metrics = {} if entropy is None else {"rollout/entropy": entropy}
        self.datamodule = SimpleNamespace(trees=[], metrics=metrics, decode=str)


def steer(target, module, entropies, first_epoch=0):
    """The weight in the updates of each iteration."""
    target.setup(Scripted(), module, "fit")
    found = []
    for epoch, entropy in enumerate(entropies, first_epoch):
        target.on_train_epoch_start(Scripted(entropy, epoch), module)
        found.append(module.entropy_coefficient)
    return found


@pytest.mark.parametrize(
    ("options", "start", "entropies", "expected"),
    [
        # Skywork-OR1: c = 0.1, 0.2, 0.3 while below the target; off at and above it, though c falls by one step only.
        ({"step": 0.1, "maximum": 1.0}, 0.0, [0.1, 0.1, 0.19, 0.2, 0.3, 0.1], [0.1, 0.2, 0.3, 0.0, 0.0, 0.2]),
        ({"step": 0.1, "maximum": 0.15}, 0.0, [0.1, 0.1], [0.1, 0.15]),
        ({"step": 0.1, "minimum": 0.05, "maximum": 1.0}, 0.1, [0.3, 0.3, 0.1], [0.0, 0.0, 0.15]),
        # 0.5 + 1 * (0.2 - 0.1) = 0.6, + (0.2 - 0.5) = 0.3, at the target it stays.
        ({"rule": "proportional", "step": 1.0, "maximum": 1.0}, 0.5, [0.1, 0.5, 0.2], [0.6, 0.3, 0.3]),
        ({"rule": "proportional", "step": 9.0, "maximum": 1.0}, 0.5, [0.1, 3.0], [1.0, 0.0]),
    ],
    ids=["sign", "maximum", "minimum", "proportional", "bounds of proportional"],
)
def test_the_weight_moves_by_the_rule(options, start, entropies, expected):
    module = Module(start)
    assert steer(EntropyTarget(0.2, **options), module, entropies) == pytest.approx(expected, abs=1e-12)
    assert [value for _, value in module.logged] == pytest.approx(expected, abs=1e-12)
    assert {name for name, _ in module.logged} == {"train/entropy_coefficient"}


def test_without_a_target_nothing_moves_and_nothing_is_asked():
    module = Module(0.01)
    assert steer(EntropyTarget(), module, [0.0, 5.0]) == [0.01, 0.01]
    assert module.logged == []
    EntropyTarget().setup(Scripted(), LightningModule(), "fit")


@pytest.mark.parametrize("rule", ["sign", "proportional"])
def test_a_resumed_run_has_the_weights_of_one_that_was_not_cut_off(rule):
    entropies = [0.1, 0.15, 0.3, 0.1, 0.05]
    straight = steer(EntropyTarget(0.2, rule=rule, step=1e-3), Module(), entropies)
    first, second = EntropyTarget(0.2, rule=rule, step=1e-3), EntropyTarget(0.2, rule=rule, step=1e-3)
    before = steer(first, Module(), entropies[:2])
    second.load_state_dict(first.state_dict())
    # From the middle of the second iteration, whose step is done.
    after = steer(second, Module(), entropies[1:], first_epoch=1)
    assert before[:1] + after == straight


@pytest.mark.slow
def test_a_run_trains_with_the_weight_of_its_iteration(make_run, set_metrics):
    script = set_metrics(entropy=[0.1, 0.3])
    run = make_run([script, EntropyTarget(0.2, step=0.5, maximum=1.0)], max_epochs=2).fit()
    assert run.logger.values("train/entropy_coefficient") == [0.5, 0.0]
    assert run.module.policy_loss.entropy_coefficient == 0.0
    plain = make_run([script], max_epochs=2, has_checkpoints=False).fit()
    pairs = zip(run.module.network.parameters(), plain.module.network.parameters(), strict=True)
    assert not all(torch.equal(one, other) for one, other in pairs)


def test_a_module_without_a_bonus_is_refused():
    with pytest.raises(ConfigError, match="but LightningModule has none"):
        EntropyTarget(0.2).setup(Scripted(), LightningModule(), "fit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_nats": 0.0}, "`target_nats` must be None or positive, but got 0.0"),
        ({"step": 0.0}, "`step` must be positive and finite, but got 0.0"),
        ({"minimum": 0.1}, "0 <= minimum <= maximum, but got 0.1 and 0.005"),
    ],
    ids=["target", "step", "bounds"],
)
def test_refuses_settings_without_meaning(options, message):
    with pytest.raises(ConfigError, match=message):
        EntropyTarget(**options)
