"""The first thing in which two runs differ, in the order in which it happened: trees, updates, weights."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from aepo_lightning.app.saved_run import training_rollouts
from aepo_lightning.contracts.question import SegmentSource
from aepo_lightning.contracts.tree import BranchDecision, Leaf, RolloutTree, Segment
from aepo_lightning.policy.publishing.archive import WeightsArchive
from aepo_lightning.rollout import RolloutJournal

Decode = Callable[[Sequence[int]], str]

UPDATE = ("train/loss", "train/grad_norm")
"""What is logged of an optimiser step and compared."""
_AROUND = 12
"""Tokens that are shown before a difference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstDifference:
    """Where two runs part."""

    kind: str
    """weights, question, budget, token, log-prob, tool result, decision, end, reward, loss or gradient."""
    where: str
    one: str
    other: str
    context: str = ""
    """The text before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedRun:
    """What a run has left, as far as it is compared."""

    folder: Path
    scalars: Mapping[str, Mapping[int, float]]
    """Logged numbers by name and optimiser step."""

    @property
    def rollouts(self) -> list[str]:
        """Names of the rollouts whose trees were kept, in order."""
        return training_rollouts(self.folder)

    @property
    def journal(self) -> RolloutJournal:
        """Its trees."""
        return RolloutJournal(self.folder / "rollouts")

    def is_over(self, name: str) -> bool:
        """Return whether a rollout has all its trees, in the order of their questions."""
        return not self.journal.steps_path(name).exists()

    @property
    def archive(self) -> WeightsArchive:
        """Its weights."""
        return WeightsArchive(self.folder / "rollouts" / "weights")


def first_difference(one: SavedRun, other: SavedRun, decode: Decode) -> tuple[FirstDifference | None, int]:
    """Return where two runs part, or None if they do not as far as both have gone, and how many rollouts are the same.

    Of a rollout that was cut off, what there is of it is compared.

    Args:
        one: A run.
        other: Another run.
        decode: Gives the text of tokens.
    """
    num_same, last = 0, -1
    for name in one.rollouts:
        if name not in other.rollouts:
            continue
        trees, others = (list(run.journal.read(name)) for run in (one, other))
        version = trees[0].weights_version if trees else last
        for found in (_in_updates(one, other, last, version), _in_weights(one, other, version)):
            if found is not None and version != last:
                return found, num_same
        is_whole = one.is_over(name) and other.is_over(name)
        for tree, theirs in _pairs(trees, others, is_whole):
            if (found := _in_tree(name, tree, theirs, decode)) is not None:
                return found, num_same
        if is_whole and len(trees) != len(others):
            counts = f"{len(trees)} questions", f"{len(others)} questions"
            return FirstDifference(kind="question", where=name, one=counts[0], other=counts[1]), num_same
        num_same, last = num_same + is_whole, version
    return _in_updates(one, other, last, None), num_same


def _pairs(
    trees: Sequence[RolloutTree], others: Sequence[RolloutTree], is_whole: bool
) -> Iterable[tuple[RolloutTree, RolloutTree]]:
    """Return trees beside each other: in their order, or of equal questions where they stand as they were finished."""
    if is_whole:
        return zip(trees, others, strict=False)
    by_question = {tree.question.question_id: tree for tree in others}
    questions = [(tree, by_question.get(tree.question.question_id)) for tree in trees]
    return [(tree, theirs) for tree, theirs in questions if theirs is not None]


def _in_updates(one: SavedRun, other: SavedRun, start: int, stop: int | None) -> FirstDifference | None:
    """Compare losses and gradients of the optimiser steps from `start` up to `stop`, or to the last."""
    steps = sorted({step for name in UPDATE for step in one.scalars.get(name, {})})
    for step in (step for step in steps if start <= step and (stop is None or step < stop)):
        for name, kind in zip(UPDATE, ("loss", "gradient"), strict=True):
            mine, theirs = (run.scalars.get(name, {}).get(step) for run in (one, other))
            if mine is not None and theirs is not None and not _same_number(mine, theirs):
                where = f"{name}, optimiser step {step}"
                return FirstDifference(kind=kind, where=where, one=f"{mine:.8g}", other=f"{theirs:.8g}")
    return None


def _in_weights(one: SavedRun, other: SavedRun, version: int) -> FirstDifference | None:
    if not all(version in run.archive.versions() for run in (one, other)):
        return None
    mine, theirs = one.archive.load(version), other.archive.load(version)
    where = f"the weights after {version} optimiser steps"
    if mine.keys() != theirs.keys():
        odd = sorted(mine.keys() ^ theirs.keys())[0]
        has = ["has it" if odd in weights else "has it not" for weights in (mine, theirs)]
        return FirstDifference(kind="weights", where=f"{where}, {odd}", one=has[0], other=has[1])
    unequal = [name for name in mine if not _same_tensor(mine[name], theirs[name])]
    if not unequal:
        return None
    name = unequal[0]
    shown = [f"norm {float(weights[name].float().norm()):.8g}" for weights in (mine, theirs)]
    where = f"{where}: {len(unequal)} of {len(mine)} tensors, the first {name}"
    return FirstDifference(kind="weights", where=where, one=shown[0], other=shown[1])


def _same_number(mine: float, theirs: float) -> bool:
    return mine == theirs or (math.isnan(mine) and math.isnan(theirs))


def _same_tensor(mine: Tensor, theirs: Tensor) -> bool:
    if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
        return False
    return bool(((mine == theirs) | (mine.isnan() & theirs.isnan())).all())


def _in_tree(name: str, tree: RolloutTree, other: RolloutTree, decode: Decode) -> FirstDifference | None:
    """Return the difference of two trees that comes first along their trajectories."""
    where = f"{name}, question {tree.question.question_id!r}"
    ids = tree.question.question_id, other.question.question_id
    if ids[0] != ids[1]:
        return FirstDifference(kind="question", where=where, one=repr(ids[0]), other=repr(ids[1]))
    prompts = tree.segments[0], other.segments[0]
    if (unequal := _in_segment(f"{where}, prompt", *prompts, [], decode)) is not None:
        return replace(unequal[1], kind="question")
    if tree.seed != other.seed:
        return FirstDifference(kind="seed", where=where, one=str(tree.seed), other=str(other.seed))
    theirs_by_chain = {leaf.seed_path: leaf for leaf in other.leaves}
    found: list[tuple[int, FirstDifference]] = []
    for leaf in tree.leaves:
        if (twin := theirs_by_chain.get(leaf.seed_path)) is not None:
            place = f"{where}, trajectory {chain_name(leaf)}"
            found += _along(place, (tree, leaf), (other, twin), decode)
    if found:
        return min(found, key=lambda each: each[0])[1]
    if tree.global_budget != other.global_budget:
        mine_m, theirs_m = f"m = {tree.global_budget}", f"m = {other.global_budget}"
        return FirstDifference(kind="budget", where=where, one=mine_m, other=theirs_m)
    chains = [sorted(map(chain_name, each.leaves)) for each in (tree, other)]
    if chains[0] != chains[1]:
        return FirstDifference(kind="trajectories", where=where, one=", ".join(chains[0]), other=", ".join(chains[1]))
    return None


def chain_name(leaf: Leaf) -> str:
    """Return the branch path of a trajectory in words, such as r/3/1."""
    return "/".join(map(str, leaf.seed_path))


_Twin = tuple[RolloutTree, Leaf]


def _along(where: str, one: _Twin, other: _Twin, decode: Decode) -> Iterator[tuple[int, FirstDifference]]:
    """Yield the first difference along two trajectories of one chain, with its place in tokens."""
    paths = [tree.path(leaf.segment_id) for tree, leaf in (one, other)]
    decisions = [{(each.seed_path, each.turn): each for each in tree.decisions} for tree, _ in (one, other)]
    num_calls, before = 0, list[int]()
    for mine, theirs in zip(*paths, strict=False):
        if (unequal := _in_segment(where, mine, theirs, before, decode)) is not None:
            yield unequal
            return
        before = before + mine.token_ids
        if mine.source is not SegmentSource.TOOL:
            continue
        num_calls += 1
        key = (one[1].seed_path, num_calls)
        a, b = (table.get(key) for table in decisions)
        if a is not None and b is not None and (a.num_wanted, a.num_opened) != (b.num_wanted, b.num_opened):
            at, text = f"{where}, after call {num_calls}", decode(before[-_AROUND:])
            found = FirstDifference(kind="decision", where=at, one=_decided(a), other=_decided(b), context=text)
            yield len(before), found
            return
    ends = [f"{leaf.stop_reason}, {len(tree.token_ids(leaf.segment_id))} tokens" for tree, leaf in (one, other)]
    if ends[0] != ends[1]:
        yield len(before), FirstDifference(kind="end", where=where, one=ends[0], other=ends[1])
        return
    rewards = [None if leaf.reward is None else leaf.reward.reward for _, leaf in (one, other)]
    if rewards[0] != rewards[1]:
        mine_reward, theirs_reward = map(str, rewards)
        yield len(before), FirstDifference(kind="reward", where=where, one=mine_reward, other=theirs_reward)


def _decided(decision: BranchDecision) -> str:
    return (
        f"{decision.num_opened} of {decision.num_wanted} branches (H {decision.entropy:.6g}, "
        f"H0 {decision.initial_entropy:.6g}, l {decision.consecutive_branches})"
    )


def _in_segment(
    where: str, mine: Segment, theirs: Segment, before: list[int], decode: Decode
) -> tuple[int, FirstDifference] | None:
    """Return where two segments of one place differ first: in a token, or in what the engine said of it."""
    if mine.tool_result is not None and theirs.tool_result is not None:
        texts = mine.tool_result.text, theirs.tool_result.text
        if texts[0] != texts[1]:
            shown = [repr(" ".join(text.split())[:200]) for text in texts]
            return len(before), FirstDifference(kind="tool result", where=where, one=shown[0], other=shown[1])
    length = max(len(mine.token_ids), len(theirs.token_ids))
    for place in range(length):
        at, context = len(before) + place, decode([*before, *mine.token_ids[:place]][-_AROUND:])
        spot: dict[str, Any] = {"where": f"{where}, token {at}", "context": context}
        tokens = [segment.token_ids[place : place + 1] for segment in (mine, theirs)]
        values = [segment.logprobs[place : place + 1] for segment in (mine, theirs)]
        if tokens[0] != tokens[1]:
            one, other = (_token(*pair, decode) for pair in zip(tokens, values, strict=True))
            return at, FirstDifference(kind="token", one=one, other=other, **spot)
        if values[0] != values[1]:
            one, other = (_token(*pair, decode) for pair in zip(tokens, values, strict=True))
            return at, FirstDifference(kind="log-prob", one=one, other=other, **spot)
    return None


def _token(tokens: list[int], logprobs: list[float], decode: Decode) -> str:
    if not tokens:
        return "none: the segment is over"
    return f"{tokens[0]} {decode(tokens)!r}" + (f" (log-prob {logprobs[0]:.8g})" if logprobs else "")
