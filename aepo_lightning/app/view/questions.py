"""A question in one row: how far its trajectories differ, where they part, what went wrong."""

from collections.abc import Sequence
from itertools import pairwise
from statistics import pstdev
from typing import Any

from aepo_lightning.contracts.generation import StopReason
from aepo_lightning.contracts.tool import ToolStatus
from aepo_lightning.contracts.tree import Leaf, RolloutTree

_SHOWN_CHARS = 240


def question_row(tree: RolloutTree) -> dict[str, Any]:
    """Return what the list of questions shows, sorts and filters by.

    Keys: `id`, `text` (the last message, cut), `answers`, `given` (answers of the leaves, each once), `rewards` (None
    where there is none), `correct`, `spread` (standard deviation of the rewards), `shared` (response tokens that two
    trajectories of different rewards have in common before they part; None if all rewards are equal), `failures`,
    `branches`, `penalised`, `decisions`, `tokens`.
    """
    scored = [(leaf, leaf.reward) for leaf in tree.leaves if leaf.reward is not None and leaf.reward.is_scored]
    rewards = [reward.reward for _, reward in scored]
    answers = (leaf.reward.answer for leaf in tree.leaves if leaf.reward is not None)
    messages = tree.question.messages
    return {
        "id": tree.question.question_id,
        "text": messages[-1].content[:_SHOWN_CHARS] if messages else "",
        "answers": [answer[:_SHOWN_CHARS] for answer in tree.question.answers[:5]],
        "given": [answer[:_SHOWN_CHARS] for answer in list(dict.fromkeys(answers))[:16]],
        "rewards": [
            round(leaf.reward.reward, 6) if leaf.reward is not None and leaf.is_scored else None for leaf in tree.leaves
        ],
        "correct": [leaf.reward is not None and leaf.reward.is_correct for leaf in tree.leaves],
        "spread": round(pstdev(rewards), 6) if rewards else 0.0,
        "shared": shared_tokens(tree, [(leaf, reward.reward) for leaf, reward in scored]),
        "failures": num_failures(tree),
        "branches": sum(decision.num_opened for decision in tree.decisions),
        "penalised": sum(decision.is_penalised for decision in tree.decisions),
        "decisions": len(tree.decisions),
        "tokens": tree.num_generated_tokens,
    }


def unfinished_row(tree: RolloutTree) -> dict[str, Any]:
    """Return the row of a question whose tree is not finished: `unfinished` is True, and only failed calls count."""
    row = question_row(tree)
    return {**row, "unfinished": True, "failures": row["failures"] - len(tree.leaves)}


def shared_tokens(tree: RolloutTree, scored: Sequence[tuple[Leaf, float]]) -> int | None:
    """Return after how many common response tokens two trajectories of different rewards part at the latest.

    Args:
        tree: Finished.
        scored: Leaves with their rewards.

    Returns:
        None if all rewards are equal.
    """
    start = tree.segments[0].end if tree.segments else 0
    paths = sorted((tree.token_ids(leaf.segment_id)[start:], reward) for leaf, reward in scored)
    # Between two that differ in reward lie, in this order, two neighbours that do and share at least as much.
    common = [_common(one, other) for (one, a), (other, b) in pairwise(paths) if a != b]
    return max(common, default=None)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def num_failures(tree: RolloutTree) -> int:
    """Return how many tool calls failed, trajectories were cut off, and rewards could not be computed."""
    results = [segment.tool_result for segment in tree.segments if segment.tool_result is not None]
    results += [unused.result for unused in tree.unused_calls]
    fine = (ToolStatus.OK, ToolStatus.EMPTY)
    failed = sum(result.status not in fine for result in results)
    cut = sum(leaf.stop_reason is not StopReason.EOS for leaf in tree.leaves)
    unscored = sum(leaf.reward is None or not leaf.is_scored or leaf.reward.has_failed for leaf in tree.leaves)
    return failed + cut + unscored
