"""The seams of the library: one small Protocol for each family of swappable parts.

Callers are typed with these, never with a class of the family. Anything that has the methods fits; nothing needs to
be registered.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from aepo_lightning.contracts.question import (
    Demonstration,
    Generation,
    ObjectiveInput,
    ObjectiveOutput,
    Question,
    RewardInput,
    RewardOutput,
    SamplingParams,
    ToolCall,
    ToolContext,
    ToolResult,
)
from aepo_lightning.contracts.tool import ToolSpec

Split = Literal["train", "val"]


@runtime_checkable
class Engine(Protocol):
    """Generates tokens: token ids in, token ids out."""

    @property
    def max_model_len(self) -> int:
        """Longest sequence (prompt and response together) in tokens."""
        ...

    async def generate(
        self, prompt_ids: list[int], params: SamplingParams, on_probe: Callable[[Generation], None] | None = None
    ) -> Generation:
        """Continue `prompt_ids`. Many calls may run at once; cancelling one stops its generation.

        Args:
            prompt_ids: The tokens to continue.
            params: How to sample.
            on_probe: Called exactly once, as soon as `params.num_probe_tokens` tokens exist or the generation ended
                before that, with what exists by then. This is how a branch starts while its trunk still generates.

        Raises:
            EngineError: If the engine failed or the prompt does not fit the context.
        """
        ...

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Replace the weights (Hugging Face names) and forget every cached prefix."""
        ...

    def sleep(self) -> None:
        """Free what only generation needs, until the next `load_weights`. Nothing may be generated in between."""
        ...

    def close(self) -> None:
        """Free what the engine holds. Calling it twice is allowed."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LowRankUpdate:
    """What an adapter adds to one weight: `scale * up @ down`; `ops.low_rank.merge_low_rank` adds it."""

    name: str
    """Hugging Face name of the weight."""
    down: Float[Tensor, "rank inner"]
    up: Float[Tensor, "hidden rank"]
    scale: float


@runtime_checkable
class AdapterEngine(Protocol):
    """An engine that keeps the weights below an adapter, so that only the adapter has to be published."""

    @property
    def base(self) -> str | None:
        """Name of the base that the engine still has, empty without one, None if it never keeps one."""
        ...

    def load_base(self, weights: Iterable[tuple[str, Tensor]], adapted: Collection[str], base: str) -> None:
        """Keep all weights (Hugging Face names), without adapter. Nothing may be generated before `load_adapter`.

        Args:
            weights: All of the model's.
            adapted: Names of those that adapters will be added to.
            base: A name for them. `Engine.load_weights` makes the engine forget it.
        """
        ...

    def load_adapter(self, updates: Iterable[LowRankUpdate], version: int) -> None:
        """Generate with the base and this adapter, one update for each adapted weight; forget every cached prefix."""
        ...


@runtime_checkable
class EntropyReporting(Protocol):
    """An engine that knows how good its entropies are and has another estimate to fall back to."""

    @property
    def entropy_source(self) -> str:
        """`exact`, or the name of the estimate that `Generation.entropies` holds, such as `top_20`."""
        ...

    def fall_back_to_top_k(self, reason: str) -> None:
        """Report an estimate from the largest log-probs from now on, with a warning that gives the reason."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredWeights:
    """Weights that lie in a folder of safetensors files, under the names of Hugging Face's modules."""

    folder: Path
    dtype: torch.dtype
    """Training precision, whatever that of the files is."""


@runtime_checkable
class PolicySource(Protocol):
    """Where the policy comes from: an architecture, a tokenizer and weights."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that belongs to the model."""
        ...

    @property
    def config(self) -> PretrainedConfig:
        """The Hugging Face configuration of the architecture."""
        ...

    def build_model(self) -> PreTrainedModel:
        """Return a new model with its weights, in training precision, on the CPU."""
        ...

    def find_weights(self) -> StoredWeights | None:
        """Return the files that `build_model` reads, after a download if need be; None if it reads none.

        Ranks then read their own parts of them, and none holds the whole model.

        Raises:
            DataError: If there are no such files.
        """
        ...


@runtime_checkable
class Tool(Protocol):
    """Something the policy may call. One instance serves many concurrent calls."""

    @property
    def spec(self) -> ToolSpec:
        """Name, schema, limits, and what kind of state the tool has."""
        ...

    async def __call__(self, arguments: Mapping[str, Any], context: ToolContext) -> str:
        """Answer one call. Cancelling the call must stop the work behind it.

        Args:
            arguments: What the policy wrote, checked against the schema.
            context: The chain that calls, with its state if the tool keeps one.

        Raises:
            ToolError: If the call failed in a way that the model should read about.
            ToolUnavailableError: If what stands behind the tool failed, and another attempt may succeed.
        """
        ...


