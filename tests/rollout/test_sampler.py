"""Many questions at once: nobody waits for anybody, errors surface, nothing keeps running."""

import asyncio
import threading
from dataclasses import dataclass, field, replace

import pytest

from aepo_lightning.branching import EntropyBalanced
from aepo_lightning.budgets import PreMonitoring
from aepo_lightning.chat_formats.tags import TagFormat
from aepo_lightning.contracts.reward import RewardOutput
from aepo_lightning.contracts.tool import ToolSpec
from aepo_lightning.contracts.tree import LeafOrigin
from aepo_lightning.engines import TransformersEngine
from aepo_lightning.errors import EngineError, RewardError
from aepo_lightning.event_loop import run_in_event_loop
from aepo_lightning.rollout import RolloutJournal, RolloutParts, RolloutSampler, RolloutSettings
from aepo_lightning.tools import DocumentSearch, ToolRuntime
from tests.support.builders import (
    RootChains,
    ScriptedBudget,
    ScriptedEngine,
    calls_then_answer,
    make_parts,
    make_question,
    random_script,
    reference_scores,
    tiny_policy,
    untimed,
    word_tokenizer,
)
from tests.support.tree_laws import check_tree


@dataclass
class GatedSearch:
    """A search tool that hangs for some questions until it is let go."""

    hanging: tuple[str, ...]
    spec: ToolSpec = field(default_factory=lambda: ToolSpec(name="search"))
    num_running: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, _arguments, context):
        self.num_running += 1
        try:
            if context.question.question_id in self.hanging:
                await self.gate.wait()
            return "go"
        finally:
            self.num_running -= 1


@dataclass(frozen=True)
class FailingReward:
    """A reward that fails for one question."""

    error: Exception
    question_id: str = "q1"

    async def __call__(self, sample):
        if sample.question.question_id == self.question_id:
            raise self.error
        return RewardOutput(reward=0.0, is_correct=False, is_well_formed=True)


def make_sampler(engine=None, max_concurrent_questions=64, journal=None, **changes):
    parts = make_parts(engine or ScriptedEngine(calls_then_answer(1)), **changes)
    return RolloutSampler(parts, max_concurrent_questions, journal)


def questions(number):
    return [make_question(f"q{index}") for index in range(number)]


def test_trees_come_in_the_order_of_the_questions_and_are_reported_once_each():
    seen = []
    engine = ScriptedEngine(random_script(), pauses=lambda params: params.seed % 9)
    trees = make_sampler(engine).rollout(questions(6), 0, on_tree=seen.append)
    assert [tree.question.question_id for tree in trees] == [f"q{index}" for index in range(6)]
    assert sorted(map(id, seen)) == sorted(map(id, trees))


def test_no_questions_give_no_trees():
    assert make_sampler().rollout([], 0) == []


@pytest.mark.parametrize("entry", ["rollout", "rollout_async"])
def test_a_question_that_stands_twice_is_refused(entry):
    call = getattr(make_sampler(), entry)
    asked = [*questions(2), make_question("q0")]
    run = asyncio.run if entry == "rollout_async" else lambda trees: trees
    with pytest.raises(ValueError, match="`questions` must have distinct ids, but got 'q0' twice"):
        run(call(asked, 0))


def test_at_least_one_question_grows_at_a_time():
    with pytest.raises(ValueError, match="`max_concurrent_questions` must be at least 1, but got 0"):
        make_sampler(max_concurrent_questions=0)


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_no_more_questions_grow_at_once_than_allowed(limit):
    engine = ScriptedEngine(calls_then_answer(2), pauses=lambda params: params.seed % 4)
    growing, most = {}, []

    def script(text, params):
        growing[text.split()[1]] = True
        most.append(len(growing))
        return calls_then_answer(2)(text, params)

    engine.script = script
    asked = [make_question(f"q{index}", text=f"find e{index}") for index in range(6)]
    place_of = {question.question_id: f"e{index}" for index, question in enumerate(asked)}
    make_sampler(engine, limit).rollout(asked, 0, on_tree=lambda tree: growing.pop(place_of[tree.question.question_id]))
    assert max(most) == limit


