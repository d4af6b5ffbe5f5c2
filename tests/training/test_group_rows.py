"""A trajectory without a reward is in no baseline, deviation or credit, whatever makes advantages of rewards."""

from dataclasses import replace

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
from aepo_lightning.training.group_rows import GroupRows
from tests.support.branched import grow
from tests.support.training import make_tree, policy_turn, tool_turn

ESTIMATORS = {
    "zscore": GroupZScore(),
    "centred": GroupZScore(normalize_by_std=False),
    "leave_one_out": LeaveOneOut(),
    "leave_root_out": LeaveOneOut(unit="root"),
    "none": NoBaseline(),
}
CREDITS = {
    "no": None,
    "first_branch": FirstBranch(),
    **{
        f"node_{average}": NodeValue(average=average, baseline="parent")
        for average in ("leaves", "children", "entropy")
    },
    "anchor": AnchorState(anchor="observation", normalize_by_std=True),
    "turn_return": TurnReturn(),
    "root_baseline": RootBaseline(),
}
PAIRS = [(estimator, "no") for estimator in ESTIMATORS]
PAIRS += [("none" if getattr(credit, "needs_rewards", False) else "zscore", name) for name, credit in CREDITS.items()]
OUTLIER = 100.0
"""Would be seen in any mean that it is in."""


def tree():
    """Three root chains, of which one forks into three; the outlier is in the fork."""
    fork = [
        policy_turn(5, 6),
        tool_turn(7),
        [[policy_turn(8), 1.0], [policy_turn(9), OUTLIER], [policy_turn(10), 0.25]],
    ]
    found = grow([fork, [policy_turn(11), tool_turn(7), policy_turn(12), 0.0], [policy_turn(13), 0.5]])
    found.global_budget = 3
    return found


def numbers(found, **parts):
    rows = GroupRows(**parts)(found, 0)
    return [(row.trajectory.token_ids, row.reward, row.advantage, row.token_advantages, row.weight) for row in rows]


@pytest.mark.parametrize(("estimator", "credit"), PAIRS)
@pytest.mark.parametrize("overlong", [None, OverlongPenalty(factor=3.0).within(5)], ids=["as_given", "overlong"])
def test_what_is_not_scored_might_as_well_not_be_there(estimator, credit, overlong):
    parts = {"advantage_estimator": ESTIMATORS[estimator], "credit": CREDITS[credit], "overlong": overlong}
    masked, gone = tree(), tree()
    (place,) = (place for place, leaf in enumerate(masked.leaves) if leaf.reward.reward == OUTLIER)
    masked.leaves[place].reward = replace(masked.leaves[place].reward, is_scored=False)
    del gone.leaves[place]
    assert numbers(masked, **parts) == numbers(gone, **parts)
    assert len(numbers(masked, **parts)) == 4
    is_seen = numbers(masked, **parts) != [row for row in numbers(tree(), **parts) if row[1] != OUTLIER]
    assert is_seen is ((estimator, credit) != ("none", "no")), "with a reward, it is seen wherever others are"


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_trajectory_that_is_the_only_one_with_a_reward_has_a_finite_advantage(estimator):
    found = make_tree([[policy_turn(5)], [policy_turn(6)]], [1.0, OUTLIER])
    found.leaves[1].reward = replace(found.leaves[1].reward, is_scored=False)
    ((_, reward, advantage, _, weight),) = numbers(found, advantage_estimator=ESTIMATORS[estimator])
    assert (reward, advantage, weight) == (1.0, 1.0 if estimator == "none" else 0.0, 1.0)
