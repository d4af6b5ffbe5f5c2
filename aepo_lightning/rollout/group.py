"""Grows the rollout tree of one question: exactly k trajectories, some from the root, some from branch points.

The order of events is the paper's (arXiv 2510.14545, sections on pre-monitoring and balanced rollouts): sample one
whole trajectory, split the budget by what it showed, start the remaining global samples, branch after tool results
while the branch budget lasts, and top up with fresh chains. The probe counts as one of the m global samples. The branch
decisions that it would have taken on its way are taken once another chain has got as far, so that being first does not
give it the branch budget of the others; a branch restarts from just after the tool result, whenever it is opened.

Decisions are taken as chains arrive, with what is left of the budget then, or, under `branch_signal=prefix`, in rounds.
"""

import asyncio
import logging
import sys
import time
from collections.abc import Sequence

from aepo_lightning.contracts.branching import BranchContext, PenalisedBranchPolicy, ScoredBranchPolicy
from aepo_lightning.contracts.generation import FinishReason, Generation, StopReason
from aepo_lightning.contracts.question import Question, SegmentSource
from aepo_lightning.contracts.tool import ToolCall
from aepo_lightning.contracts.tree import BranchDecision, Leaf, LeafOrigin, RolloutTree, UnusedCall
from aepo_lightning.rollout.chain import Chain, TurnMeasurement
from aepo_lightning.rollout.continuation import Continuation
from aepo_lightning.rollout.order import put_in_order
from aepo_lightning.rollout.penalty import is_penalised
from aepo_lightning.rollout.record import EventSink, GroupRecord, decision_event
from aepo_lightning.rollout.rounds import DecisionRounds
from aepo_lightning.rollout.seeds import decision_uniform, derive_uniform
from aepo_lightning.rollout.steps import ChainSteps, RolloutParts
from aepo_lightning.rollout.time_limit import run_within, was_over

logger = logging.getLogger(__name__)