def test_a_question_whose_tool_hangs_does_not_delay_the_others():
    tool = GatedSearch(hanging=("q1",))
    seen = []

    def on_tree(tree):
        seen.append(tree.question.question_id)
        if len(seen) == 4:
            tool.gate.set()  # only when all the others are finished may q1 go on

    sampler = make_sampler(tools=ToolRuntime(tools=(tool,)))
    trees = asyncio.run(asyncio.wait_for(sampler.rollout_async(questions(5), 0, on_tree=on_tree), 60))
    assert seen[-1] == "q1"
    assert len(trees) == 5


def test_a_chain_whose_tool_hangs_does_not_delay_its_siblings():
    gate, scored = asyncio.Event(), []

    class FirstHangs:
        spec = ToolSpec(name="search")
        num_calls = 0

        async def __call__(self, _arguments, _context):
            self.num_calls += 1
            if self.num_calls == 1:
                await gate.wait()
            return "go"

    class Reward:
        async def __call__(self, sample):
            scored.append(sample)
            if len(scored) == 3:  # only when all its siblings are finished may the first chain go on
                gate.set()
            return RewardOutput(reward=0.0, is_correct=False, is_well_formed=True)

    changes = {"tools": ToolRuntime(tools=(FirstHangs(),)), "reward": Reward()}
    sampler = make_sampler(budget=4, allocator=RootChains(num_root_chains=4), **changes)
    asyncio.run(asyncio.wait_for(sampler.rollout_async([make_question()], 0), 60))
    assert len(scored) == 4


def test_an_engine_that_fails_surfaces_as_such_and_finished_trees_are_in_the_journal(tmp_path):
    journal = RolloutJournal(tmp_path)
    asked = [make_question(f"q{index}", text=f"find e{index}") for index in range(4)]
    finished = []

    def script(text, params):
        if "find e3" in text and len(finished) == 3:
            raise EngineError("out of memory")
        return calls_then_answer(100 if "find e3" in text else 1)(text, params)

    engine = ScriptedEngine(script)
    sampler = make_sampler(engine, journal=journal, max_tool_calls=100)
    with pytest.raises(EngineError, match="out of memory"):
        sampler.rollout(asked, 0, "train-1", finished.append)
    assert engine.num_running == 0
    assert sorted(tree.question.question_id for tree in journal.read("train-1")) == ["q0", "q1", "q2"]


@pytest.mark.parametrize(
    "error", [RewardError("no answer"), ValueError("a bug of the user")], ids=["ours", "of_the_user"]
)
def test_an_error_of_a_reward_surfaces_with_its_name(error):
    engine = ScriptedEngine(calls_then_answer(1), pauses=lambda params: params.seed % 5)
    with pytest.raises(RewardError, match=rf"FailingReward` must not fail, but raised {type(error).__name__}: {error}"):
        make_sampler(engine, reward=FailingReward(error)).rollout(questions(4), 0)
    assert engine.num_running == 0


def test_an_error_of_a_branch_policy_surfaces_as_an_engine_error_of_the_embedded_engine():
    class Failing:
        def num_branches(self, _context):
            raise ValueError("bad context")

    parts = replace(make_real_sampler().parts, branch_policy=Failing())
    sampler = RolloutSampler(parts)
    with pytest.raises(EngineError, match="bad context"):
        sampler.rollout(questions(8), 0)


def test_cancelling_leaves_no_task_and_no_running_call():
    tool = GatedSearch(hanging=("q0", "q1"))
    engine = ScriptedEngine(calls_then_answer(2))
    sampler = make_sampler(engine, tools=ToolRuntime(tools=(tool,)))

    async def run():
        task = asyncio.create_task(sampler.rollout_async(questions(3), 0))
        for _ in range(30):
            await asyncio.sleep(0)
        assert tool.num_running == 4
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert asyncio.run(run()) == set()
    assert tool.num_running == 0
    assert engine.num_running == 0


def test_cancelling_the_embedded_engine_leaves_no_task():
    sampler = make_real_sampler()
    engine = sampler.parts.engine

    async def run():
        task = asyncio.create_task(sampler.rollout_async(questions(3), 0))
        while engine.counters.num_forward_passes < 3:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for _ in range(10):
            await asyncio.sleep(0)
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert asyncio.run(run()) == set()
    trees = sampler.rollout(questions(3), 0)
    assert untimed(trees) == untimed(make_real_sampler().rollout(questions(3), 0))


