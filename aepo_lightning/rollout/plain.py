"""Rollout trees as plain values and back."""

from dataclasses import fields
from functools import cache
from typing import Any

from aepo_lightning.contracts.generation import StopReason
from aepo_lightning.contracts.question import Message, Question, SegmentSource
from aepo_lightning.contracts.reward import RewardOutput
from aepo_lightning.contracts.tool import ToolCall, ToolResult, ToolStatus
from aepo_lightning.contracts.tree import BranchDecision, Leaf, LeafOrigin, RolloutTree, Segment, UnusedCall
from aepo_lightning.errors import DataError


def tree_to_dict(tree: RolloutTree) -> dict[str, Any]:
    """Return the tree as plain values: what would be the same if it grew again, and how long its tools took.

    The question's own corpus is left out: tool results are in the segments. When things happened is kept elsewhere
    (`times.py`).
    """
    # `asdict` would copy every list of tokens element by element.
    plain = fields_of(tree)
    plain["question"] = fields_of(tree.question)
    del plain["question"]["documents"]
    plain["question"]["metadata"] = dict(tree.question.metadata)
    plain["question"]["messages"] = [fields_of(message) for message in tree.question.messages]
    plain["segments"] = [_with_plain(segment, "tool_call", "tool_result") for segment in tree.segments]
    for segment in plain["segments"]:
        del segment["span_s"]
    plain["leaves"] = [_with_plain(leaf, "reward") for leaf in tree.leaves]
    plain["decisions"] = [fields_of(decision) for decision in tree.decisions]
    plain["unused_calls"] = [_with_plain(unused, "call", "result") for unused in tree.unused_calls]
    return plain


def fields_of(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass by name, without copying what they hold."""
    kind: Any = type(value)
    return {name: getattr(value, name) for name in _names(kind)}


@cache
def _names(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


def _with_plain(value: Any, *names: str) -> dict[str, Any]:
    """Return the fields of a dataclass, those of `names` as plain values, too, where they are not None."""
    plain = fields_of(value)
    for name in names:
        plain[name] = None if plain[name] is None else fields_of(plain[name])
    return plain


def tree_from_dict(plain: dict[str, Any]) -> RolloutTree:
    """Rebuild a tree from `tree_to_dict`.

    Raises:
        DataError: If a field is missing or of the wrong kind.
    """
    try:
        values = dict(plain)
        question = dict(values.pop("question"))
        question["messages"] = tuple(Message(**message) for message in question["messages"])
        question["answers"] = tuple(question["answers"])
        values["segments"] = [_segment(segment) for segment in values["segments"]]
        values["leaves"] = [_leaf(leaf) for leaf in values["leaves"]]
        values["decisions"] = [BranchDecision(**_with_path(each)) for each in values["decisions"]]
        values["unused_calls"] = [_unused_call(each) for each in values["unused_calls"]]
        return RolloutTree(question=Question(**question), **values)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"A stored tree must have the fields of `RolloutTree`, but: {error!r}.") from error


def _segment(plain: dict[str, Any]) -> Segment:
    values = dict(plain, source=SegmentSource(plain["source"]))
    if values["tool_call"] is not None:
        values["tool_call"] = ToolCall(**values["tool_call"])
    if values["tool_result"] is not None:
        values["tool_result"] = _result(values["tool_result"])
    return Segment(**values)


def _leaf(plain: dict[str, Any]) -> Leaf:
    values = _with_path(plain)
    values |= {"origin": LeafOrigin(plain["origin"]), "stop_reason": StopReason(plain["stop_reason"])}
    if values["reward"] is not None:
        values["reward"] = RewardOutput(**values["reward"])
    return Leaf(**values)


def _unused_call(plain: dict[str, Any]) -> UnusedCall:
    values = _with_path(plain)
    return UnusedCall(**{**values, "call": ToolCall(**values["call"]), "result": _result(values["result"])})


def _result(plain: dict[str, Any]) -> ToolResult:
    return ToolResult(**{**plain, "status": ToolStatus(plain["status"])})


def _with_path(plain: dict[str, Any]) -> dict[str, Any]:
    return {**plain, "seed_path": tuple(plain["seed_path"])}
