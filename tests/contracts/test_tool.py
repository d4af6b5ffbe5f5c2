"""Limits of tools: given as objects or as mappings, and refused by name."""

import pytest

from aepo_lightning.contracts.tool import RetryPolicy, ToolLimits


@pytest.mark.parametrize(
    "limits",
    [
        ToolLimits(deadline_s=3.0, retry=RetryPolicy(max_attempts=2)),
        {"deadline_s": 3.0, "retry": {"max_attempts": 2}},
        {"deadline_s": 3.0, "retry": RetryPolicy(max_attempts=2)},
    ],
    ids=["object", "mapping", "mixed"],
)
def test_limits_are_the_same_however_they_are_given(limits):
    assert ToolLimits.of(limits) == ToolLimits(deadline_s=3.0, retry=RetryPolicy(max_attempts=2))


@pytest.mark.parametrize("limits", [None, {}, {"retry": None}], ids=["none", "empty", "no-retry"])
def test_nothing_said_is_the_defaults(limits):
    assert ToolLimits.of(limits) == ToolLimits()


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"deadline": 3.0}, "`limits` must have keys of ToolLimits, but got 'deadline'. Did you mean `deadline_s`"),
        ({"retry": {"attempts": 2}}, "`retry` must have keys of RetryPolicy, but got 'attempts'. .* `max_attempts`"),
        ({"xyz": 1}, "but got 'xyz'. Did you mean `deadline_s` or "),
    ],
    ids=["limit", "retry", "like-nothing"],
)
def test_an_unknown_limit_is_answered_with_the_nearest(limits, message):
    with pytest.raises(ValueError, match=message):
        ToolLimits.of(limits)
