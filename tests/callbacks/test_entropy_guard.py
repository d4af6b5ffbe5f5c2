import warnings

import pytest

from aepo_lightning.callbacks import EntropyGuard
from aepo_lightning.errors import ConfigError

LOW, HIGH = 0.001, 1.0


def fit(run):
    """Return the guard's warnings and the number of epochs that were run."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit()
    said = [str(warning.message) for warning in caught if "policy has collapsed" in str(warning.message)]
    return said, run.trainer.current_epoch


def test_warns_once_after_patience_iterations_in_a_row(make_run, set_metrics):
    script = set_metrics(entropy=[LOW, HIGH, LOW, LOW, LOW], reward=[0.2])
    guard = EntropyGuard(patience=2)
    said, num_epochs = fit(make_run([script, guard], max_epochs=5))
    assert num_epochs == 5
    assert len(said) == 1
    assert "below 0.005 nats for 2 iterations in a row (now 0.001)" in said[0]
    assert "mean reward is 0.2, below 0.9" in said[0]
    assert "lower learning rate" in said[0]
    assert guard.state_dict() == {"num_low": 3, "has_warned": True}


def test_stops_after_patience_iterations(make_run, set_metrics):
    script = set_metrics(entropy=[HIGH, LOW], reward=[0.2])
    said, num_epochs = fit(make_run([script, EntropyGuard(patience=2, action="stop")], max_epochs=4))
    assert len(said) == 1
    assert "The run stops." in said[0]
    assert num_epochs == 3


@pytest.mark.parametrize(
    ("reward", "until_reward", "num_warnings"),
    [
        pytest.param(0.89, 0.9, 1, id="not yet solved"),
        pytest.param(0.9, 0.9, 0, id="solved"),
        pytest.param(5.0, None, 1, id="whatever the reward"),
    ],
)
def test_certainty_is_no_collapse_once_the_task_is_solved(make_run, set_metrics, reward, until_reward, num_warnings):
    script = set_metrics(entropy=[LOW], reward=[reward])
    said, _ = fit(make_run([script, EntropyGuard(patience=1, until_reward=until_reward)]))
    assert len(said) == num_warnings


def test_the_minimum_itself_is_not_low(make_run, set_metrics):
    said, _ = fit(make_run([set_metrics(entropy=[0.005], reward=[0.0]), EntropyGuard(patience=1)]))
    assert said == []


def test_a_resumed_run_goes_on_counting(make_run, set_metrics, tmp_path):
    script = set_metrics(entropy=[LOW], reward=[0.0])
    make_run([script, EntropyGuard(patience=2)], max_epochs=1).fit()
    guard = EntropyGuard(patience=2)
    run = make_run([script, guard], max_epochs=2)
    with pytest.warns(UserWarning, match="for 2 iterations in a row"):
        run.fit(tmp_path / "checkpoints" / "last.ckpt")
    assert guard.state_dict() == {"num_low": 2, "has_warned": True}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"minimum_nats": 0.0}, "`minimum_nats` must be positive", id="no minimum"),
        pytest.param({"minimum_nats": float("inf")}, "`minimum_nats` must be positive", id="infinite minimum"),
        pytest.param({"patience": 0}, "`patience` must be at least 1", id="no patience"),
        pytest.param({"until_reward": float("nan")}, "`until_reward` must be None or finite", id="nan reward"),
    ],
)
def test_refuses_settings_without_meaning(settings, message):
    with pytest.raises(ConfigError, match=message):
        EntropyGuard(**settings)


def test_refuses_another_kind_of_data(make_run):
    run = make_run()
    with pytest.raises(ConfigError, match="must have `metrics` for this callback"):
        EntropyGuard().setup(run.trainer, run.module, "fit")
