from types import SimpleNamespace
from unittest.mock import Mock

import lightning as L
import pytest

from aepo_lightning.callbacks import SampleBudget
from aepo_lightning.errors import ConfigError

MODULE = L.LightningModule()


def make_trainer(datamodule):
    return Mock(spec=L.Trainer, should_stop=False, lightning_module=MODULE, datamodule=datamodule)


def iterate(budget, *costs):
    """After how many iterations training stops; None if it does not."""
    trainer = make_trainer(SimpleNamespace(trees=[], metrics={}, decode=str))
    budget.setup(trainer, MODULE, "fit")
    for number, (num_tokens, num_calls) in enumerate(costs, 1):
        trainer.datamodule.metrics = {
            "rollout/num_generated_tokens": num_tokens,
            "rollout/num_answered_calls": num_calls,
        }
        budget.on_train_epoch_end(trainer, MODULE)
        if trainer.should_stop:
            return number
    return None


@pytest.mark.parametrize(
    ("budgets", "number"),
    [
        pytest.param((30, 0), 3, id="the tokens alone"),
        pytest.param((30, 8), 4, id="the calls later"),
        pytest.param((40, 2), 4, id="the tokens later"),
        pytest.param((41, 2), None, id="not yet"),
    ],
)
def test_training_ends_once_both_budgets_are_used_up(budgets, number):
    assert iterate(SampleBudget(*budgets), *[(10, 2)] * 4) == number


def test_a_resumed_run_goes_on_counting():
    first, second = SampleBudget(30), SampleBudget(30)
    assert iterate(first, (10, 2), (10, 2)) is None
    second.load_state_dict(first.state_dict())
    assert iterate(second, (10, 2)) == 1


def test_a_negative_budget_is_refused():
    with pytest.raises(ConfigError, match="`num_answered_calls` must be at least 0, but got -1"):
        SampleBudget(1, -1)


def test_a_trainer_without_rollouts_is_refused():
    with pytest.raises(ConfigError, match="must have `metrics`"):
        SampleBudget(1).setup(make_trainer(None), MODULE, "fit")
