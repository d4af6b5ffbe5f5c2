"""The state of one chain: a trajectory in the making, from the root or from a branch point to its leaf."""

from dataclasses import dataclass, field

from aepo_lightning.contracts.tool import ToolCall, ToolResult
from aepo_lightning.contracts.tree import LeafOrigin


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnMeasurement:
    """What one turn told about the policy's uncertainty after a tool result."""

    branch_point: int
    """Segment after which a branch would start: the tool result."""
    turn: int
    num_tool_calls: int
    """Calls that the chain had made by then."""
    entropy: float
    """Aggregated entropy of the turn after the tool result; what pre-monitoring averages."""
    signal: float
    """What the branch decision compares with `initial_entropy`: the entropy of this turn or of the one before."""
    initial_entropy: float


@dataclass(slots=True, kw_only=True)
class Chain:
    """Where a chain stands. A branch copies the state of its trunk and goes on alone."""

    segment_id: int
    """The chain's last segment."""
    seed_path: tuple[int | str, ...]
    root: int
    """Index of the root chain that this one descends from."""
    origin: LeafOrigin
    token_ids: list[int]
    """Everything from the prompt on."""
    turn: int = 0
    born_at: int = -1
    """The turn that a branch resamples. Its trunk has already decided there, so the branch does not."""
    num_tool_calls: int = 0
    consecutive_branches: int = 0
    """l: decisions in a row, up to now, that opened a branch."""
    initial_entropy: float | None = None
    previous_entropy: float = 0.0
    tool_calls: tuple[ToolCall, ...] = ()
    tool_results: tuple[ToolResult, ...] = ()
    measurements: list[TurnMeasurement] = field(default_factory=list)
    """Turns after a tool result, in order; a probe's branch decisions are taken from them once the split is known."""

    @property
    def history(self) -> tuple[tuple[ToolCall, ToolResult], ...]:
        """The chain's calls so far and their answers."""
        return tuple(zip(self.tool_calls, self.tool_results, strict=True))

    def branch(self, measurement: TurnMeasurement, index: int, end: int, keep_baseline: bool) -> "Chain":
        """Return a sibling that starts where a turn was measured, after the first `end` tokens of this chain."""
        turn = measurement.turn
        return Chain(
            segment_id=measurement.branch_point,
            token_ids=self.token_ids[:end],
            seed_path=(*self.seed_path, "b", turn, index),
            root=self.root,
            origin=LeafOrigin.BRANCH,
            turn=turn,
            born_at=turn,
            num_tool_calls=measurement.num_tool_calls,
            consecutive_branches=self.consecutive_branches,
            initial_entropy=self.initial_entropy if keep_baseline else None,
            previous_entropy=self.previous_entropy,
            tool_calls=self.tool_calls[: measurement.num_tool_calls],
            tool_results=self.tool_results[: measurement.num_tool_calls],
        )
