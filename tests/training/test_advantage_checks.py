"""Combinations of estimator, weights, credit and normalisation that have no meaning are refused where they are made."""

import pytest

from aepo_lightning.advantages import (
    AnchorState,
    FirstBranch,
    GroupZScore,
    LeaveOneOut,
    NoBaseline,
    NodeValue,
    OverlongPenalty,
    RootBaseline,
    TurnReturn,
)
from aepo_lightning.errors import ConfigError
from aepo_lightning.training.advantage_checks import check_advantages
from aepo_lightning.training.presets import GRPO


def unweighted(rewards):
    return rewards


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"leaf_weights": "inverse_fan_out", "advantage_estimator": unweighted},
            r"`leaf_weights` must be 'uniform' for .*`weights`, but got 'inverse_fan_out' beside `.*\.unweighted`",
        ),
        ({"normalize_over": "step"}, "`advantage_estimator.normalize_by_std` must be false with normalize_over='step'"),
        (
            {"normalize_over": "step", "advantage_estimator": NoBaseline(), "credit": FirstBranch()},
            "`normalize_over` must be 'group' beside `FirstBranch`, but got 'step'",
        ),
        (
            {"credit": FirstBranch(), "overlong": OverlongPenalty(max_tokens=8, buffer_tokens=4, mask_truncated=True)},
            "`overlong.mask_truncated` must be false beside `FirstBranch`, but got true",
        ),
        (
            {"credit": TurnReturn()},
            "`advantage_estimator` must be `NoBaseline` beside `.*TurnReturn`, .* but got `.*GroupZScore`",
        ),
        (
            {"leaf_weights": "inverse_fan_out", "credit": RootBaseline()},
            "`advantage_estimator` must be `NoBaseline` beside `.*RootBaseline`, .* but got `.*GroupZScore`",
        ),
    ],
)
def test_an_algorithm_refuses_what_has_no_meaning(changes, message):
    with pytest.raises(ConfigError, match=message):
        GRPO(**changes)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("fan", None, "group"), r"`leaf_weights` must be one of \('uniform', 'inverse_fan_out'\), but got 'fan'"),
        (("uniform", None, "batch"), "`normalize_over` must be 'group' or 'step', but got 'batch'"),
        (("uniform", "mean", "group"), "`credit` must be None or callable, but got 'mean'"),
    ],
)
def test_unknown_words_are_refused(words, message):
    leaf_weights, credit, normalize_over = words
    check = getattr(check_advantages, "__wrapped__", check_advantages)  # past the type checker, as from a file
    with pytest.raises(ConfigError, match=message):
        check(unweighted, leaf_weights, credit, normalize_over)


@pytest.mark.parametrize(
    "changes",
    [
        {"normalize_over": "step", "advantage_estimator": GroupZScore(normalize_by_std=False), "credit": NodeValue()},
        {"leaf_weights": "inverse_fan_out", "advantage_estimator": LeaveOneOut(unit="root"), "credit": FirstBranch()},
        {"leaf_weights": "inverse_fan_out", "advantage_estimator": NoBaseline(), "credit": TurnReturn()},
        {"normalize_over": "step", "advantage_estimator": unweighted, "credit": AnchorState()},
    ],
)
def test_what_has_a_meaning_is_taken(changes):
    assert GRPO(**changes).leaf_weights == changes.get("leaf_weights", "uniform")
