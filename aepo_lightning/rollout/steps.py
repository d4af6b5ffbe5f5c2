"""What a chain does to the world outside its tree: generate a turn, call a tool, have its trajectory scored.

The one place of the sampler that talks to engine, tools and reward. Steps that a record has are not taken again.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import blake2b

from aepo_lightning.protocols import BranchPolicy, BudgetAllocator, Engine, Reward, ToolRunner
from aepo_lightning.rollout.chain import Chain
from aepo_lightning.rollout.record import EventSink, GroupRecord, call_event, first_tokens, generation_event
from aepo_lightning.rollout.seeds import derive_seed
from aepo_lightning.rollout.settings import RolloutSettings
from aepo_lightning.rollout.tag_protocol import TagProtocol
from aepo_lightning.types import (
    Generation,
    Question,
    RewardInput,
    RewardOutput,
    SamplingParams,
    StopReason,
    ToolCall,
    ToolContext,
    ToolResult,
    ToolStatus,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutParts:
    """What a rollout is made of, apart from the question."""

    engine: Engine
    tools: ToolRunner
    reward: Reward
    protocol: TagProtocol
    allocator: BudgetAllocator
    branch_policy: BranchPolicy
    settings: RolloutSettings


def signature(parts: RolloutParts) -> str:
    """Return a digest of everything but weights, seed and question that decides what a rollout gives."""
    settings = (parts.settings, parts.allocator, parts.branch_policy, type(parts.engine).__name__, parts.reward)
    limits = (parts.engine.max_model_len, parts.tools.tool_names, parts.protocol.stop, parts.protocol.vocab_size)
    # Objects without a representation of their own show their address, which no other process repeats.
    return blake2b(repr((*settings, *limits)).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainSteps:
    """Takes the steps of one question's chains."""

    parts: RolloutParts
    question: Question
    seed: int
    record: GroupRecord
    on_event: EventSink | None

    async def generate(self, chain: Chain, room: int, on_probe: Callable[[Generation], None]) -> Generation:
        """Return the chain's next turn."""
        place = (chain.seed_path, chain.turn)
        num_probe_tokens = self.parts.settings.turn_entropy.num_tokens
        if (recorded := self.record.generations.get(place)) is not None:
            on_probe(first_tokens(recorded, num_probe_tokens))
            return recorded
        params = self._sampling_params(chain, room)
        generation = await self.parts.engine.generate(chain.token_ids, params, on_probe)
        if self.on_event is not None:
            self.on_event(generation_event(*place, generation))
        return generation

    def _sampling_params(self, chain: Chain, room: int) -> SamplingParams:
        settings = self.parts.settings
        return SamplingParams(
            max_tokens=room,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            stop=self.parts.protocol.stop,
            seed=derive_seed(self.seed, self.question.question_id, *chain.seed_path, chain.turn),
            num_top_logprobs=settings.turn_entropy.num_top_logprobs_needed,
            num_probe_tokens=settings.turn_entropy.num_tokens,
        )

    async def answer(self, chain: Chain, turn_ids: list[int]) -> tuple[ToolCall, ToolResult] | None:
        """Return the tool call that ended a turn and its answer, or None if the chain may not call any more."""
        call = self.parts.protocol.parse_call(self.parts.protocol.decode(turn_ids))
        index, settings = chain.num_tool_calls, self.parts.settings
        if index >= settings.max_tool_calls:
            return None if settings.on_call_limit == "stop" else _refuse(call, settings.max_tool_calls)
        if (recorded := self.record.result(chain.seed_path, index, call)) is not None:
            return call, recorded
        context = ToolContext(question=self.question, call_index=index, seed_path=chain.seed_path)
        result = await self.parts.tools.call(call, context)
        if self.on_event is not None:
            self.on_event(call_event(chain.seed_path, index, call, result))
        return call, result

    async def score(self, chain: Chain, prompt_length: int, stop_reason: StopReason) -> RewardOutput:
        """Return what the chain's trajectory is worth."""
        return await self.parts.reward(
            RewardInput(
                question=self.question,
                response_text=self.parts.protocol.decode(chain.token_ids[prompt_length:]),
                tool_calls=chain.tool_calls,
                tool_results=chain.tool_results,
                stop_reason=stop_reason,
            )
        )


def _refuse(call: ToolCall, limit: int) -> tuple[ToolCall, ToolResult]:
    """Return a call beyond the limit and the answer that no tool gave."""
    message = f"The limit of {limit} tool calls is reached. Answer with what you know."
    return replace(call, problem=message), ToolResult(text=message, status=ToolStatus.MALFORMED)
