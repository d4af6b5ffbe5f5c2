"""Data that crosses borders inside the library: questions, generations, tool calls, rewards, training batches.

Everything here is a dataclass without behaviour beyond its own consistency. The rollout tree has a file of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class SegmentSource(StrEnum):
    """Who wrote a segment of a trajectory."""

    PROMPT = "prompt"
    POLICY = "policy"
    TOOL = "tool"


class FinishReason(StrEnum):
    """Why one generation ended."""

    EOS = "eos"
    STOP = "stop"
    """A stop string was completed."""
    LENGTH = "length"
    """`max_tokens` were generated or the context is full."""


class StopReason(StrEnum):
    """Why a trajectory ended."""

    EOS = "eos"
    LENGTH = "length"
    """The response budget or the context of the model is used up."""
    CALL_LIMIT = "call_limit"
    """The policy asked for one tool call more than allowed."""


class ToolStatus(StrEnum):
    """How a tool call ended. Everything but `OK` is an observation that names the failure."""

    OK = "ok"
    EMPTY = "empty"
    ERROR = "error"
    TIMEOUT = "timeout"
    UNKNOWN_TOOL = "unknown_tool"
    MALFORMED = "malformed"
    UNAVAILABLE = "unavailable"
    """What stands behind the tool failed or is known to be down: the infrastructure, not the call."""
    BUSY = "busy"
    """Too many calls were waiting already."""
    CALL_LIMIT = "call_limit"
    """The chain had made as many calls as it may."""


class LeafOrigin(StrEnum):
    """How a trajectory came into its group."""

    PROBE = "probe"
    """The pre-monitoring trajectory, kept as one of the global samples."""
    ROOT = "root"
    """A global sample: an independent chain from the prompt."""
    BRANCH = "branch"
    TOP_UP = "top_up"
    """A fresh chain from the prompt because the branch budget was not used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a chat prompt."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A task instance: what the policy is asked and what counts as right."""

    question_id: str
    """Unique within a run; seeds derive from it."""
    messages: tuple[Message, ...]
    answers: tuple[str, ...]
    """Accepted answers; the reward takes the best match."""
    documents: Mapping[str, str] = field(default_factory=dict)
    """A corpus of its own that the search tool answers from, by exact query. Empty for shared corpora."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Plain values that travel with the question: source file, ability, difficulty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemonstrationTurn:
    """One piece of a demonstration: text of the policy (trained) or of a tool (masked)."""

    source: SegmentSource
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """A worked trajectory for the supervised cold start."""

    question: Question
    turns: tuple[DemonstrationTurn, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsStamp:
    """Which weights an engine generates with."""

    version: int
    """Optimiser steps that they have seen."""
    digest: str = ""
    """Differs for weights that give other log-probs. Without one, no earlier work is taken over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one generation is sampled."""

    max_tokens: int
    temperature: float = 1.0
    """0 is greedy; log-probs and entropies are then those at temperature 1."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps the whole vocabulary."""
    stop: tuple[str, ...] = ()
    """Strings that end the generation. The token that completes one is kept whole."""
    seed: int = 0
    """The random number behind a token depends on the seed and the absolute position of the token only, never on
    what else is in the batch."""
    num_top_logprobs: int = 0
    """How many of the largest log-probs to return with each token."""
    num_probe_tokens: int = 0
    """After how many tokens the probe callback of `Engine.generate` is due. 0 is never."""

    def __post_init__(self) -> None:
        """Refuse settings that have no meaning."""
        if self.max_tokens < 1:
            raise ValueError(f"`max_tokens` must be at least 1, but got {self.max_tokens}.")
        if self.temperature < 0:
            raise ValueError(f"`temperature` must be 0 (greedy) or positive, but got {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"`top_p` must be in (0, 1], but got {self.top_p}.")
        if self.top_k < 0:
            raise ValueError(f"`top_k` must be 0 (off) or positive, but got {self.top_k}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What an engine sampled for one request. The three lists have one entry per token."""

    token_ids: list[int]
    logprobs: list[float]
    """Log-probability of each sampled token at the sampling temperature, before top-p and top-k."""
    entropies: list[float]
    """Shannon entropy in nats over the whole vocabulary at the sampling temperature."""
    finish_reason: FinishReason
    top_logprobs: list[list[float]] = field(default_factory=list)
    """The largest log-probs and, if it is not among them, the sampled token's. Empty unless asked for."""
    num_cached_tokens: int = 0
    """Prompt tokens whose keys and values came from the prefix cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A request to a tool, as the policy wrote it."""

    tool: str
    """Name of the tool, which is also its tag."""
    text: str
    """What stood between the tags, stripped. Empty if the call could not be parsed."""
    problem: str = ""
    """What is wrong with the call itself, such as a closing tag without an opening one. Empty for a good call."""
    arguments: Mapping[str, Any] | None = None
    """Named arguments, in formats that have them. None gives `text` to the tool's text parameter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolContext:
    """What a tool may know about the chain that calls it."""

    question: Question
    call_index: int
    """0 for the first call of the chain."""
    seed_path: tuple[int | str, ...] = ()
    """The branch path of the chain, unique among the chains of a question."""
    history: tuple[tuple[ToolCall, "ToolResult"], ...] = ()
    """The chain's calls before this one, to all tools, and their answers."""
    state: Any = None
    """What a stateful tool's `open` returned for this chain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """What a tool answered. `text` is never empty: failures say what failed."""

    text: str
    status: ToolStatus = ToolStatus.OK
    duration_s: float = 0.0
    """Time the tool ran, all attempts, without the wait for a slot."""
    is_truncated: bool = False
    queue_s: float = 0.0
    """Time the call waited for a slot."""
    num_attempts: int = 1
    is_cached: bool = False
    """The answer came from the cache."""
    is_shared: bool = False
    """The answer is that of the same call by another chain, which was running."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardInput:
    """A finished trajectory as a reward sees it."""

    question: Question
    response_text: str
    """Everything after the prompt, tool results included, decoded without special tokens."""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_results: tuple[ToolResult, ...] = ()
    stop_reason: StopReason = StopReason.EOS


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardOutput:
    """What a trajectory is worth, and why."""

    reward: float
    is_correct: bool
    """Exact match with one of the accepted answers after normalisation; what pass@k counts."""
    is_well_formed: bool
    f1: float = 0.0
    answer: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ObjectiveInput:
    """What a surrogate loss may look at. All tensors are aligned token by token."""

    logprobs: Float[Tensor, "batch response"]
    old_logprobs: Float[Tensor, "batch response"]
    advantages: Float[Tensor, "batch response"]
    response_mask: Bool[Tensor, "batch response"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WeightedMean:
    """A mean kept as numerator and denominator, so that it adds up exactly over micro-batches and ranks."""

    total: Float[Tensor, ""]
    weight: Float[Tensor, ""]

    def __add__(self, other: "WeightedMean") -> "WeightedMean":
        """Return the mean over both sets."""
        return WeightedMean(total=self.total + other.total, weight=self.weight + other.weight)

    def value(self) -> float:
        """Return the mean, or 0 for an empty set."""
        return float(self.total / self.weight) if float(self.weight) > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ObjectiveOutput:
    """Per-token losses (not yet aggregated) and what to log about them."""

    token_losses: Float[Tensor, "batch response"]
    """Zero wherever the response mask is False."""
    metrics: Mapping[str, WeightedMean]


class AttentionBlock(NamedTuple):
    """A run of packed queries that attends to a run of packed keys."""

    query_start: int
    query_stop: int
    key_start: int
    key_stop: int
    is_causal: bool
    """True where queries and keys are the same run, each token attending up to itself. Else every query sees every
    key."""


@dataclass(slots=True, kw_only=True, eq=False)
class PackedTokens:
    """The tokens of a batch in one row, each shared prefix once, and which trained token was predicted where.

    A token attends to those before it on its path. Tokens stand in preorder, so the tokens below token `i`, itself
    included, are those from `i` up to `subtree_end[i]`, and query `q` sees key `k` if `k <= q < subtree_end[k]`.
    """

    input_ids: Int[Tensor, " seq"]
    position_ids: Int[Tensor, " seq"]
    """Depth along the path."""
    subtree_end: Int[Tensor, " seq"]
    sources: Int[Tensor, " response"]
    """Where each trained token is predicted: the packed index of the token before it. Several may share one."""
    targets: Int[Tensor, " response"]
    """The trained tokens, each once."""
    scored_index: Int[Tensor, " _"]
    """For every True of the response mask, row by row, its index among `targets`."""
    blocks: tuple[AttentionBlock, ...]
    """Who attends to whom, as runs. The causal ones come first and hold every token once."""

    def to(self, device: torch.device | str) -> "PackedTokens":
        """Return the same with every tensor on `device`."""
        own: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        moved: dict[str, Any] = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in own.items()}
        return PackedTokens(**moved)


@dataclass(slots=True, kw_only=True, eq=False)
class TrajectoryBatch:
    """Trajectories as right-padded rows: one micro-batch of an optimiser step.

    Column `t` of every per-token tensor speaks about the prediction of `input_ids[:, t + 1]`, so these tensors have one
    column less than `input_ids`.
    """

    input_ids: Int[Tensor, "batch seq"]
    lengths: Int[Tensor, " batch"]
    """Tokens of each row, padding excluded. 0 marks an empty row, which carries no weight."""
    response_mask: Bool[Tensor, "batch response"]
    """True where the predicted token was sampled by the policy, hence is trained."""
    sampler_logprobs: Float[Tensor, "batch response"]
    sampler_entropies: Float[Tensor, "batch response"]
    group_index: Int[Tensor, " batch"]
    """Which question of the rollout iteration each row belongs to."""
    rewards: Float[Tensor, " batch"]
    sequence_advantages: Float[Tensor, " batch"]
    old_logprobs: Float[Tensor, "batch response"] | None = None
    old_entropies: Float[Tensor, "batch response"] | None = None
    ref_logprobs: Float[Tensor, "batch response"] | None = None
    advantages: Float[Tensor, "batch response"] | None = None
    packed: PackedTokens | None = None
    """The same tokens without padding or repetition, if that is how they are to be scored."""

    def to(self, device: torch.device | str) -> "TrajectoryBatch":
        """Return the batch with every tensor on `device`."""
        own: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        movable = (Tensor, PackedTokens)
        moved: dict[str, Any] = {k: v.to(device) if isinstance(v, movable) else v for k, v in own.items()}
        return TrajectoryBatch(**moved)


@dataclass(slots=True, kw_only=True, eq=False)
class Minibatch:
    """The data of one optimiser step: micro-batches of this rank and the totals over all ranks."""

    micro_batches: Sequence[TrajectoryBatch]
    global_num_tokens: int
    """Response tokens of this optimiser step over all micro-batches and ranks."""
    global_num_sequences: int

    def to(self, device: torch.device | str) -> "Minibatch":
        """Return the minibatch with every tensor on `device`."""
        moved = [batch.to(device) for batch in self.micro_batches]
        return Minibatch(
            micro_batches=moved,
            global_num_tokens=self.global_num_tokens,
            global_num_sequences=self.global_num_sequences,
        )
