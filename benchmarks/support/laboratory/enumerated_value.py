"""Exact expectations of what a group says about its question: the value and its gradient, by enumeration of all trees.

Every tree that the library's sampler may grow in a `World` is grown, with its probability; estimates are averaged over
them. There is no sampling error: a bias below 1e-12 is none. `docs/unbiased_branching.md` has the table and the proof.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from aepo_lightning.advantages import GroupZScore, LeaveOneOut, NoBaseline, RootBaseline
from aepo_lightning.budgets import PreMonitoring, RootShare
from aepo_lightning.contracts.branching import BudgetAllocator
from aepo_lightning.contracts.engine import Engine
from aepo_lightning.contracts.tree import LeafWeighting, RolloutTree
from aepo_lightning.rollout import RolloutParts, RolloutSettings, TurnEntropy
from aepo_lightning.training.group_rows import GroupRows
from benchmarks.support.laboratory.branching_world import (
    DrawnBranching,
    Letter,
    Tape,
    World,
    WorldFormat,
    WorldReward,
    WorldTool,
    enumerate_trees,
)

FORK = World(
    states={
        "": {"A": Letter(probability=0.75, result="1"), "B": Letter(probability=0.25, result="2")},
        "A1": {"r": Letter(probability=0.9, reward=1.0), "w": Letter(probability=0.1, end_entropy=1.0)},
        "B2": {"r": Letter(probability=0.5, reward=1.0, delay=4), "w": Letter(probability=0.5, end_entropy=1.0)},
    }
)
"""Two calls, of which one leads where the policy is unsure. A right answer there takes longer; a wrong one ends in
doubt."""
LONG = World(
    states={
        "": {"A": Letter(probability=0.75, result="1"), "B": Letter(probability=0.25, result="2")},
        "A1": {"r": Letter(probability=0.9, reward=1.0), "w": Letter(probability=0.1, end_entropy=1.0)},
        "B2": {
            "C": Letter(probability=0.5, result="3", end_entropy=1.0),
            "r": Letter(probability=0.25, reward=1.0, delay=4),
            "w": Letter(probability=0.25, end_entropy=1.0),
        },
        "B2C3": {"r": Letter(probability=0.4, reward=1.0), "w": Letter(probability=0.6, end_entropy=1.0)},
    }
)
"""The same, with a second call from where the policy is unsure: chains branch twice, and their branches branch."""

WHOLE_TURN = RolloutSettings(turn_entropy=TurnEntropy(num_tokens=2, normalizer="none"))
FIRST_TOKEN = RolloutSettings(turn_entropy=TurnEntropy(num_tokens=1, normalizer="none"))
PREFIX = RolloutSettings(turn_entropy=TurnEntropy(num_tokens=1, normalizer="none"), branch_signal="prefix")
SIGNALS: Mapping[str, RolloutSettings] = {
    "the turn that was drawn": WHOLE_TURN,
    "exact entropy, as chains arrive": FIRST_TOKEN,
    "exact entropy, in rounds": PREFIX,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How groups are grown."""

    settings: RolloutSettings = PREFIX
    """Of which `branch_signal` and `turn_entropy` count."""
    budget: int = 3
    allocator: BudgetAllocator = field(default_factory=lambda: RootShare(share=0.67))
    keep_probe: bool = True
    high: float = 1.0
    """Probability of a branch where the entropy rose."""
    low: float = 0.0
    """Probability of a branch elsewhere."""

    def trees(self, world: World) -> Iterator[tuple[float, RolloutTree]]:
        """Yield every tree with its probability."""

        def parts(engine: Engine, tape: Tape) -> RolloutParts:
            return RolloutParts(
                engine=engine,
                tools=WorldTool(world),
                reward=WorldReward(world),
                chat_format=WorldFormat(),
                allocator=self.allocator,
                branch_policy=DrawnBranching(tape=tape, high=self.high, low=self.low),
                settings=RolloutSettings(
                    budget=self.budget,
                    turn_entropy=self.settings.turn_entropy,
                    branch_signal=self.settings.branch_signal,
                    keep_probe=self.keep_probe,
                ),
            )

        return enumerate_trees(world, parts)


MONITORED = PreMonitoring(beta=10.0)
"""In both worlds m is large after a sure probe and small after an unsure one."""
SPLITS: Mapping[str, Callable[[RolloutSettings], Sampling]] = {
    "m fixed": lambda settings: Sampling(settings=settings),
    "m from a probe that is kept": lambda settings: Sampling(settings=settings, allocator=MONITORED),
    "m from a probe that is discarded": lambda settings: Sampling(
        settings=settings, allocator=MONITORED, keep_probe=False
    ),
}


def true_value(world: World) -> float:
    """Return the expected reward of a trajectory."""
    return math.fsum(probability * world.reward(path) for probability, path in world.trajectories())


def true_gradient(world: World) -> dict[tuple[str, str], float]:
    """Return the derivatives of the expected reward by the logits of the policy, one for each state and letter."""
    found: dict[tuple[str, str], float] = defaultdict(float)
    for probability, path in world.trajectories():
        for place, score in world.score(path).items():
            found[place] += probability * world.reward(path) * score
    return dict(found)


