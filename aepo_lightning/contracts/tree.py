"""The rollout tree: segments with parents, trajectories as paths from the root to a leaf.

A segment is a run of tokens with one source. Branching adds a child; nothing is copied.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from math import prod
from typing import Literal

from aepo_lightning.contracts.generation import StopReason
from aepo_lightning.contracts.question import Question, SegmentSource
from aepo_lightning.contracts.reward import RewardOutput
from aepo_lightning.contracts.tool import ToolCall, ToolResult

LeafWeighting = Literal["uniform", "inverse_fan_out"]
"""How much each trajectory of a group counts: see `RolloutTree.leaf_weights`."""


class LeafOrigin(StrEnum):
    """How a trajectory came into its group."""

    PROBE = "probe"
    """The pre-monitoring trajectory, kept as one of the global samples."""
    ROOT = "root"
    """A global sample: an independent chain from the prompt."""
    BRANCH = "branch"
    TOP_UP = "top_up"
    """A fresh chain from the prompt because the branch budget was not used."""


@dataclass(slots=True, kw_only=True)
class Segment:
    """A node of the tree: tokens of one source that follow their parent's."""

    segment_id: int
    parent_id: int | None
    source: SegmentSource
    token_ids: list[int]
    logprobs: list[float] = field(default_factory=list)
    """The engine's log-probs; one per token for policy segments, else empty."""
    entropies: list[float] = field(default_factory=list)
    """The engine's entropies in nats; one per token for policy segments, else empty."""
    end: int = 0
    """Tokens from the root up to and including this segment."""
    tool_call: ToolCall | None = None
    """The call that a tool segment answers."""
    tool_result: ToolResult | None = None
    is_branch_point: bool = False
    """True if more than one chain continues from the end of this segment by a branch decision."""
    span_s: tuple[float, float] | None = field(default=None, compare=False)
    """When its generation, or the tool calls of its turn, began and were over, in seconds since the tree began to grow.
    None for prompts and for what was taken from a record. Equal trees may differ in it."""


@dataclass(slots=True, kw_only=True)
class Leaf:
    """The end of one trajectory."""

    segment_id: int
    origin: LeafOrigin
    stop_reason: StopReason
    seed_path: tuple[int | str, ...]
    """The branch path from which every random number of the chain was derived."""
    num_tool_calls: int = 0
    reward: RewardOutput | None = None

    @property
    def is_scored(self) -> bool:
        """Whether its reward could be computed."""
        return self.reward is not None and self.reward.is_scored


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchDecision:
    """What was known and decided when a chain went on after a tool result."""

    seed_path: tuple[int | str, ...]
    """The chain that decided."""
    root: int
    """Index of the root chain that it descends from."""
    turn: int
    """Tool calls that the chain had made: the depth of the branches."""
    entropy: float
    """What the rule compared with `initial_entropy`."""
    initial_entropy: float
    consecutive_branches: int
    """l: decisions in a row, before this one, that opened a branch."""
    num_wanted: int
    """Branches that the rule asked for."""
    num_opened: int
    """Branches that the budget allowed."""
    is_penalised: bool = False
    """True if the rule would have branched without its penalty for consecutive branches, and did not."""
    score_shift: float | None = None
    """How far entropy and penalty moved the rule's score from its base, alpha; None for a rule without these."""
    penalty_per_step: float | None = None
    """The rule's penalty at that moment: a callback may change it between iterations. None for a rule without one."""
    problem: str = ""
    """Why a branch that the rule asked for could not be, such as a tool whose state cannot be copied."""

    @property
    def is_high_entropy(self) -> bool:
        """Whether the policy was less certain than at the start of the chain."""
        return self.entropy > self.initial_entropy


@dataclass(frozen=True, slots=True, kw_only=True)
class UnusedCall:
    """A tool call whose result is in no segment: it did not fit, or its chain was discarded."""

    seed_path: tuple[int | str, ...]
    call_index: int
    call: ToolCall
    result: ToolResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """A path from the root to a leaf, flattened. The lists have one entry per token."""

    token_ids: list[int]
    is_sampled: list[bool]
    """True where the policy sampled the token."""
    logprobs: list[float]
    """Engine log-probs where sampled, else 0."""
    entropies: list[float]
    """Engine entropies where sampled, else 0."""
    prompt_length: int


