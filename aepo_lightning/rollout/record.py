"""What the chains of one question have done so far, by where they did it: the memory behind recovery and replay.

Every generation, tool call and branch decision is reported as one event as soon as it is over. A group that grows with
a record takes from it what is there instead of doing it again. A record with everything continues a group that a crash
has cut; a record without generations replays a finished tree offline, against the same tool results.
"""

import struct
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aepo_lightning.contracts.generation import FinishReason, Generation, StopReason
from aepo_lightning.contracts.question import SegmentSource
from aepo_lightning.contracts.tool import ToolCall, ToolResult, ToolStatus
from aepo_lightning.contracts.tree import BranchDecision, RolloutTree
from aepo_lightning.rollout.plain import fields_of

SeedPath = tuple[int | str, ...]
Event = dict[str, Any]
EventSink = Callable[[Event], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRecord:
    """Finished steps of one question's chains. Empty, it remembers nothing and changes nothing."""

    generations: Mapping[tuple[SeedPath, int], Generation] = field(default_factory=dict)
    """By chain and turn."""
    calls: Mapping[tuple[SeedPath, int], tuple[ToolCall, ToolResult]] = field(default_factory=dict)
    """By chain and number of the call."""
    decisions: Mapping[tuple[SeedPath, int], int] = field(default_factory=dict)
    """Branches that were opened, by chain and turn."""
    timeouts: Mapping[SeedPath, tuple[int, int]] = field(default_factory=dict)
    """Turns and answered calls of the chains whose time was over, by chain."""

    def result(self, chain: SeedPath, index: int, call: ToolCall) -> ToolResult | None:
        """Return the recorded answer to the same call of the same chain, or None."""
        recorded, result = self.calls.get((chain, index), (None, None))
        return result if recorded == call else None


def record_of(tree: RolloutTree) -> GroupRecord:
    """Return the tool results, branch decisions and timeouts of a finished tree, for its replay."""
    calls: dict[tuple[SeedPath, int], tuple[ToolCall, ToolResult]] = {}
    timeouts: dict[SeedPath, tuple[int, int]] = {}
    for leaf in tree.leaves:
        path = tree.path(leaf.segment_id)
        answers = [segment for segment in path if segment.source is SegmentSource.TOOL]
        if leaf.stop_reason is StopReason.TIMEOUT:
            timeouts[leaf.seed_path] = (len([s for s in path if s.source is SegmentSource.POLICY]), len(answers))
        for index, segment in enumerate(answers):
            assert segment.tool_call is not None, "a tool segment answers a call"
            assert segment.tool_result is not None, "a tool segment holds a result"
            calls[leaf.seed_path, index] = (segment.tool_call, segment.tool_result)
    for unused in tree.unused_calls:
        calls[unused.seed_path, unused.call_index] = (unused.call, unused.result)
    decisions = {(decision.seed_path, decision.turn): decision.num_opened for decision in tree.decisions}
    return GroupRecord(calls=calls, decisions=decisions, timeouts=timeouts)


def generation_event(chain: SeedPath, turn: int, generation: Generation) -> Event:
    """Return the event of a finished generation."""
    return {
        "chain": chain,
        "turn": turn,
        "token_ids": generation.token_ids,
        "logprobs": _pack(generation.logprobs),
        "entropies": _pack(generation.entropies),
        "finish_reason": generation.finish_reason,
        "top_logprobs": generation.top_logprobs,
        "num_cached_tokens": generation.num_cached_tokens,
    }


def call_event(chain: SeedPath, index: int, call: ToolCall, result: ToolResult) -> Event:
    """Return the event of an answered tool call."""
    return {"chain": chain, "call_index": index, "call": fields_of(call), "result": fields_of(result)}


def decision_event(decision: BranchDecision) -> Event:
    """Return the event of a branch decision, with all that was known, for whoever watches."""
    return {
        "chain": decision.seed_path,
        "turn": decision.turn,
        "num_branches": decision.num_opened,
        "decision": fields_of(decision),
    }


def timeout_event(chain: SeedPath, num_turns: int, num_tool_calls: int) -> Event:
    """Return the event of a chain whose time is over."""
    return {"chain": chain, "timeout": [num_turns, num_tool_calls]}


def read_events(events: list[Event]) -> GroupRecord:
    """Rebuild a record from the events of one question.

    Raises:
        KeyError: If an event lacks a field.
        ValueError: If a field has a value without meaning.
        struct.error: If numbers are cut.
    """
    generations: dict[tuple[SeedPath, int], Generation] = {}
    calls: dict[tuple[SeedPath, int], tuple[ToolCall, ToolResult]] = {}
    decisions: dict[tuple[SeedPath, int], int] = {}
    timeouts: dict[SeedPath, tuple[int, int]] = {}
    for event in events:
        fields = dict(event)
        chain = tuple(fields.pop("chain"))
        if "token_ids" in fields:
            turn = fields.pop("turn")
            fields["finish_reason"] = FinishReason(fields["finish_reason"])
            fields |= {name: _unpack(fields[name]) for name in ("logprobs", "entropies")}
            generations[chain, turn] = Generation(**fields)
        elif "call" in fields:
            result = {**fields["result"], "status": ToolStatus(fields["result"]["status"])}
            calls[chain, fields["call_index"]] = (ToolCall(**fields["call"]), ToolResult(**result))
        elif "timeout" in fields:
            num_turns, num_tool_calls = fields["timeout"]
            timeouts[chain] = (num_turns, num_tool_calls)
        else:
            decisions[chain, fields["turn"]] = fields["num_branches"]
    return GroupRecord(generations=generations, calls=calls, decisions=decisions, timeouts=timeouts)


def _pack(values: list[float]) -> str:
    """Return numbers as text, exact and ten times faster than digits."""
    return b64encode(struct.pack(f"<{len(values)}d", *values)).decode()


def _unpack(text: str) -> list[float]:
    return [value for (value,) in struct.iter_unpack("<d", b64decode(text, validate=True))]


def first_tokens(generation: Generation, number: int) -> Generation:
    """Return what a probe callback saw of a generation: its first tokens, or all of it if there are no more."""
    if len(generation.token_ids) <= number:
        return generation
    return Generation(
        token_ids=generation.token_ids[:number],
        logprobs=generation.logprobs[:number],
        entropies=generation.entropies[:number],
        finish_reason=FinishReason.LENGTH,
        top_logprobs=generation.top_logprobs[:number],
        num_cached_tokens=generation.num_cached_tokens,
    )


def difference(expected: RolloutTree, found: RolloutTree) -> str | None:
    """Return where two trees of one question differ first, or None if every trajectory is the same token by token."""
    if expected.global_budget != found.global_budget:
        return f"global budget {expected.global_budget}, replayed as {found.global_budget}"
    theirs = {leaf.seed_path: leaf for leaf in found.leaves}
    for leaf in expected.leaves:
        name = "/".join(map(str, leaf.seed_path))
        other = theirs.get(leaf.seed_path)
        if other is None:
            return f"trajectory {name} is missing"
        old, new = expected.token_ids(leaf.segment_id), found.token_ids(other.segment_id)
        if old != new:
            place = next((i for i, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]), None)
            place = min(len(old), len(new)) if place is None else place
            return (
                f"trajectory {name}, token {place} of {len(old)}: {old[place : place + 1]} is {new[place : place + 1]}"
            )
        if leaf.stop_reason is not other.stop_reason:
            return f"trajectory {name} ended with {leaf.stop_reason}, replayed with {other.stop_reason}"
    extra = set(theirs) - {leaf.seed_path for leaf in expected.leaves}
    return f"{len(extra)} trajectories more" if extra else None
