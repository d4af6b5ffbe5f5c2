"""Tools of a chain that goes on: the journal answers calls that were made before, the tools themselves all others."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from aepo_lightning.contracts.question import SegmentSource
from aepo_lightning.contracts.tool import (
    BranchingToolRunner,
    ToolCall,
    ToolContext,
    ToolResult,
    ToolSpec,
    ToolState,
    ToolStatus,
)
from aepo_lightning.contracts.tree import RolloutTree
from aepo_lightning.rollout.record import SeedPath

History = Sequence[tuple[ToolCall, ToolResult]]
_Place = tuple[object, ...]
_OF_THE_CHAIN = frozenset({ToolStatus.CALL_LIMIT, ToolStatus.REPEATED})
"""What no tool has said."""


@dataclass(slots=True, kw_only=True)
class RecordedCalls:
    """The calls of a saved tree and their results."""

    specs: dict[str, ToolSpec]
    own: dict[int, tuple[_Place, ToolResult]]
    """Of one chain, by the number of the call."""
    all: dict[_Place, ToolResult]

    @classmethod
    def of(cls, tree: RolloutTree, chain: SeedPath, specs: Sequence[ToolSpec]) -> "RecordedCalls":
        """Read the calls of a tree.

        Args:
            tree: Saved.
            chain: Whose own results come before those of the other chains.
            specs: What the tools say of themselves: whether an answer depends on calls before.
        """
        found = cls(specs={spec.name: spec for spec in specs}, own={}, all={})
        for path, history in _histories(tree):
            for index, (call, result) in enumerate(history):
                place = found.place(call, history[:index])
                if path == chain:
                    found.own[index] = (place, result)
                if result.status not in _OF_THE_CHAIN and not result.is_outage:
                    found.all.setdefault(place, result)
        return found

    def result(self, call: ToolCall, index: int, history: History) -> ToolResult | None:
        """Return what the same call was answered, or None.

        Args:
            call: Of a chain.
            index: Its number there.
            history: The calls before it.
        """
        place = self.place(call, history)
        own = self.own.get(index)
        return own[1] if own is not None and own[0] == place else self.all.get(place)

    def place(self, call: ToolCall, history: History) -> _Place:
        """Return what an answer depends on: the call and, as far as the tool looks at them, those before it."""
        spec = self.specs.get(call.tool)
        if spec is not None and spec.is_history_bound:
            return _words(call), *((_words(each), result.text) for each, result in history)
        if spec is not None and spec.state is not ToolState.STATELESS:
            return _words(call), *(_words(each) for each, _ in history if each.tool == call.tool)
        return (_words(call),)


def _words(call: ToolCall) -> tuple[str, str, str, str]:
    arguments = "" if call.arguments is None else json.dumps(call.arguments, sort_keys=True, default=str)
    return call.tool, call.text, call.problem, arguments


def _histories(tree: RolloutTree) -> Iterator[tuple[SeedPath, History]]:
    """Yield the calls of each chain, also of those that no trajectory is left of."""
    unused: dict[SeedPath, list[tuple[ToolCall, ToolResult]]] = {}
    for each in sorted(tree.unused_calls, key=lambda each: each.call_index):
        unused.setdefault(each.seed_path, []).append((each.call, each.result))
    for leaf in tree.leaves:
        path = [each for each in tree.path(leaf.segment_id) if each.source is SegmentSource.TOOL]
        calls = [(each.tool_call, each.tool_result) for each in path]
        known = [(call, result) for call, result in calls if call is not None and result is not None]
        yield leaf.seed_path, [*known, *unused.pop(leaf.seed_path, [])]
    yield from unused.items()


@dataclass(slots=True, kw_only=True)
class JournalTools:
    """A runner that asks the journal first. Counts what came from where."""

    recorded: RecordedCalls
    tools: BranchingToolRunner
    is_offline: bool
    """Whether a call that is not on record is refused instead of made."""
    num_recorded: int = field(default=0, init=False)
    num_made: int = field(default=0, init=False)
    num_refused: int = field(default=0, init=False)

    @property
    def tool_names(self) -> tuple[str, ...]:
        """Names of the tools, in the order given."""
        return self.tools.tool_names

    @property
    def specs(self) -> tuple[ToolSpec, ...]:
        """What the tools say of themselves."""
        return self.tools.specs

    async def call(self, call: ToolCall, context: ToolContext) -> ToolResult:
        """Answer from the journal, or by the tool itself."""
        recorded = self.recorded.result(call, context.call_index, context.history)
        if recorded is not None:
            self.num_recorded += 1
            return recorded
        if self.is_offline:
            self.num_refused += 1
            return ToolResult(text="Error: no result of this call is on record.", status=ToolStatus.ERROR)
        self.num_made += 1
        return await self.tools.call(call, context)

    async def start(self) -> None:
        """Have the tools make ready."""
        if not self.is_offline:
            await self.tools.start()

    def branch_problem(self, history: Sequence[tuple[ToolCall, ToolResult]]) -> str | None:
        """Return why a chain with these calls must not branch, or None if it may."""
        return self.tools.branch_problem(history)

    def branch(self, source: ToolContext, target: ToolContext) -> None:
        """Have the states of the tools follow a branch."""
        self.tools.branch(source, target)

    async def release(self, context: ToolContext) -> None:
        """Free the states of a chain that has ended."""
        await self.tools.release(context)

    async def close(self) -> None:
        """Free what the tools hold."""
        if not self.is_offline:
            await self.tools.close()