@dataclass(slots=True, kw_only=True)
class RolloutTree:
    """The group of trajectories of one question, with shared prefixes stored once."""

    question: Question
    segments: list[Segment] = field(default_factory=list)
    leaves: list[Leaf] = field(default_factory=list)
    global_budget: int = 0
    """m: chains that started at the root because the budget said so."""
    branch_budget: int = 0
    """k - m: trajectories that could be spent on branches."""
    seed: int = 0
    temperature: float = 1.0
    """At which log-probs and entropies are those of the sampling distribution; 1 for greedy trees."""
    root_entropy: float = 0.0
    tool_entropies: list[float] = field(default_factory=list)
    """Entropies that pre-monitoring measured after each tool result of the probe."""
    decisions: list[BranchDecision] = field(default_factory=list)
    """Every branch decision; of a finished tree, chain by chain in the order of their turns."""
    unused_calls: list[UnusedCall] = field(default_factory=list)
    num_discarded_tokens: int = 0
    """Tokens that were generated but belong to no trajectory, such as those of a discarded probe."""
    num_prompt_tokens: int = 0
    """Tokens that the engine was given to continue, over all generations."""
    num_cached_tokens: int = 0
    """How many of them it did not have to compute, because their prefix was cached."""
    weights_version: int = 0
    """Optimiser steps that the weights had seen when the tree was grown."""
    stamp: str = ""
    """Names the weights and settings under which the tree was grown. Trees under another stamp are not taken over."""
    question_digest: str = ""
    """Names prompt, answers and documents of the question. Trees of another one under its id are not taken over."""

    def add(self, parent_id: int | None, source: SegmentSource, token_ids: list[int], **fields: object) -> Segment:
        """Append a segment below `parent_id` and return it.

        Raises:
            ValueError: If the parent does not exist, if a root is added to a tree that has one, or if a policy
                segment does not have one log-prob and one entropy for each token.
        """
        if (parent_id is None) != (not self.segments):
            raise ValueError(f"`parent_id` must be None for the first segment only, but got {parent_id!r}.")
        if parent_id is not None and not 0 <= parent_id < len(self.segments):
            raise ValueError(f"`parent_id` must name one of {len(self.segments)} segments, but got {parent_id}.")
        if source is SegmentSource.POLICY:
            counts = {name: len(fields.get(name, ())) for name in ("logprobs", "entropies")}  # type: ignore[arg-type]
            if set(counts.values()) != {len(token_ids)}:
                raise ValueError(
                    f"A policy segment of {len(token_ids)} tokens must have as many `logprobs` and `entropies`, "
                    f"but got {counts}. Check what the engine returned."
                )
        start = 0 if parent_id is None else self.segments[parent_id].end
        segment = Segment(
            segment_id=len(self.segments),
            parent_id=parent_id,
            source=source,
            token_ids=token_ids,
            end=start + len(token_ids),
            **fields,  # type: ignore[arg-type]
        )
        self.segments.append(segment)
        return segment

    def path(self, segment_id: int) -> list[Segment]:
        """Return the segments from the root to `segment_id`, in order."""
        path: list[Segment] = []
        current: int | None = segment_id
        while current is not None:
            path.append(self.segments[current])
            current = self.segments[current].parent_id
        return path[::-1]

    def token_ids(self, segment_id: int) -> list[int]:
        """Return all tokens from the root up to and including `segment_id`."""
        return [token for segment in self.path(segment_id) for token in segment.token_ids]

    def trajectory(self, leaf: Leaf) -> Trajectory:
        """Flatten the path to `leaf`."""
        path = self.path(leaf.segment_id)
        sampled = [segment.source is SegmentSource.POLICY for segment in path]
        zeros = [[0.0] * len(segment.token_ids) for segment in path]
        return Trajectory(
            token_ids=[token for segment in path for token in segment.token_ids],
            is_sampled=[own for segment, own in zip(path, sampled, strict=True) for _ in segment.token_ids],
            logprobs=[v for s, own, z in zip(path, sampled, zeros, strict=True) for v in (s.logprobs if own else z)],
            entropies=[v for s, own, z in zip(path, sampled, zeros, strict=True) for v in (s.entropies if own else z)],
            prompt_length=path[0].end,
        )

    def trajectories(self) -> Iterator[Trajectory]:
        """Yield the trajectory of every leaf, in order."""
        return (self.trajectory(leaf) for leaf in self.leaves)

    @property
    def rewards(self) -> list[float]:
        """Rewards of the leaves, in order.

        Raises:
            ValueError: If a leaf has not been scored.
        """
        scored = [leaf.reward for leaf in self.leaves]
        if any(reward is None for reward in scored):
            raise ValueError(f"Every leaf of question {self.question.question_id!r} must be scored first.")
        return [reward.reward for reward in scored if reward is not None]

    @property
    def scored_leaves(self) -> list[tuple[Leaf, float]]:
        """Leaves that have a reward, in order, each with it: the others are neither compared nor trained on.

        Raises:
            ValueError: If a leaf has not been scored.
        """
        pairs = list(zip(self.leaves, self.rewards, strict=True))
        return [pair for pair in pairs if pair[0].is_scored]

    def leaf_weights(self, mode: LeafWeighting) -> list[float]:
        """Return how much each leaf counts.

        Args:
            mode: `uniform`: 1. `inverse_fan_out`: the product, over the branch points on the path, of 1 / (chains that
                go on from there), so that the leaves of one root chain have weight 1 together.
        """
        if mode == "uniform":
            return [1.0] * len(self.leaves)
        ends = [segment.parent_id for segment in self.segments] + [leaf.segment_id for leaf in self.leaves]
        fan_out = Counter(ends)
        return [
            1 / prod(fan_out[segment.segment_id] for segment in self.path(leaf.segment_id)[1:]) for leaf in self.leaves
        ]

    @property
    def branch_depths(self) -> list[int]:
        """Number of tool calls made before each branch."""
        return [decision.turn for decision in self.decisions for _ in range(decision.num_opened)]

    @property
    def branch_roots(self) -> list[int]:
        """For each branch, the index of the root chain it descends from."""
        return [decision.root for decision in self.decisions for _ in range(decision.num_opened)]

    @property
    def num_generated_tokens(self) -> int:
        """Tokens that the policy sampled for this tree, each counted once."""
        own = sum(len(s.token_ids) for s in self.segments if s.source is SegmentSource.POLICY)
        return own + self.num_discarded_tokens

    @property
    def num_tool_calls(self) -> int:
        """Tool calls that were answered for this tree, each counted once, those of a discarded probe included."""
        return sum(segment.tool_result is not None for segment in self.segments) + len(self.unused_calls)


@dataclass(slots=True, kw_only=True, eq=False)
class TreeBatch:
    """Finished trees on their way through a data loader. They hold no tensors, so there is nothing to move."""

    trees: list[RolloutTree]
    pass_at: tuple[int, ...] = (1,)
    """The k of each pass@k that they are evaluated by."""

    def to(self, device: object) -> "TreeBatch":
        """Return the batch itself."""
        del device
        return self