def estimate_value(tree: RolloutTree, mode: LeafWeighting, with_top_ups: bool) -> float:
    """Return what a group says about the value: the weighted mean reward of its trajectories.

    Args:
        tree: Of the group.
        mode: Weights of the trajectories.
        with_top_ups: Whether fresh chains that fill an unused branch budget count.
    """
    counted = [
        (weight, reward)
        for leaf, weight, reward in zip(tree.leaves, tree.leaf_weights(mode), tree.rewards, strict=True)
        if with_top_ups or int(leaf.seed_path[1]) < tree.global_budget
    ]
    return math.fsum(weight * reward for weight, reward in counted) / math.fsum(weight for weight, _ in counted)


VALUES: Mapping[str, Callable[[RolloutTree], float]] = {
    "uniform": lambda tree: estimate_value(tree, "uniform", True),
    "uniform, no top-ups": lambda tree: estimate_value(tree, "uniform", False),
    "inverse fan-out": lambda tree: estimate_value(tree, "inverse_fan_out", True),
    "inverse fan-out, no top-ups": lambda tree: estimate_value(tree, "inverse_fan_out", False),
}
_CENTRED = GroupZScore(normalize_by_std=False)
UPDATES: Mapping[str, GroupRows] = {
    "uniform, group mean": GroupRows(advantage_estimator=_CENTRED),
    "inverse fan-out, group mean": GroupRows(advantage_estimator=_CENTRED, leaf_weights="inverse_fan_out"),
    "inverse fan-out, other roots and top-ups": GroupRows(
        advantage_estimator=LeaveOneOut(unit="root"), leaf_weights="inverse_fan_out"
    ),
    "inverse fan-out, other roots, top-ups count": GroupRows(
        advantage_estimator=NoBaseline(), leaf_weights="inverse_fan_out", credit=RootBaseline()
    ),
    "inverse fan-out, other roots, top-ups left out": GroupRows(
        advantage_estimator=NoBaseline(), leaf_weights="inverse_fan_out", credit=RootBaseline(top_ups="leave_out")
    ),
}


def update(world: World, tree: RolloutTree, rows: GroupRows) -> dict[tuple[str, str], float]:
    """Return the first step that a group asks for: the mean over trajectories of weight * advantage * score."""
    found: dict[tuple[str, str], float] = defaultdict(float)
    for leaf, row in zip(tree.leaves, rows(tree, 0), strict=True):
        first = row.trajectory.is_sampled.index(True)  # every turn has the same advantage here
        advantage = row.advantage if row.token_advantages is None else row.token_advantages[first]
        for place, score in world.score(world.path(tree, leaf)).items():
            found[place] += row.weight * advantage * score / len(tree.leaves)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectations:
    """Exact expectations over all trees of a sampler."""

    num_trees: int
    value_bias: Mapping[str, float]
    """By rule, the expected estimate of the value less the value."""
    gradients: Mapping[str, Mapping[tuple[str, str], float]]
    """By rule, the expected first step."""
    num_top_ups: float
    """Expected number of top-ups."""


def expectations(world: World, sampling: Sampling, with_updates: bool = True) -> Expectations:
    """Grow every tree of a sampler and return the expectations of all estimates."""
    value = true_value(world)
    biases: dict[str, float] = dict.fromkeys(VALUES, 0.0)
    gradients: dict[str, dict[tuple[str, str], float]] = {name: defaultdict(float) for name in UPDATES}
    num_trees, num_top_ups = 0, 0.0
    for probability, tree in sampling.trees(world):
        num_trees += 1
        num_top_ups += probability * sum(int(leaf.seed_path[1]) >= tree.global_budget for leaf in tree.leaves)
        for name, rule in VALUES.items():
            biases[name] += probability * (rule(tree) - value)
        for name, rows in UPDATES.items() if with_updates else ():
            for place, step in update(world, tree, rows).items():
                gradients[name][place] += probability * step
    return Expectations(num_trees=num_trees, value_bias=biases, gradients=gradients, num_top_ups=num_top_ups)


def cosine(left: Mapping[tuple[str, str], float], right: Mapping[tuple[str, str], float]) -> float:
    """Return the cosine of the angle between two gradients."""
    product = math.fsum(value * right.get(place, 0.0) for place, value in left.items())
    return product / (math.hypot(*left.values()) * math.hypot(*right.values()))


def distance(left: Mapping[tuple[str, str], float], right: Mapping[tuple[str, str], float]) -> float:
    """Return how much of a gradient is orthogonal to another, as a share of it: the sine of the angle."""
    along = math.fsum(value * right.get(place, 0.0) for place, value in left.items()) / math.hypot(*right.values()) ** 2
    rest = [left.get(place, 0.0) - along * right.get(place, 0.0) for place in {*left, *right}]
    return math.hypot(*rest) / math.hypot(*left.values())
