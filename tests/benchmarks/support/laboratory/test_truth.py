"""Value and gradient against a brute force over all trajectories that knows the rules and nothing of the laboratory."""

import itertools
import math

import pytest
import torch

from benchmarks.support.laboratory import truth
from benchmarks.support.laboratory.policy import TabularPolicy, at_entropy
from benchmarks.support.laboratory.world import ACTIONS, Quest, State, World

SMALL = World(num_steps=1)


def brute_force(policy, quest):
    """Sum of probability, reward and score over every list of actions that is a trajectory."""
    world, logits = policy.world, policy.logits.detach()
    value, gradient = 0.0, torch.zeros_like(logits)
    for length in range(1, 2 * world.num_steps + 3):
        for actions in itertools.product(range(6), repeat=length):
            if any(action > 3 for action in actions[:-1]) or actions[-1] < 4:
                continue  # an answer ends a trajectory, and nothing else does
            if any(pair == (0, 0) for pair in itertools.pairwise(actions)):
                continue  # one thought in a turn
            if sum(1 <= action <= 3 for action in actions) > world.num_steps:
                continue
            place, step, probability, scores = world.quests[quest].start, 0, 1.0, torch.zeros_like(logits)
            has_thought = False
            for action in actions:
                row = world.states.index(State(quest=quest, place=place, step=step, has_thought=has_thought))
                open_actions = [*([] if has_thought else [0]), *([1, 2, 3] if step < world.num_steps else []), 4, 5]
                weights = [math.exp(logits[row, each]) for each in open_actions]
                for each, weight in zip(open_actions, weights, strict=True):
                    scores[row, each] += (each == action) - weight / sum(weights)
                probability *= math.exp(logits[row, action]) / sum(weights)
                has_thought = action == 0
                if 1 <= action <= 3:
                    place, step = world.exits[place][action - 1], step + 1
            own = world.quests[quest]
            reward = own.consolation if actions[-1] == 5 else float(place == own.gold)
            value += probability * reward
            gradient += probability * reward * scores
    return value, gradient


@pytest.mark.parametrize("quest", [0, 1])
def test_value_and_gradient_are_those_of_a_sum_over_all_trajectories(quest):
    policy = TabularPolicy(SMALL, scale=1.5, seed=3)
    value, gradient = brute_force(policy, quest)
    assert float(truth.value(policy, quest).detach()) == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(truth.gradient(policy, quest), gradient, rtol=1e-10, atol=1e-15)


def test_the_gradient_is_that_of_finite_differences():
    policy = TabularPolicy(World(), scale=1.0, seed=1)
    gradient, step = truth.gradient(policy, 0), 1e-5
    largest = gradient.abs().flatten().topk(5).indices
    for index in largest:
        values = []
        for sign in (1, -1):
            policy.logits.data.view(-1)[index] += sign * step
            values.append(float(truth.value(policy, 0).detach()))
            policy.logits.data.view(-1)[index] -= sign * step
        difference = (values[0] - values[1]) / (2 * step)
        # The error of a central difference is of the order of the step squared.
        assert difference == pytest.approx(float(gradient.view(-1)[index]), rel=1e-6)


def test_a_uniform_policy_of_one_step_by_hand():
    world = World(exits=((1, 1, 0), (0, 0, 0)), num_steps=1, quests=(Quest(start=0, gold=1, consolation=0.5),))
    # Before the search: thought 1/6, search 1/2, found 1/6, unsure 1/6; after a thought search 3/5, found and unsure
    # 1/5 each. So searches end the turn with 1/2 + 1/6 * 3/5 = 3/5, `unsure` with 1/6 + 1/6 * 1/5 = 1/5. After the
    # search, found and unsure have 1/2 each, and 2 of 3 exits lead to the gold:
    # 3/5 * (1/2 * 2/3 + 1/2 * 1/2) + 1/5 * 1/2 = 9/20.
    assert float(truth.value(TabularPolicy(world, scale=0.0), 0).detach()) == pytest.approx(9 / 20, rel=1e-14)


def test_the_probabilities_of_all_trajectories_add_up_to_one():
    policy = TabularPolicy(World(), scale=2.0)
    found = truth.paths(policy, 1)
    assert len({(path.states, path.actions) for path in found}) == len(found) == 172
    assert math.fsum(path.probability for path in found) == pytest.approx(1.0, rel=1e-13)


@pytest.mark.parametrize("share", [0.9, 0.2])
def test_a_policy_has_the_entropy_that_is_asked_for(share):
    uniform = TabularPolicy(SMALL, scale=0.0).entropy_table().detach().mean()
    found = at_entropy(SMALL, share).entropy_table().detach().mean()
    assert float(found) == pytest.approx(share * float(uniform), rel=1e-6)


def test_two_results_that_read_differently_lead_to_one_state():
    world = World()
    start = world.start(0)
    assert world.result_text(start, 1) != world.result_text(start, 3)
    assert world.next_state(start, 1) == world.next_state(start, 3)
    assert len(ACTIONS) == 6
