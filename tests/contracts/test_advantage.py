"""The seams where advantages and credit are asked for: what a part may look at, and what it must answer."""

import math

import pytest
import torch

from aepo_lightning.contracts.advantage import assign_credit, estimate_advantages, takes
from aepo_lightning.contracts.objective import RewardGroup
from aepo_lightning.errors import TrainingError
from tests.support.training import make_tree, policy_turn, tool_turn


def group(rewards=(1.0, 3.0), weights=(0.5, 1.5)):
    """Two trajectories, of two turns and of one."""
    paths = [[policy_turn(5), tool_turn(6), policy_turn(7, 8)], [policy_turn(9)]]
    tree = make_tree(paths, rewards)
    return RewardGroup(tree=tree, leaves=tree.leaves, rewards=torch.tensor(rewards), weights=torch.tensor(weights))


def test_an_estimator_is_given_what_it_has_parameters_for():
    def all_of_it(rewards, roots, weights=None):
        return rewards * (1 if weights is None else weights) + torch.tensor(roots)

    assert estimate_advantages(lambda rewards: 2 * rewards, group(), is_weighted=True).tolist() == [2.0, 6.0]
    assert estimate_advantages(all_of_it, group(), is_weighted=True).tolist() == [0.5, 5.5]
    assert estimate_advantages(all_of_it, group(), is_weighted=False).tolist() == [1.0, 4.0]
    assert (takes(all_of_it, "roots"), takes(all_of_it, "tree"), takes(None, "roots")) == (True, False, False)


def test_trajectories_of_one_root_chain_share_its_number():
    found = group()
    found.leaves[0].seed_path, found.leaves[1].seed_path = ("r", 1), ("r", 1, "b", 1, 0)
    assert found.roots == [0, 0]
    found.leaves[0].seed_path = ("p", 1)
    assert found.roots == [0, 1]


@pytest.mark.parametrize(
    ("estimator", "named"),
    [
        (lambda _: None, r"return a tensor of shape \(2,\), but got None"),
        (lambda rewards: rewards.tolist(), r"return a tensor of shape \(2,\), but got \[1.0, 3.0\]"),
        (lambda rewards: rewards.mean(), r"of shape \(2,\), but got torch.float32 of shape \(\)"),
        (lambda rewards: rewards / 0 - rewards / 0, "return finite advantages of finite rewards, but some are not"),
        (lambda rewards: rewards.nothing, r"not fail, but it raised AttributeError: .*\(test_advantage\.py, line"),
    ],
    ids=["none", "list", "mean", "nan", "raises"],
)
def test_what_are_no_advantages_is_refused_by_name(estimator, named):
    with pytest.raises(TrainingError, match=rf"The advantage estimator `{__name__}\.<lambda>` must .*{named}"):
        estimate_advantages(estimator, group(), is_weighted=False)


def test_rewards_that_are_not_finite_are_not_blamed_on_the_estimator():
    found = estimate_advantages(lambda rewards: rewards - rewards.mean(), group((math.nan, 1.0)), is_weighted=False)
    assert found.isnan().all()


@pytest.mark.parametrize("answer", [[[1, 2.0], (3.0,)], [torch.tensor([1.0, 2.0]), torch.tensor([3.0])]], ids=["", "t"])
def test_credit_is_one_number_for_each_turn_of_the_policy(answer):
    assert assign_credit(lambda _, __: answer, group(), torch.zeros(2)) == [[1.0, 2.0], [3.0]]


@pytest.mark.parametrize(
    ("credit", "named"),
    [
        (lambda _, __: None, r"policy segments, \[2, 1\], but got None"),
        (lambda _, __: [[1.0, 2.0]], r"policy segments, \[2, 1\], but got \[2\]"),
        (lambda _, __: [[1.0, 2.0, 3.0], [4.0]], r"policy segments, \[2, 1\], but got \[3, 1\]"),
        (lambda _, __: [["1", "2"], "3"], r"policy segments, \[2, 1\], but got \[None, None\]"),
        (lambda _, __: [[1.0, math.inf], [4.0]], "return finite advantages, but some are not"),
        (lambda group, _: group.nothing, r"not fail, but it raised AttributeError: .*\(test_advantage\.py, line"),
    ],
    ids=["none", "few", "many", "texts", "infinite", "raises"],
)
def test_what_is_no_credit_is_refused_by_name(credit, named):
    with pytest.raises(TrainingError, match=rf"The credit `{__name__}\.<lambda>` must .*{named}"):
        assign_credit(credit, group(), torch.zeros(2))