def test_rolling_out_works_where_an_event_loop_is_running():
    async def notebook():
        return make_sampler().rollout(questions(2), 3)

    assert untimed(asyncio.run(notebook())) == untimed(make_sampler().rollout(questions(2), 3))
    assert all(not thread.name.startswith("aepo-rollout") for thread in threading.enumerate())


def test_an_error_where_an_event_loop_is_running_reaches_the_caller():
    async def fail():
        raise EngineError("broken")

    async def notebook():
        run_in_event_loop(fail())

    with pytest.raises(EngineError, match="broken"):
        asyncio.run(notebook())


def test_every_finished_tree_is_in_the_journal(tmp_path):
    journal = RolloutJournal(tmp_path)
    trees = make_sampler(ScriptedEngine(random_script()), journal=journal).rollout(questions(4), 0, "val-1")
    stored = {tree.question.question_id: tree for tree in journal.read("val-1")}
    for tree in trees:
        assert stored[tree.question.question_id].segments == tree.segments
        assert stored[tree.question.question_id].leaves == tree.leaves


def make_real_sampler():
    """Random weights, a vocabulary of 27 words: about one token in nine closes a tag, one in 27 ends the sequence."""
    policy = tiny_policy(tokenizer=word_tokenizer(), initializer_range=0.2)
    parts = RolloutParts(
        engine=TransformersEngine(policy, max_num_seqs=6, num_slots=9, max_model_len=60, block_size=4),
        tools=ToolRuntime(tools=(DocumentSearch(),)),
        reward=FailingReward(RewardError("never"), "nobody"),
        chat_format=TagFormat(policy.tokenizer, ("search",)),
        allocator=PreMonitoring(),
        branch_policy=EntropyBalanced(),
        settings=RolloutSettings(budget=6, max_response_tokens=48),
    )
    return RolloutSampler(parts)


def test_trees_of_the_embedded_engine_hold_the_scores_of_a_plain_forward_pass():
    sampler = make_real_sampler()
    trees = sampler.rollout(questions(4), 1)
    model = tiny_policy(tokenizer=word_tokenizer(), initializer_range=0.2).build_model()
    origins = set()
    for tree in trees:
        check_tree(tree, sampler.parts)
        for leaf in tree.leaves:
            origins.add(leaf.origin)
            path = tree.trajectory(leaf)
            logprobs, entropies = reference_scores(model, path.token_ids, path.prompt_length)
            own = path.is_sampled[path.prompt_length :]
            for found, expected in ((path.logprobs, logprobs), (path.entropies, entropies)):
                found = found[path.prompt_length :]
                # float32 sums in another order; the requirement is 1e-4
                assert [v for v, s in zip(found, own, strict=True) if s] == pytest.approx(
                    [v for v, s in zip(expected, own, strict=True) if s], abs=5e-6, rel=5e-6
                )
    assert {LeafOrigin.PROBE, LeafOrigin.ROOT, LeafOrigin.BRANCH} <= origins
    assert sampler.parts.engine.counters.num_cached_tokens > 0


def test_the_embedded_engine_gives_identical_trees_for_one_seed():
    sampler = make_real_sampler()
    first = untimed(sampler.rollout(questions(3), 7))
    sampler.parts.engine._prefixes.clear()
    assert untimed(sampler.rollout(questions(3), 7)) == first
    assert untimed(sampler.rollout(questions(3), 8)) != first


def test_a_probe_allocator_does_not_make_questions_wait_for_each_other():
    tool = GatedSearch(hanging=("q0",))
    seen = []

    def on_tree(tree):
        seen.append(tree.question.question_id)
        if len(seen) == 2:
            tool.gate.set()

    sampler = make_sampler(tools=ToolRuntime(tools=(tool,)), allocator=ScriptedBudget(num_root_chains=2))
    asyncio.run(asyncio.wait_for(sampler.rollout_async(questions(3), 0, on_tree=on_tree), 60))
    assert seen[-1] == "q0"