@runtime_checkable
class StatefulTool(Tool, Protocol):
    """A tool that remembers the calls of a chain. `spec.state` says what a branch does with that memory."""

    async def open(self, context: ToolContext) -> Any:
        """Return a fresh state for a chain. It comes back as `context.state` with each of the chain's calls."""
        ...

    async def fork(self, state: Any) -> Any:
        """Return a copy of a state that goes its own way. Called for forkable tools only."""
        ...

    async def release(self, state: Any) -> None:
        """Free a state. Nothing is called with it afterwards."""
        ...


@runtime_checkable
class ToolRunner(Protocol):
    """Runs calls of any tool with deadlines and limits, and never raises for a failing tool."""

    @property
    def tool_names(self) -> tuple[str, ...]:
        """Names of the tools that can be called."""
        ...

    async def call(self, call: ToolCall, context: ToolContext) -> ToolResult:
        """Run one call; failures come back as a result whose status says which."""
        ...


@runtime_checkable
class BranchingToolRunner(ToolRunner, Protocol):
    """A runner that keeps the states of chains and follows their branches."""

    @property
    def specs(self) -> tuple[ToolSpec, ...]:
        """What the tools say of themselves."""
        ...

    async def start(self) -> None:
        """Make ready before the first call.

        Raises:
            ConfigError: If a tool cannot work here.
        """
        ...

    def branch_problem(self, history: Sequence[tuple[ToolCall, ToolResult]]) -> str | None:
        """Return why a chain with these calls must not branch, or None if it may."""
        ...

    def branch(self, source: ToolContext, target: ToolContext) -> None:
        """Note that `target`'s chain goes on from where `source`'s stands, after the calls of `target.history`.

        Returns at once. The copy is made before either chain's next call.
        """
        ...

    async def release(self, context: ToolContext) -> None:
        """Free the states of a chain that has ended."""
        ...

    async def close(self) -> None:
        """Free what the running event loop holds. More calls may follow."""
        ...


@runtime_checkable
class Reward(Protocol):
    """Scores a finished trajectory."""

    async def __call__(self, sample: RewardInput) -> RewardOutput:
        """Return what the trajectory is worth."""
        ...


@runtime_checkable
class Task(Protocol):
    """A source of questions, addressed by index so that any position can be resumed."""

    def question(self, split: Split, index: int) -> Question:
        """Return question `index` of a split. The same index gives the same question."""
        ...

    def num_questions(self, split: Split) -> int | None:
        """Return the size of a split, or None if it has no end."""
        ...


@runtime_checkable
class DemonstrationSource(Protocol):
    """A source of worked trajectories for the cold start."""

    def demonstration(self, index: int) -> Demonstration:
        """Return demonstration `index`. The same index gives the same demonstration."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchContext:
    """What is known at the moment of one branch decision."""

    entropy: float
    """Aggregated entropy of the measured tokens."""
    initial_entropy: float
    """The same aggregate for the first tokens of the chain."""
    consecutive_branches: int
    """l: branch decisions in a row that opened a branch, up to this one."""
    uniform: float
    """A seeded random number in [0, 1) that belongs to this decision."""


@runtime_checkable
class BranchPolicy(Protocol):
    """Decides, after a tool result, how many siblings a chain gets."""

    def num_branches(self, context: BranchContext) -> int:
        """Return how many branches to open (0 to go on alone)."""
        ...


@runtime_checkable
class BudgetAllocator(Protocol):
    """Splits the sampling budget of a question between fresh chains and branches."""

    @property
    def needs_probe(self) -> bool:
        """Whether one whole trajectory must be sampled before the split is known."""
        ...

    def global_budget(self, total: int, root_entropy: float, tool_entropies: Sequence[float]) -> int:
        """Return m, the number of chains that start at the root, in [1, total]."""
        ...


@runtime_checkable
class AdvantageEstimator(Protocol):
    """Turns the rewards of one group into one advantage per trajectory."""

    def __call__(self, rewards: Float[Tensor, " group"]) -> Float[Tensor, " group"]:
        """Return one advantage per trajectory, in input order."""
        ...


@runtime_checkable
class Objective(Protocol):
    """A surrogate loss, token by token."""

    def __call__(self, inputs: ObjectiveInput) -> ObjectiveOutput:
        """Return the per-token losses and metrics about them."""
        ...