class GroupRollout:
    """One question on its way to a finished tree. Use once."""

    def __init__(
        self,
        parts: RolloutParts,
        question: Question,
        seed: int,
        record: GroupRecord | None = None,
        on_event: EventSink | None = None,
    ) -> None:
        """Encode the prompt. One that leaves no room in the context is cut, and its trajectories are empty.

        Args:
            parts: Engine, tools, reward, chat format, budget, branch policy and settings.
            question: What to ask.
            seed: Every random number derives from it and from where it is used.
            record: Steps that were taken before and are not taken again.
            on_event: Called with each step as soon as it is over.
        """
        self._parts = parts
        self._settings = parts.settings
        self._seed = seed
        self._question = question
        self._record = record or GroupRecord()
        self._on_event = on_event
        self._steps = ChainSteps(parts=parts, question=question, seed=seed, record=self._record, on_event=on_event)
        policy = parts.branch_policy
        self._scored = policy if isinstance(policy, ScoredBranchPolicy) else None
        self._penalty = policy.penalty_per_step if isinstance(policy, PenalisedBranchPolicy) else None
        self._began = time.perf_counter()
        self.tree = self._new_tree()
        self._num_committed = 0
        # Branches on record that their chain has not opened again yet: their places are taken.
        self._num_promised = sum(self._record.decisions.values())
        self._num_roots = self._num_running = 0
        self._probe: Chain | None = None
        self._undecided: list[TurnMeasurement] = []
        self._rounds = DecisionRounds(order=lambda chain, turn: self._uniform(chain, turn, "order"))
        self._question_streak = 0
        self._is_split_known = not parts.allocator.needs_probe
        self._tasks: asyncio.TaskGroup | None = None

    def _new_tree(self) -> RolloutTree:
        tree = RolloutTree(question=self._question, seed=self._seed, temperature=self._settings.temperature or 1.0)
        prompt = self._parts.chat_format.encode_prompt(self._question.messages)
        context = self._parts.engine.max_model_len
        if len(prompt) >= context:
            logger.warning(
                "The prompt of question %r has %d tokens, but the engine's context has %d. Its trajectories are empty: "
                "filter long questions or raise `max_model_len`.",
                self._question.question_id,
                len(prompt),
                context,
            )
            prompt = prompt[:context]
        tree.add(None, SegmentSource.PROMPT, prompt)
        return tree

    async def grow(self) -> RolloutTree:
        """Grow the tree to exactly `budget` scored leaves and return it, in an order that no timing decides."""
        budget = self._settings.budget
        async with asyncio.TaskGroup() as self._tasks:
            if self._parts.allocator.needs_probe:
                await self._run_probe()
            else:
                self._split(0.0, ())
            for _ in range(self.tree.global_budget - self._num_roots):
                self._start_root(LeafOrigin.ROOT)
            self._decide_where_due()
        while self._num_committed < budget:
            async with asyncio.TaskGroup() as self._tasks:
                missing = budget - self._num_committed
                for _ in range(1 if self._settings.top_up == "sequential" else missing):
                    self._start_root(LeafOrigin.TOP_UP)
        assert len(self.tree.leaves) == budget, "every committed chain ends in one leaf"
        put_in_order(self.tree)
        return self.tree

    async def grow_on(self, start: Continuation) -> RolloutTree:
        """Grow one chain on from where another one stood, alone, and return a tree of nothing else.

        Args:
            start: What lies behind it. The group must have been given `start.parts(parts)`.
        """
        chain = self._new_root(LeafOrigin.ROOT)
        chain.seed_path, chain.root = start.seed_path, int(start.seed_path[1])
        start.lay(self.tree, chain)
        async with asyncio.TaskGroup() as self._tasks:
            self._spawn(chain)
        put_in_order(self.tree)
        return self.tree

    async def _run_probe(self) -> None:
        probe = self._new_root(LeafOrigin.PROBE)
        await self._run(probe)
        entropies = [measurement.entropy for measurement in probe.measurements]
        root_entropy = probe.initial_entropy or 0.0
        if not self._settings.keep_probe:
            self._discard(probe)
        self._split(root_entropy, entropies)
        if self._settings.keep_probe and self._settings.branch_signal == "prefix":
            for measurement in probe.measurements:
                self._rounds.wait(probe, measurement)
        elif self._settings.keep_probe:
            self._probe, self._undecided = probe, list(probe.measurements)

    def _discard(self, probe: Chain) -> None:
        """Start the tree anew; what the probe cost and which tool results it saw stays on record."""
        old = self.tree
        self.tree = self._new_tree()
        self.tree.num_discarded_tokens = old.num_generated_tokens
        self.tree.num_prompt_tokens, self.tree.num_cached_tokens = old.num_prompt_tokens, old.num_cached_tokens
        self.tree.unused_calls = old.unused_calls
        calls = zip(probe.tool_calls, probe.tool_results, strict=True)
        for index, (call, result) in enumerate(calls):
            self.tree.unused_calls.append(
                UnusedCall(seed_path=probe.seed_path, call_index=index, call=call, result=result)
            )
        self._num_committed = self._num_roots = 0

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
        prompt = list(self.tree.segments[0].token_ids)
        return Chain(segment_id=0, seed_path=(name, root), root=root, origin=origin, token_ids=prompt)

    def _start_root(self, origin: LeafOrigin) -> None:
        self._spawn(self._new_root(origin))

    def _spawn(self, chain: Chain) -> None:
        assert self._tasks is not None, "chains run inside `grow`"
        self._num_running += 1
        self._rounds.join(chain)
        self._tasks.create_task(self._run_to_the_end(chain))

    async def _run_to_the_end(self, chain: Chain) -> None:
        await self._run(chain)
        self._num_running -= 1
        self._rounds.leave(chain)
        self._decide_where_due()

    async def _run(self, chain: Chain) -> None:
        async def to_the_end() -> StopReason:
            stop_reason = None
            while stop_reason is None:
                stop_reason = await self._advance(chain)
            return stop_reason

        try:
            stop_reason = await run_within(self._settings.timeout_s, chain, to_the_end, self._on_event)
        finally:
            await self._steps.release_states(chain)
        await self._finish(chain, stop_reason)

    async def _advance(self, chain: Chain) -> StopReason | None:
        """Generate one turn and answer its tool call; return why the chain ended, or None if it goes on."""
        if was_over(self._record.timeouts, chain):
            return StopReason.TIMEOUT
        room = self._room(chain)
        if room < 1:
            return StopReason.LENGTH
        begin = None if (chain.seed_path, chain.turn) in self._record.generations else self._clock()
        generation = await self._steps.generate(chain, room, lambda probe: self._measure(chain, probe))
        self._append(chain, generation, begin)
        if generation.finish_reason is FinishReason.LENGTH:
            return StopReason.LENGTH
        if was_over(self._record.timeouts, chain):
            return StopReason.TIMEOUT
        calls = self._steps.calls_of(generation)
        if self._settings.on_malformed_call == "stop" and any(call.problem for call in calls):
            return StopReason.MALFORMED_CALL
        return await self._answer_calls(chain, calls) if calls else StopReason.EOS

    def _clock(self) -> float:
        return time.perf_counter() - self._began

    def _append(self, chain: Chain, generation: Generation, begin: float | None) -> None:
        self.tree.num_prompt_tokens += len(chain.token_ids)
        self.tree.num_cached_tokens += generation.num_cached_tokens
        segment = self.tree.add(
            chain.segment_id,
            SegmentSource.POLICY,
            generation.token_ids,
            logprobs=generation.logprobs,
            entropies=generation.entropies,
            span_s=None if begin is None else (begin, self._clock()),
        )
        chain.segment_id = segment.segment_id
        chain.token_ids.extend(generation.token_ids)
        chain.turn += 1

    def _room(self, chain: Chain) -> int:
        end = len(chain.token_ids)
        response = self._settings.max_response_tokens - (end - self.tree.segments[0].end)
        return min(response, self._parts.engine.max_model_len - end)

    def _measure(self, chain: Chain, probe: Generation) -> None:
        """Take the entropy of a turn's first tokens and, if they follow a tool result, decide about branches."""
        entropy = self._settings.measured_entropy(probe, self._parts.chat_format.vocab_size)
        if chain.initial_entropy is None:
            chain.initial_entropy = entropy
        signal = chain.previous_entropy if self._settings.branch_signal == "before_tool" else entropy
        chain.previous_entropy = entropy
        if chain.turn == 0 or self.tree.segments[chain.segment_id].source is not SegmentSource.TOOL:
            return
        measurement = TurnMeasurement(
            branch_point=chain.segment_id,
            turn=chain.turn,
            num_tool_calls=chain.num_tool_calls,
            entropy=entropy,
            signal=signal,
            initial_entropy=chain.initial_entropy,
        )
        chain.measurements.append(measurement)
        if not self._is_split_known or chain.turn == chain.born_at:
            return
        if self._settings.branch_signal == "prefix":
            self._rounds.wait(chain, measurement)
            self._decide_where_due()
        else:
            self._decide(chain, measurement)
            self._decide_for_probe(chain.turn)

    def _decide_where_due(self) -> None:
        """Take the decisions whose round is complete, and the probe's if nobody is left who could get as far."""
        while (due := self._rounds.take()) is not None:
            self._decide(*due)
        if not self._num_running:
            self._decide_for_probe(sys.maxsize)

    def _decide_for_probe(self, turn: int) -> None:
        """Take the probe's decisions up to a turn, in order, as far as they have not been taken."""
        while self._undecided and self._undecided[0].turn <= turn:
            assert self._probe is not None, "its measurements are undecided"
            self._decide(self._probe, self._undecided.pop(0))

    def _decide(self, chain: Chain, measurement: TurnMeasurement) -> None:
        """Open as many branches as the policy asks for and the budget allows, or as many as are on record."""
        streak = self._question_streak if self._settings.penalty_scope == "question" else chain.consecutive_branches
        context = BranchContext(
            entropy=measurement.signal,
            initial_entropy=measurement.initial_entropy,
            consecutive_branches=streak,
            uniform=decision_uniform(self._seed, self._question.question_id, chain.seed_path, measurement.turn),
        )
        wanted = self._parts.branch_policy.num_branches(context)
        problem = self._steps.branch_problem(chain, measurement.num_tool_calls) if wanted else None
        opened = 0 if problem else self._num_to_open(chain, measurement, wanted)
        decision = BranchDecision(
            seed_path=chain.seed_path,
            root=chain.root,
            turn=measurement.turn,
            entropy=context.entropy,
            initial_entropy=context.initial_entropy,
            consecutive_branches=streak,
            num_wanted=wanted,
            num_opened=opened,
            is_penalised=wanted == 0 and is_penalised(self._parts.branch_policy, context),
            score_shift=None if self._scored is None else self._scored.score(context) - self._scored.alpha,
            penalty_per_step=self._penalty,
            problem=problem or "",
        )
        self.tree.decisions.append(decision)
        if self._on_event is not None and (chain.seed_path, measurement.turn) not in self._record.decisions:
            self._on_event(decision_event(decision))
        chain.consecutive_branches = chain.consecutive_branches + 1 if opened else 0
        self._question_streak = self._question_streak + 1 if opened else 0
        for index in range(opened):
            self._open_branch(chain, measurement, index)

    def _uniform(self, chain: Chain, turn: int, purpose: str) -> float:
        return derive_uniform(self._seed, self._question.question_id, *chain.seed_path, turn, purpose)

    def _num_to_open(self, chain: Chain, measurement: TurnMeasurement, wanted: int) -> int:
        recorded = self._record.decisions.get((chain.seed_path, measurement.turn))
        if recorded is not None:
            self._num_promised -= recorded
            # The budget turns recorded branches down only where the tree is no longer the recorded one.
            wanted = recorded
        return max(0, min(wanted, self._settings.budget - self._reserved()))

    def _reserved(self) -> int:
        """Trajectories that exist, run, or belong to global samples and recorded branches that have not started yet."""
        return self._num_committed + max(0, self.tree.global_budget - self._num_roots) + self._num_promised

    def _open_branch(self, chain: Chain, measurement: TurnMeasurement, index: int) -> None:
        self._num_committed += 1
        branch_point = self.tree.segments[measurement.branch_point]
        branch_point.is_branch_point = True
        keep = self._settings.branch_baseline == "root"
        branch = chain.branch(measurement, index, branch_point.end, keep)
        self._steps.branch_states(chain, branch)
        self._spawn(branch)

    async def _answer_calls(self, chain: Chain, calls: Sequence[ToolCall]) -> StopReason | None:
        """Run the tool calls of a turn and append their results."""
        begin, is_recorded = self._clock(), (chain.seed_path, chain.num_tool_calls) in self._record.calls
        answered = await self._steps.answer(chain, calls)
        span = None if is_recorded else (begin, self._clock())
        if answered is None:
            return StopReason.CALL_LIMIT
        pieces = self._parts.chat_format.encode_results([result.text for _, result in answered])
        if sum(map(len, pieces)) >= self._room(chain):
            for place, (call, result) in enumerate(answered):
                index = chain.num_tool_calls + place
                unused = UnusedCall(seed_path=chain.seed_path, call_index=index, call=call, result=result)
                self.tree.unused_calls.append(unused)
            return StopReason.LENGTH
        for token_ids, (call, result) in zip(pieces, answered, strict=True):
            answer = self.tree.add(
                chain.segment_id, SegmentSource.TOOL, token_ids, tool_call=call, tool_result=result, span_s=span
            )
            chain.segment_id = answer.segment_id
            chain.token_ids.extend(token_ids)
            chain.num_tool_calls += 1
            chain.tool_calls += (call,)
            chain.tool_results += (result,)
        return None

    async def _finish(self, chain: Chain, stop_reason: StopReason) -> None:
        reward = await self._steps.score(chain, self.tree.segments[0].end, stop_reason)
        leaf = Leaf(
            segment_id=chain.segment_id,
            origin=chain.origin,
            stop_reason=stop_reason,
            seed_path=chain.seed_path,
            num_tool_calls=chain.num_tool_calls,
            reward=reward,
        )
        self.tree.leaves.append(leaf)
