"""Grows the rollout tree of one question: exactly k trajectories, some from the root, some from branch points.

The order of events is the paper's (arXiv 2510.14545, sections on pre-monitoring and balanced rollouts): sample one
whole trajectory, split the budget by what it showed, start the remaining global samples, branch after tool results
while the branch budget lasts, and top up with fresh chains. The probe counts as one of the m global samples; its own
branch decisions are taken, in order, once the split is known. They are the decisions it would have taken on the way,
because a branch restarts from just after the tool result.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from aepo_lightning.errors import EngineError
from aepo_lightning.protocols import BranchContext, BranchPolicy, BudgetAllocator, Engine, Reward, ToolRunner
from aepo_lightning.rollout.chain import Chain, TurnMeasurement
from aepo_lightning.rollout.seeds import derive_seed, derive_uniform
from aepo_lightning.rollout.settings import RolloutSettings
from aepo_lightning.rollout.tag_protocol import TagProtocol
from aepo_lightning.tree import Leaf, RolloutTree, Segment
from aepo_lightning.types import (
    FinishReason,
    Generation,
    LeafOrigin,
    Question,
    RewardInput,
    SamplingParams,
    SegmentSource,
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


class GroupRollout:
    """One question on its way to a finished tree. Use once."""

    def __init__(self, parts: RolloutParts, question: Question, seed: int) -> None:
        """Encode the prompt.

        Raises:
            EngineError: If the prompt leaves no room in the context.
        """
        self._parts = parts
        self._settings = parts.settings
        self._seed = seed
        self._question = question
        self.tree = self._new_tree()
        self._num_committed = 0
        self._num_roots = 0
        self._question_streak = 0
        self._is_split_known = not parts.allocator.needs_probe
        self._tasks: asyncio.TaskGroup | None = None

    def _new_tree(self) -> RolloutTree:
        tree = RolloutTree(question=self._question, seed=self._seed)
        prompt = self._parts.protocol.encode_prompt(self._question.messages)
        if len(prompt) >= self._parts.engine.max_model_len:
            raise EngineError(
                f"The prompt of question {self._question.question_id!r} has {len(prompt)} tokens, but the engine's "
                f"context has {self._parts.engine.max_model_len}. Filter long questions or raise `max_model_len`."
            )
        tree.add(None, SegmentSource.PROMPT, prompt)
        return tree

    async def grow(self) -> RolloutTree:
        """Grow the tree to exactly `budget` scored leaves and return it."""
        budget = self._settings.budget
        async with asyncio.TaskGroup() as self._tasks:
            if self._parts.allocator.needs_probe:
                await self._run_probe()
            else:
                self._split(0.0, ())
            for _ in range(self.tree.global_budget - self._num_roots):
                self._start_root(LeafOrigin.ROOT)
        while self._num_committed < budget:
            async with asyncio.TaskGroup() as self._tasks:
                missing = budget - self._num_committed
                for _ in range(1 if self._settings.top_up == "sequential" else missing):
                    self._start_root(LeafOrigin.TOP_UP)
        assert len(self.tree.leaves) == budget, "every committed chain ends in one leaf"
        self.tree.leaves.sort(key=lambda leaf: leaf.seed_path)
        return self.tree

    async def _run_probe(self) -> None:
        probe = self._new_root(LeafOrigin.PROBE)
        await self._run(probe)
        entropies = [measurement.entropy for measurement in probe.measurements]
        root_entropy = probe.initial_entropy or 0.0
        if not self._settings.keep_probe:
            discarded = self.tree.num_generated_tokens
            self.tree = self._new_tree()
            self.tree.num_discarded_tokens = discarded
            self._num_committed = self._num_roots = 0
        self._split(root_entropy, entropies)
        if self._settings.keep_probe:
            for measurement in probe.measurements:
                self._decide(probe, measurement)

    def _split(self, root_entropy: float, tool_entropies: Sequence[float]) -> None:
        budget = self._settings.budget
        global_budget = self._parts.allocator.global_budget(budget, root_entropy, tool_entropies)
        assert 1 <= global_budget <= budget, "an allocator returns a number in [1, total]"
        self.tree.global_budget, self.tree.branch_budget = global_budget, budget - global_budget
        self.tree.root_entropy, self.tree.tool_entropies = root_entropy, list(tool_entropies)
        self._is_split_known = True

    def _new_root(self, origin: LeafOrigin) -> Chain:
        root = self._num_roots
        self._num_roots += 1
        self._num_committed += 1
        # A discarded probe must not share its random numbers with the first chain that is kept.
        name = "p" if origin is LeafOrigin.PROBE and not self._settings.keep_probe else "r"
        return Chain(segment_id=0, seed_path=(name, root), root=root, origin=origin)

    def _start_root(self, origin: LeafOrigin) -> None:
        self._spawn(self._new_root(origin))

    def _spawn(self, chain: Chain) -> None:
        assert self._tasks is not None, "chains run inside `grow`"
        self._tasks.create_task(self._run(chain))

    async def _run(self, chain: Chain) -> None:
        stop_reason = None
        while stop_reason is None:
            stop_reason = await self._advance(chain)
        await self._finish(chain, stop_reason)

    async def _advance(self, chain: Chain) -> StopReason | None:
        """Generate one turn and answer its tool call; return why the chain ended, or None if it goes on."""
        room = self._room(chain)
        if room < 1:
            return StopReason.LENGTH
        generation = await self._generate(chain, room)
        segment = self.tree.add(
            chain.segment_id,
            SegmentSource.POLICY,
            generation.token_ids,
            logprobs=generation.logprobs,
            entropies=generation.entropies,
        )
        chain.segment_id = segment.segment_id
        chain.turn += 1
        if generation.finish_reason is FinishReason.EOS:
            return StopReason.EOS
        if generation.finish_reason is FinishReason.LENGTH:
            return StopReason.LENGTH
        return await self._answer_call(chain, segment)

    def _room(self, chain: Chain) -> int:
        end = self.tree.segments[chain.segment_id].end
        response = self._settings.max_response_tokens - (end - self.tree.segments[0].end)
        return min(response, self._parts.engine.max_model_len - end)

    async def _generate(self, chain: Chain, room: int) -> Generation:
        settings = self._settings
        params = SamplingParams(
            max_tokens=room,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            stop=self._parts.protocol.stop,
            seed=derive_seed(self._seed, self._question.question_id, *chain.seed_path, chain.turn),
            num_top_logprobs=settings.turn_entropy.num_top_logprobs_needed,
            num_probe_tokens=settings.turn_entropy.num_tokens,
        )
        return await self._parts.engine.generate(
            self.tree.token_ids(chain.segment_id), params, lambda probe: self._measure(chain, probe)
        )

    def _measure(self, chain: Chain, probe: Generation) -> None:
        """Take the entropy of a turn's first tokens and, if they follow a tool result, decide about branches."""
        entropy = self._settings.turn_entropy(probe, self._parts.protocol.vocab_size)
        if chain.initial_entropy is None:
            chain.initial_entropy = entropy
        signal = entropy if self._settings.branch_signal == "after_tool" else chain.previous_entropy
        chain.previous_entropy = entropy
        if chain.turn == 0 or self.tree.segments[chain.segment_id].source is not SegmentSource.TOOL:
            return
        measurement = TurnMeasurement(
            branch_point=chain.segment_id,
            turn=chain.turn,
            entropy=entropy,
            signal=signal,
            initial_entropy=chain.initial_entropy,
        )
        chain.measurements.append(measurement)
        if self._is_split_known and chain.turn != chain.born_at:
            self._decide(chain, measurement)

    def _decide(self, chain: Chain, measurement: TurnMeasurement) -> None:
        """Open as many branches as the policy asks for and the budget allows."""
        remaining = self._settings.budget - self._reserved()
        per_question = self._settings.penalty_scope == "question"
        context = BranchContext(
            entropy=measurement.signal,
            initial_entropy=measurement.initial_entropy,
            consecutive_branches=self._question_streak if per_question else chain.consecutive_branches,
            uniform=derive_uniform(
                self._seed, self._question.question_id, *chain.seed_path, measurement.turn, "decision"
            ),
        )
        wanted = self._parts.branch_policy.num_branches(context)
        num_branches = max(0, min(wanted, remaining))
        chain.consecutive_branches = chain.consecutive_branches + 1 if num_branches else 0
        self._question_streak = self._question_streak + 1 if num_branches else 0
        for index in range(num_branches):
            self._open_branch(chain, measurement, index)

    def _reserved(self) -> int:
        """Trajectories that exist, run, or belong to global samples that have not started yet."""
        return self._num_committed + max(0, self.tree.global_budget - self._num_roots)

    def _open_branch(self, chain: Chain, measurement: TurnMeasurement, index: int) -> None:
        self._num_committed += 1
        self.tree.segments[measurement.branch_point].is_branch_point = True
        self.tree.branch_depths.append(measurement.turn)
        self.tree.branch_roots.append(chain.root)
        keep = self._settings.branch_baseline == "root"
        self._spawn(chain.branch(measurement.branch_point, measurement.turn, index, keep))

    async def _answer_call(self, chain: Chain, segment: Segment) -> StopReason | None:
        """Run the tool call that ended the turn and append its result."""
        call = self._parts.protocol.parse_call(self._parts.protocol.decode(segment.token_ids))
        if chain.num_tool_calls < self._settings.max_tool_calls:
            context = ToolContext(question=self._question, call_index=chain.num_tool_calls)
            result = await self._parts.tools.call(call, context)
        elif self._settings.on_call_limit == "stop":
            return StopReason.CALL_LIMIT
        else:
            call, result = self._refuse(call)
        token_ids = self._parts.protocol.encode_result(result.text)
        if len(token_ids) >= self._room(chain):
            return StopReason.LENGTH
        answer = self.tree.add(chain.segment_id, SegmentSource.TOOL, token_ids, tool_call=call, tool_result=result)
        chain.segment_id = answer.segment_id
        chain.num_tool_calls += 1
        chain.tool_calls += (call,)
        chain.tool_results += (result,)
        return None

    def _refuse(self, call: ToolCall) -> tuple[ToolCall, ToolResult]:
        """Return a call beyond the limit and the answer that no tool gave."""
        limit = self._settings.max_tool_calls
        message = f"The limit of {limit} tool calls is reached. Answer with what you know."
        return replace(call, problem=message), ToolResult(text=message, status=ToolStatus.MALFORMED)

    async def _finish(self, chain: Chain, stop_reason: StopReason) -> None:
        prompt_end = self.tree.segments[0].end
        response = self.tree.token_ids(chain.segment_id)[prompt_end:]
        reward = await self._parts.reward(
            RewardInput(
                question=self._question,
                response_text=self._parts.protocol.decode(response),
                tool_calls=chain.tool_calls,
                tool_results=chain.tool_results,
                stop_reason=stop_reason,
            )
        )
        leaf = Leaf(
            segment_id=chain.segment_id,
            origin=chain.origin,
            stop_reason=stop_reason,
            seed_path=chain.seed_path,
            num_tool_calls=chain.num_tool_calls,
            reward=reward,
        )
        self.tree.leaves.append(leaf)
