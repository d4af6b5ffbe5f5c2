"""What a chain does to the world outside its tree: generate a turn, call a tool, have its trajectory scored.

The one place of the sampler that talks to engine, tools and reward. Steps that a record has are not taken again.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from aepo_lightning.contracts.branching import BranchPolicy, BudgetAllocator
from aepo_lightning.contracts.chat_format import ChatFormat, OpeningChatFormat
from aepo_lightning.contracts.engine import Engine
from aepo_lightning.contracts.generation import FinishReason, Generation, SamplingParams, StopReason
from aepo_lightning.contracts.question import Message, Question
from aepo_lightning.contracts.reward import Reward, RewardInput, RewardOutput
from aepo_lightning.contracts.tool import (
    BranchingToolRunner,
    ToolCall,
    ToolContext,
    ToolResult,
    ToolRunner,
    ToolState,
    ToolStatus,
)
from aepo_lightning.rollout.call_rules import refused_calls
from aepo_lightning.rollout.chain import Chain
from aepo_lightning.rollout.description import digest_of
from aepo_lightning.rollout.generation_clock import GenerationClock
from aepo_lightning.rollout.independent import Independent
from aepo_lightning.rollout.record import EventSink, GroupRecord, call_event, first_tokens, generation_event
from aepo_lightning.rollout.scoring import ScoringSettings, score
from aepo_lightning.rollout.seeds import derive_seed, drawing_chain
from aepo_lightning.rollout.settings import RolloutSettings
from aepo_lightning.rollout.turn_entropy import TurnEntropy


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutParts:
    """What a rollout is made of, apart from the question."""

    engine: Engine
    tools: ToolRunner
    reward: Reward
    chat_format: ChatFormat
    allocator: BudgetAllocator = field(default_factory=Independent)
    branch_policy: BranchPolicy = field(default_factory=Independent)
    settings: RolloutSettings = field(default_factory=RolloutSettings)
    scoring: ScoringSettings = field(default_factory=ScoringSettings)
    clock: GenerationClock = field(default_factory=GenerationClock, repr=False, compare=False)

    def for_evaluation(self, num_samples: int) -> "RolloutParts":
        """Return the same engine, tools and reward for independent samples.

        Args:
            num_samples: Trajectories per question.
        """
        settings = replace(self.settings, budget=num_samples, turn_entropy=TurnEntropy())
        rules = Independent()
        return replace(
            self, allocator=rules, branch_policy=rules, settings=settings, clock=GenerationClock(clock=self.clock.clock)
        )


def signature(parts: RolloutParts) -> str:
    """Return a digest of everything but weights, seed and question that decides what a rollout gives.

    That is every setting of the sampler, the algorithm, the reward, the tools and their runtime, the context of the
    engine, and what the chat format writes around a question and around results.
    """
    tools = parts.tools.specs if isinstance(parts.tools, BranchingToolRunner) else parts.tools.tool_names
    rules = (parts.settings, parts.allocator, parts.branch_policy, parts.reward, parts.tools, tools)
    engine = (type(parts.engine).__name__, parts.engine.max_model_len)
    chat_format = parts.chat_format
    frames = (chat_format.encode_prompt(_SAMPLE), chat_format.encode_results(["?", "?"]))
    return digest_of(rules, engine, chat_format, chat_format.stop, chat_format.vocab_size, frames)


_SAMPLE = (Message(role="user", content="?"),)
"""A question without a system message: what the chat format says by itself shows in its prompt."""


def opening_of(chat_format: ChatFormat) -> str:
    """Return what prompts of a format write in the policy's name, which a reward sees as its words."""
    has_opening = hasattr(chat_format, "opening")  # the Protocol would look for all that it names, for every trajectory
    return cast(OpeningChatFormat, chat_format).opening if has_opening else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainSteps:
    """Takes the steps of one question's chains."""

    parts: RolloutParts
    question: Question
    seed: int
    record: GroupRecord
    on_event: EventSink | None
    _branching_tools: BranchingToolRunner | None = field(init=False, repr=False, compare=False)
    """The tools if they follow branches, asked once: it takes longer than many a call."""
    _stateful_tools: frozenset[str] = field(init=False, repr=False, compare=False)
    _opening: str = field(init=False, repr=False, compare=False)
    """What the prompt wrote in the policy's name."""

    def __post_init__(self) -> None:
        """Ask the tools what they can do."""
        tools = self.parts.tools if isinstance(self.parts.tools, BranchingToolRunner) else None
        stateful = () if tools is None else (s.name for s in tools.specs if s.state is not ToolState.STATELESS)
        object.__setattr__(self, "_branching_tools", tools)
        object.__setattr__(self, "_stateful_tools", frozenset(stateful))
        object.__setattr__(self, "_opening", opening_of(self.parts.chat_format))

    async def generate(self, chain: Chain, room: int, on_probe: Callable[[Generation], None]) -> Generation:
        """Return the chain's next turn."""
        place = (chain.seed_path, chain.turn)
        num_probe_tokens = self.parts.settings.measured_entropy.num_tokens
        if (recorded := self.record.generations.get(place)) is not None:
            on_probe(first_tokens(recorded, num_probe_tokens))
            return recorded
        params = self._sampling_params(chain, room)
        with self.parts.clock.generation():
            generation = await self.parts.engine.generate(chain.token_ids, params, on_probe)
        if self.on_event is not None:
            self.on_event(generation_event(*place, generation))
        return generation

    def _sampling_params(self, chain: Chain, room: int) -> SamplingParams:
        settings = self.parts.settings
        drawn_by = drawing_chain(chain.seed_path, chain.turn)
        return SamplingParams(
            max_tokens=min(room, settings.max_turn_tokens or room),
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            repetition_penalty=settings.repetition_penalty,
            stop=tuple(dict.fromkeys((*self.parts.chat_format.stop, *settings.stop))),
            seed=derive_seed(self.seed, self.question.question_id, *drawn_by, chain.turn),
            num_top_logprobs=settings.measured_entropy.num_top_logprobs_needed,
            num_probe_tokens=settings.measured_entropy.num_tokens,
        )

    def calls_of(self, generation: Generation) -> tuple[ToolCall, ...]:
        """Return the calls of a turn; none where it ends the trajectory, by itself or by a string that does so."""
        chat_format, own = self.parts.chat_format, self.parts.settings.stop
        text = chat_format.decode(generation.token_ids)
        if own and generation.finish_reason is FinishReason.STOP:
            last = max(text.rfind(string) for string in own)
            if last > max((text.rfind(string) for string in chat_format.stop), default=-1):
                return ()
        return chat_format.parse_calls(text, generation.finish_reason)

    async def answer(self, chain: Chain, calls: Sequence[ToolCall]) -> list[tuple[ToolCall, ToolResult]] | None:
        """Return a turn's tool calls and their answers, or None if the chain may not call any more.

        The calls of one turn run at the same time, but those to one tool with a state in their order, each with those
        before it in its history. Those beyond the chain's limits, and those that it made before where a tool is asked
        once, are answered with a message.
        """
        first, settings = chain.num_tool_calls, self.parts.settings
        refused = refused_calls(chain.history, calls, settings)
        num_beyond = sum(result.status is ToolStatus.CALL_LIMIT for result in refused.values())
        if num_beyond == len(calls) and settings.on_call_limit == "stop":
            return None
        lanes: dict[object, list[int]] = {}
        answered: dict[int, tuple[ToolCall, ToolResult]] = {}
        for place, call in enumerate(calls):
            if place in refused:
                answered[place] = (replace(call, problem=refused[place].text), refused[place])
            else:
                lanes.setdefault(call.tool if call.tool in self._stateful_tools else place, []).append(place)

        async def run(places: Sequence[int]) -> None:
            earlier: tuple[tuple[ToolCall, ToolResult], ...] = ()
            for place in places:
                answered[place] = await self._answer_one(chain, first + place, calls[place], earlier)
                earlier += (answered[place],)

        await asyncio.gather(*map(run, lanes.values()))
        return [answered[place] for place in range(len(calls))]

    async def _answer_one(
        self, chain: Chain, index: int, call: ToolCall, earlier: tuple[tuple[ToolCall, ToolResult], ...]
    ) -> tuple[ToolCall, ToolResult]:
        if (recorded := self.record.result(chain.seed_path, index, call)) is not None:
            return call, recorded
        context = self.context(chain, index)
        result = await self.parts.tools.call(call, replace(context, history=context.history + earlier))
        if self.on_event is not None:
            self.on_event(call_event(chain.seed_path, index, call, result))
        return call, result

    def context(self, chain: Chain, index: int | None = None) -> ToolContext:
        """Return what tools may know about a chain, before its next call unless told otherwise."""
        return ToolContext(
            question=self.question,
            call_index=chain.num_tool_calls if index is None else index,
            seed_path=chain.seed_path,
            history=chain.history,
        )

    def branch_problem(self, chain: Chain, num_calls: int) -> str | None:
        """Return why nothing may branch off a chain after some of its calls, or None."""
        tools = self._branching_tools
        return None if tools is None else tools.branch_problem(chain.history[:num_calls])

    def branch_states(self, chain: Chain, branch: Chain) -> None:
        """Have the tools' states follow a branch."""
        if self._branching_tools is not None:
            self._branching_tools.branch(self.context(chain), self.context(branch))

    async def release_states(self, chain: Chain) -> None:
        """Free what the tools remember of a chain that has ended."""
        if self._branching_tools is not None:
            await self._branching_tools.release(self.context(chain))

    async def score(self, chain: Chain, prompt_length: int, stop_reason: StopReason) -> RewardOutput:
        """Return what the chain's trajectory is worth."""
        sample = RewardInput(
            question=self.question,
            response_text=self._opening + self.parts.chat_format.decode(chain.token_ids[prompt_length:]),
            tool_calls=chain.tool_calls,
            tool_results=chain.tool_results,
            stop_reason=stop_reason,
            num_response_tokens=len(chain.token_ids) - prompt_length,
            max_response_tokens=self.parts.settings.max_response_tokens,
        )
        return await score(self.parts.reward, sample, self.parts.scoring)
