"""Settings without meaning are refused, with what to do."""

import pytest

from aepo_lightning.rollout import RolloutSettings


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"budget": 0}, "`budget` must be at least 1, but got 0"),
        ({"max_response_tokens": 0}, "`max_response_tokens` must be at least 1, but got 0"),
        ({"max_tool_calls": -1}, "`max_tool_calls` must not be negative, but got -1"),
        ({"temperature": 0.0}, "`temperature` must be positive for 16 trajectories, but got 0.0"),
        ({"temperature": -1.0, "budget": 1}, r"`temperature` must be 0 \(greedy\) or positive, but got -1.0"),
        ({"temperature": float("nan")}, r"`temperature` must be 0 \(greedy\) or positive, but got nan"),
    ],
    ids=str,
)
def test_numbers_without_meaning_are_refused(fields, match):
    with pytest.raises(ValueError, match=match):
        RolloutSettings(**fields)


@pytest.mark.parametrize(
    "name", ["on_call_limit", "on_malformed_call", "top_up", "branch_signal", "penalty_scope", "branch_baseline"]
)
def test_a_switch_with_a_misspelt_value_is_refused(name):
    settings = RolloutSettings()
    object.__setattr__(settings, name, "paralel")  # past the type checker that runs in tests
    with pytest.raises(ValueError, match=f"`{name}` must be one of .*, but got 'paralel'"):
        settings.__post_init__()


def test_greedy_decoding_is_for_a_single_trajectory():
    assert RolloutSettings(temperature=0.0, budget=1).temperature == 0
