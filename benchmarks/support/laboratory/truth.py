"""What is true of a policy: its value, the gradient of that, and every trajectory with its probability."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.support.laboratory.policy import TabularPolicy
from benchmarks.support.laboratory.world import ACTIONS, State


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """A whole trajectory: the choices that were made."""

    states: tuple[int, ...]
    """Numbers of the states in which a token was chosen."""
    actions: tuple[int, ...]
    probability: float
    reward: float


def value(policy: TabularPolicy, quest: int) -> Float[Tensor, ""]:
    """Return the expected reward of a quest, differentiable, by dynamic programming over the states."""
    world, probabilities = policy.world, policy.log_table().exp()
    numbers = {state: number for number, state in enumerate(world.states)}
    known: dict[State, Tensor] = {}

    def of(state: State) -> Tensor:
        if state not in known:
            total = probabilities.new_zeros(())
            for action in world.legal_actions(state):
                following = world.next_state(state, action)
                worth = world.reward(state, action) if following is None else of(following)
                total = total + probabilities[numbers[state], action] * worth
            known[state] = total
        return known[state]

    return of(world.start(quest))


def gradient(policy: TabularPolicy, quest: int) -> Float[Tensor, "states actions"]:
    """Return the gradient of the expected reward of a quest with respect to the logits."""
    (found,) = torch.autograd.grad(value(policy, quest), policy.logits)
    return found


def paths(policy: TabularPolicy, quest: int) -> list[Path]:
    """Return every trajectory of a quest. Their probabilities add up to 1."""
    world = policy.world
    numbers = {state: number for number, state in enumerate(world.states)}
    logs = policy.log_table().tolist()
    found: list[Path] = []

    def walk(state: State, states: tuple[int, ...], actions: tuple[int, ...], logprob: float) -> None:
        number = numbers[state]
        for action in world.legal_actions(state):
            following = world.next_state(state, action)
            taken = (*states, number), (*actions, action), logprob + logs[number][action]
            if following is not None:
                walk(following, *taken)
                continue
            reward = world.reward(state, action)
            found.append(Path(states=taken[0], actions=taken[1], probability=math.exp(taken[2]), reward=reward))

    walk(world.start(quest), (), (), 0.0)
    return found


def scores(policy: TabularPolicy, path: Path) -> Float[Tensor, "response states actions"]:
    """Return the gradient of each choice's log-prob with respect to the logits: softmax's, in closed form."""
    probabilities = policy.log_table().detach().exp()
    states, actions = torch.tensor(path.states), torch.tensor(path.actions)
    steps = torch.arange(len(states))
    result = torch.zeros(len(states), len(policy.world.states), len(ACTIONS), dtype=torch.float64)
    result[steps, states] = -probabilities[states]
    result[steps, states, actions] += 1.0
    return result
