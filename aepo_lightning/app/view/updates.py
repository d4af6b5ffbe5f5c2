"""What the update made of the tokens of trees: their optimiser steps made again, and kept beside the trees.

A run saves trees before the update, and no value of single tokens after it. The steps of an iteration can be made again
from what it has kept; what they say of each token goes to `rollouts/updates/`, which may be deleted without harm.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from aepo_lightning.app.clip_states import ClipStates
from aepo_lightning.app.relived_step import RelivedStep, relive_iteration
from aepo_lightning.atomic_files import replacing
from aepo_lightning.contracts.batch import TrajectoryBatch
from aepo_lightning.contracts.question import SegmentSource
from aepo_lightning.contracts.tree import RolloutTree
from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.rollout.checked_lines import read_lines, to_text
from aepo_lightning.training.loss import LossParts

logger = logging.getLogger(__name__)

FOLDER = "updates"
_DIGITS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafUpdate:
    """What a step made of a trajectory: one entry for each token that the policy sampled, from first to last."""

    gap: Sequence[float]
    """Log-prob by the trainer before the update less that by the engine, in nats."""
    ratio: Sequence[float]
    """What the objective clips."""
    clip: Sequence[int]
    """Where it lies beside the clip range: a place in the tree's `states`."""
    advantage: Sequence[float]
    """After shaping and masks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeUpdate:
    """What a step made of a tree."""

    step: int
    """Optimiser steps before it, in the whole run."""
    loss: float
    """Of the whole step, as it came out again."""
    logged_loss: float | None
    """Of the whole step, as the run logged it."""
    states: Sequence[str]
    """Where tokens are beside the clip range, in words."""
    leaves: Mapping[int, LeafUpdate]
    """By place in the tree. Those without a reward, or left out of the step, are not there."""

    def of(self, tree: RolloutTree, index: int) -> LeafUpdate | None:
        """Return what is known of a trajectory of the tree; None if it is not of this tree's tokens."""
        found = self.leaves.get(index)
        path = tree.path(tree.leaves[index].segment_id)
        num_sampled = sum(len(segment.token_ids) for segment in path if segment.source is SegmentSource.POLICY)
        return found if found is not None and len(found.gap) == num_sampled else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Relived:
    """How much of an iteration was made again."""

    num_steps: int
    num_trees: int
    problem: str
    """Why the others could not be; empty if there are none."""


TreeKey = tuple[str, int, str]


def key_of(tree: RolloutTree) -> TreeKey:
    """Return what names a tree: another one of the same question has another seed, or other weights and settings."""
    return tree.question.question_id, tree.seed, tree.stamp


def updates_path(folder: Path, name: str) -> Path:
    """Return the file of an iteration, such as `train-00012`, in the folder of a run."""
    return folder / "rollouts" / FOLDER / f"{name}.jsonl"


def relive_updates(folder: Path, name: str, allowed: Sequence[str] = ()) -> Relived:
    """Make the steps of an iteration again, as many as can be, and keep what they say of each token.

    Args:
        folder: Of the run.
        name: Of the iteration, such as `train-00012`.
        allowed: What the configuration may call beside the parts of this library.

    Raises:
        ConfigError: If no step can be made again.
        DataError: If a file is damaged.
    """
    lines: list[str] = []
    steps: list[RelivedStep] = []
    problem = ""
    try:
        for relived in relive_iteration(folder, int(name.rpartition("-")[2]), allowed):
            steps.append(relived)
            for group, update in updates_of(relived).items():
                lines.append(to_text(_plain(relived.trees[group], update)))
    except ConfigError as error:
        if not lines:
            raise
        problem = str(error)
    path = updates_path(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text("".join(lines), encoding="utf-8")
    return Relived(num_steps=len(steps), num_trees=len(lines), problem=problem)


def read_updates(path: Path) -> dict[TreeKey, TreeUpdate]:
    """Return what is known by tree; nothing without a file. Lines that are damaged are logged and left out."""
    found: dict[TreeKey, TreeUpdate] = {}
    for line in read_lines(path):
        try:
            plain = line.load()
            key = (plain.pop("question"), plain.pop("seed"), plain.pop("stamp"))
            leaves = {int(index): LeafUpdate(**each) for index, each in plain.pop("leaves").items()}
            found[key] = TreeUpdate(leaves=leaves, **plain)
        except (DataError, KeyError, TypeError) as error:
            logger.warning("%s, line %d: %s", path, line.number, error)
    return found


def _plain(tree: RolloutTree, update: TreeUpdate) -> dict[str, Any]:
    question, seed, stamp = key_of(tree)
    return {"question": question, "seed": seed, "stamp": stamp, **asdict(update)}


class _Token(NamedTuple):
    gap: float
    ratio: float
    state: str
    advantage: float


_Rows = dict[tuple[int, ...], list[_Token]]
"""Of trajectories by all their tokens, what is known of those that the policy sampled."""


def updates_of(relived: RelivedStep) -> dict[int, TreeUpdate]:
    """Return what a step makes of its trees, by their place in the iteration."""
    loss, step = relived.module.policy_loss, relived.minibatch
    total, found = 0.0, defaultdict[int, _Rows](dict)
    for batch in step.micro_batches:
        parts = _parts(relived, batch)
        total += float(
            loss.aggregation(parts.total, batch.response_mask, step.global_num_tokens, step.global_num_sequences)
        )
        states = ClipStates(loss, parts)
        for row, length in enumerate(batch.lengths.tolist()):
            if length:
                own = tuple(batch.input_ids[row, :length].tolist())
                found[int(batch.group_index[row])][own] = _tokens(row, batch, parts, states)
    return {group: _tree_update(relived, relived.trees[group], rows, total) for group, rows in sorted(found.items())}


def _parts(relived: RelivedStep, batch: TrajectoryBatch) -> LossParts:
    with torch.no_grad():
        network = relived.module.trained_network()
        scores = network(batch.input_ids, batch.response_mask, batch.temperature, packed=batch.packed)
        return relived.module.policy_loss.parts(scores, batch)


def _tokens(row: int, batch: TrajectoryBatch, parts: LossParts, states: ClipStates) -> list[_Token]:
    own, inputs = batch.response_mask[row], parts.inputs
    gaps = (inputs.old_logprobs - batch.sampler_logprobs)[row][own].tolist()
    advantages = inputs.advantages[row][own].tolist()
    told = zip(gaps, states.of_row(row), advantages, strict=True)
    return [_Token(gap, ratio, state, advantage) for gap, (ratio, state), advantage in told]


def _tree_update(relived: RelivedStep, tree: RolloutTree, rows: _Rows, loss: float) -> TreeUpdate:
    states = sorted({token.state for tokens in rows.values() for token in tokens})
    leaves = {}
    for index, leaf in enumerate(tree.leaves):
        tokens = rows.get(tuple(tree.token_ids(leaf.segment_id)))
        if tokens is not None:
            leaves[index] = LeafUpdate(
                gap=[round(token.gap, _DIGITS) for token in tokens],
                ratio=[round(token.ratio, _DIGITS) for token in tokens],
                clip=[states.index(token.state) for token in tokens],
                advantage=[round(token.advantage, _DIGITS) for token in tokens],
            )
    return TreeUpdate(step=relived.step, loss=loss, logged_loss=relived.logged_loss, states=states, leaves=leaves)
