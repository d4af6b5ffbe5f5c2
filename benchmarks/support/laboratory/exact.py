"""The expected first step of independent sampling, without chance: every group of k trajectories, with its probability.

Trajectories between which estimator, shaping and loss cannot tell are one class, so that few groups are left. For each,
the library's loss says what it gives every token; what that is worth on average is a sum over the trajectories of the
class.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from aepo_lightning.contracts.batch import Minibatch
from aepo_lightning.contracts.generation import StopReason
from aepo_lightning.contracts.question import SegmentSource
from aepo_lightning.contracts.reward import RewardOutput
from aepo_lightning.contracts.tree import Leaf, LeafOrigin, RolloutTree
from aepo_lightning.training.algorithm import Algorithm
from benchmarks.support.laboratory.policy import TabularPolicy
from benchmarks.support.laboratory.truth import Path, paths, scores
from benchmarks.support.laboratory.updates import Bench
from benchmarks.support.laboratory.world import FOUND, GO, UNSURE

Signature: TypeAlias = tuple[float, ...]


@dataclass(slots=True, kw_only=True)
class PathClass:
    """Trajectories that the update treats alike."""

    representative: Path
    probability: float
    scores: Float[Tensor, "response states actions"]
    """For each position, the score of its token times the probability of the trajectory, summed over the class."""


def expected_update(
    algorithm: Algorithm, policy: TabularPolicy, quest: int, budget: int
) -> Float[Tensor, "states actions"]:
    """Return the expected first step of an algorithm that samples independently.

    Args:
        algorithm: Its estimator, shaping, objective and aggregation count; its allocator and branch policy do not.
        policy: What is sampled from and trained.
        quest: What is asked.
        budget: k, trajectories of a group.
    """
    bench = Bench(algorithm=replace(algorithm, budget=budget), policy=policy)
    classes = path_classes(policy, quest, with_entropies=looks_at_entropies(algorithm))
    groups = list(combinations_with_replacement(range(len(classes)), budget))
    trees = [tree_of(bench, quest, [classes[index].representative for index in group]) for group in groups]
    total = torch.zeros_like(policy.logits.detach())
    for group, tree, step in zip(groups, trees, bench.steps(trees), strict=True):
        total += _num_orders(group) * _share(bench, [classes[index] for index in group], tree, step)
    return total


def looks_at_entropies(algorithm: Algorithm) -> bool:
    """Return whether two trajectories of the same reward and length may be told apart by their entropies."""
    return algorithm.shaping is not None or algorithm.token_mask is not None


def path_classes(policy: TabularPolicy, quest: int, with_entropies: bool) -> list[PathClass]:
    """Return the trajectories of a quest by reward, length and, if asked, the entropies of their tokens."""
    entropies = policy.entropy_table().tolist()
    found: dict[Signature, PathClass] = {}
    for path in paths(policy, quest):
        own = tuple(round(entropies[state], 12) for state in path.states) if with_entropies else ()
        weighted = path.probability * scores(policy, path)
        known = found.get((path.reward, len(path.states), *own))
        if known is None:
            found[path.reward, len(path.states), *own] = PathClass(
                representative=path, probability=path.probability, scores=weighted
            )
        else:
            known.probability += path.probability
            known.scores += weighted
    return list(found.values())


def tree_of(bench: Bench, quest: int, chosen: Sequence[Path]) -> RolloutTree:
    """Return a group of independent trajectories as the sampler would."""
    world, chat_format = bench.policy.world, bench.sampler.parts.chat_format
    question = world.question(quest, 0)
    tree = RolloutTree(question=question, global_budget=len(chosen))
    tree.add(None, SegmentSource.PROMPT, chat_format.encode_prompt(question.messages))
    logs, entropies = bench.policy.log_table().tolist(), bench.policy.entropy_table().tolist()
    for index, path in enumerate(chosen):
        parent, turn = 0, list[tuple[int, int]]()
        for choice in zip(path.states, path.actions, strict=True):
            turn.append(choice)
            if choice[1] == GO:
                continue
            tokens = [bench.policy.reader.token(action) for _, action in turn]
            numbers = {"logprobs": [logs[s][a] for s, a in turn], "entropies": [entropies[s] for s, _ in turn]}
            parent, turn = tree.add(parent, SegmentSource.POLICY, tokens, **numbers).segment_id, []
            if choice[1] not in (FOUND, UNSURE):
                text = world.result_text(world.states[choice[0]], choice[1])
                (result,) = chat_format.encode_results([text])
                parent = tree.add(parent, SegmentSource.TOOL, result).segment_id
        tree.leaves.append(_leaf(parent, index, path.reward))
    return tree


def _leaf(segment: int, index: int, reward: float) -> Leaf:
    return Leaf(
        segment_id=segment,
        origin=LeafOrigin.ROOT,
        stop_reason=StopReason.EOS,
        seed_path=("r", index),
        reward=RewardOutput(reward=reward, is_correct=reward == 1.0, is_well_formed=True),
    )


def _share(bench: Bench, group: Sequence[PathClass], tree: RolloutTree, step: Minibatch) -> Tensor:
    """Return what all groups of these classes, in this order, add to the expected update."""
    (given,) = torch.autograd.grad(bench.loss(step), bench.policy.scored)
    (batch,) = step.micro_batches
    rows = {tuple(ids[:length]): row for row, (ids, length) in enumerate(_tokens(batch.input_ids, batch.lengths))}
    total = torch.zeros_like(bench.policy.logits.detach())
    for place, leaf in enumerate(tree.leaves):
        row = rows[tuple(tree.token_ids(leaf.segment_id))]
        weights = -given[row][batch.response_mask[row]]
        others = math.prod(each.probability for at, each in enumerate(group) if at != place)
        total += others * torch.einsum("t,tsa->sa", weights, group[place].scores)
    return total


def _tokens(input_ids: Tensor, lengths: Tensor) -> list[tuple[list[int], int]]:
    return list(zip(input_ids.tolist(), lengths.tolist(), strict=True))


def _num_orders(group: Sequence[int]) -> int:
    """Return in how many orders a multiset can be drawn."""
    return math.factorial(len(group)) // math.prod(math.factorial(count) for count in Counter(group).values())
