"""A tree as the plain values that a page draws. Texts are in it as they were written: nothing here makes markup."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aepo_lightning.app.view.decisions import Explainer
from aepo_lightning.app.view.token_text import TokenTexts
from aepo_lightning.app.view.updates import TreeKey, TreeUpdate, key_of
from aepo_lightning.contracts.question import SegmentSource
from aepo_lightning.contracts.reward import RewardOutput
from aepo_lightning.contracts.tool import ToolCall, ToolResult
from aepo_lightning.contracts.tree import BranchDecision, Leaf, RolloutTree, Segment

UNIT = 1e4
"""Entropies and log-probs are whole numbers of 1 / UNIT nats in a page: they compress to a third."""
LeafAdvantages = Callable[[RolloutTree], list[float | None] | None]


class Vocabulary:
    """Texts of tokens by number, each once for a page."""

    def __init__(self, texts: TokenTexts) -> None:
        self._texts = texts
        self._numbers: dict[str, int] = {}

    def numbers(self, token_ids: Sequence[int]) -> list[int]:
        """Return the numbers of the texts of some tokens in a row."""
        return [self._numbers.setdefault(piece, len(self._numbers)) for piece in self._texts.pieces(token_ids)]

    @property
    def texts(self) -> list[str]:
        """The texts, in the order of their numbers."""
        return list(self._numbers)


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeWriter:
    """Makes plain values of trees."""

    vocabulary: Vocabulary
    explainer: Explainer
    advantages: LeafAdvantages
    updates: Mapping[TreeKey, TreeUpdate] = field(default_factory=dict)

    def __call__(self, tree: RolloutTree) -> dict[str, Any]:
        """Return everything that is known of a tree."""
        question = tree.question
        leaves = {leaf.seed_path: index for index, leaf in enumerate(tree.leaves)}
        advantages = self.advantages(tree) or [None] * len(tree.leaves)
        update = self.updates.get(key_of(tree))
        return {
            "id": question.question_id,
            "messages": [[message.role, message.content] for message in question.messages],
            "answers": list(question.answers),
            "metadata": _readable(question.metadata),
            "segments": [self._segment(segment) for segment in tree.segments],
            "leaves": [
                {
                    **self._leaf(leaf, leaves, advantages[i]),
                    "update": None if update is None else _update(update, tree, i),
                }
                for i, leaf in enumerate(tree.leaves)
            ],
            "update": None if update is None else _step(update),
            "decisions": [self._decision(tree, each, leaves) for each in tree.decisions if self.explainer.can_branch],
            "unused": [
                {"chain": _name(each.seed_path), "index": each.call_index, **_call(each.call), **_result(each.result)}
                for each in tree.unused_calls
            ],
            "facts": {
                "m, global budget": tree.global_budget,
                "k - m, branch budget": tree.branch_budget,
                "entropy at the root": round(tree.root_entropy, 6),
                "entropies after the probe's tool results": [round(each, 6) for each in tree.tool_entropies],
                "temperature": tree.temperature,
                "seed": str(tree.seed),
                "optimiser steps of the weights": tree.weights_version,
                "tokens sampled": tree.num_generated_tokens,
                "tokens discarded": tree.num_discarded_tokens,
            },
        }

    def unfinished(self, tree: RolloutTree) -> dict[str, Any]:
        """Return what is known of a tree whose rollout is not over: `unfinished` is True, no trajectory has ended."""
        plain = self(tree)
        leaves = [{**leaf, "stop": "unfinished"} for leaf in plain["leaves"]]
        return {**plain, "unfinished": True, "leaves": leaves, "facts": {"seed": str(tree.seed)}}

    def _segment(self, segment: Segment) -> dict[str, Any]:
        plain: dict[str, Any] = {
            "parent": segment.parent_id,
            "source": segment.source.value,
            "tokens": self.vocabulary.numbers(segment.token_ids),
        }
        if segment.source is SegmentSource.POLICY:
            plain["H"] = [round(value * UNIT) for value in segment.entropies]
            plain["logp"] = [round(value * UNIT) for value in segment.logprobs]
        if segment.tool_call is not None:
            plain |= _call(segment.tool_call)
        if segment.tool_result is not None:
            plain |= _result(segment.tool_result)
        if segment.span_s is not None:
            plain["span"] = [round(second, 5) for second in segment.span_s]
        if segment.is_branch_point:
            plain["branches"] = True
        return plain

    def _leaf(self, leaf: Leaf, leaves: dict[Any, int], advantage: float | None) -> dict[str, Any]:
        return {
            "segment": leaf.segment_id,
            "origin": leaf.origin.value,
            "stop": leaf.stop_reason.value,
            "chain": _name(leaf.seed_path),
            # A branch is named after its trunk, the turn and its number there.
            "trunk": leaves.get(leaf.seed_path[:-3]) if len(leaf.seed_path) > 3 else None,
            "calls": leaf.num_tool_calls,
            "reward": None if leaf.reward is None else _reward(leaf.reward),
            "advantage": None if advantage is None else round(advantage, 6),
        }

    def _decision(self, tree: RolloutTree, decision: BranchDecision, leaves: dict[Any, int]) -> dict[str, Any]:
        leaf = leaves.get(decision.seed_path)
        return {
            "leaf": leaf,
            "segment": None if leaf is None else branch_point(tree, tree.leaves[leaf], decision.turn),
            "chain": _name(decision.seed_path),
            "turn": decision.turn,
            **self.explainer.explain(tree, decision),
        }


def branch_point(tree: RolloutTree, leaf: Leaf, turn: int) -> int:
    """Return the segment after which the decision of a chain at a turn was taken: the tool result before that turn."""
    path = tree.path(leaf.segment_id)
    turns = [place for place, segment in enumerate(path) if segment.source is SegmentSource.POLICY]
    place = turns[turn] - 1 if turn < len(turns) else len(path) - 1
    return path[place].segment_id


def _step(update: TreeUpdate) -> dict[str, Any]:
    return {"step": update.step, "loss": update.loss, "logged": update.logged_loss, "states": list(update.states)}


def _update(update: TreeUpdate, tree: RolloutTree, index: int) -> dict[str, Any] | None:
    own = update.of(tree, index)
    if own is None:
        return None
    ratios, advantages = ([round(value, 5) for value in values] for values in (own.ratio, own.advantage))
    return {
        "gap": [round(value * UNIT) for value in own.gap],
        "ratio": ratios,
        "clip": list(own.clip),
        "advantage": advantages,
    }


def _name(seed_path: Sequence[int | str]) -> str:
    return "/".join(map(str, seed_path))


def _reward(reward: RewardOutput) -> dict[str, Any]:
    return {
        "value": round(reward.reward, 6),
        "correct": reward.is_correct,
        "formed": reward.is_well_formed,
        "f1": round(reward.f1, 6),
        "answer": reward.answer,
        "reason": reward.reason,
        "scored": reward.is_scored,
        "failed": reward.has_failed,
        "terms": {name: round(value, 6) for name, value in reward.terms.items()},
    }


def _call(call: ToolCall) -> dict[str, Any]:
    return {
        "call": {
            "tool": call.tool,
            "text": call.text,
            "problem": call.problem,
            "arguments": None if call.arguments is None else _readable(call.arguments),
        }
    }


def _result(result: ToolResult) -> dict[str, Any]:
    return {
        "result": {
            "text": result.text,
            "status": result.status.value,
            "duration": round(result.duration_s, 5),
            "queue": round(result.queue_s, 5),
            "attempts": result.num_attempts,
            "truncated": result.is_truncated,
            "cached": result.is_cached,
            "shared": result.is_shared,
            "program_timeout": result.is_program_timeout,
        }
    }


def _readable(values: Any) -> dict[str, str]:
    return {str(name): value if isinstance(value, str) else repr(value) for name, value in dict(values).items()}
