"""Recovery and replay: steps on record are not taken again, and the tree is the one that would have grown."""

import asyncio
import json
from dataclasses import replace
from random import Random

import pytest

from aepo_lightning.branching import EntropyBalanced
from aepo_lightning.budgets import PreMonitoring
from aepo_lightning.contracts.generation import StopReason, WeightsStamp
from aepo_lightning.contracts.tool import ToolResult, ToolStatus
from aepo_lightning.contracts.tree import LeafOrigin
from aepo_lightning.errors import EngineError
from aepo_lightning.rollout import (
    GroupRecord,
    GroupRollout,
    RolloutJournal,
    RolloutSampler,
    derive_seed,
    difference,
    record_of,
)
from aepo_lightning.rollout.record import read_events
from tests.support.builders import (
    RootChains,
    ScriptedEngine,
    calls_then_answer,
    canonical,
    make_parts,
    make_question,
    random_script,
)
from tests.support.tree_laws import check_tree

WEIGHTS = WeightsStamp(version=5, digest="same")
SETTINGS = (
    {"keep_probe": True},
    {"keep_probe": False, "branch_signal": "before_tool", "penalty_scope": "question", "branch_baseline": "own"},
    {"top_up": "sequential"},
)


class FickleTools:
    """Answers after a number of turns of the event loop that chance decides, and never twice the same."""

    tool_names = ("search",)

    def __init__(self, seed=0):
        self.random, self.calls = Random(seed), []

    async def call(self, _, context):
        self.calls.append((context.question.question_id, context.seed_path, context.call_index))
        for _ in range(self.random.randrange(30)):
            await asyncio.sleep(0)
        return ToolResult(text=f"go e{self.random.randrange(6)}", duration_s=self.random.random())


class Offline:
    """A tool runner for replays: whatever reaches it was not on record."""

    tool_names = ("search",)

    async def call(self, call, context):
        raise AssertionError(f"{call} of {context.seed_path} is not on record")


class Mortal(ScriptedEngine):
    """Dies at its n-th request, with others in flight."""

    def __init__(self, *args, dies_at=10**9, **fields):
        super().__init__(*args, **fields)
        self.dies_at = dies_at

    async def generate(self, prompt_ids, params, on_probe=None):
        if len(self.requests) >= self.dies_at:
            raise EngineError("The engine died.")
        return await super().generate(prompt_ids, params, on_probe)


def pausing(params):
    return Random(params.seed).randrange(6)


def parts_of(engine, tools, **changes):
    return make_parts(
        engine,
        tools=tools,
        allocator=PreMonitoring(beta=4.0),
        branch_policy=EntropyBalanced(alpha=0.6, gamma=0.2, penalty_per_step=0.1),
        **({"budget": 8} | changes),
    )


def grow_one(parts, seed=0, record=None, on_event=None):
    return asyncio.run(GroupRollout(parts, make_question(), seed, record, on_event).grow())


@pytest.mark.parametrize("changes", SETTINGS, ids=["paper", "released", "sequential"])
@pytest.mark.parametrize("seed", range(6))
def test_a_finished_tree_is_replayed_token_by_token_offline(changes, seed):
    tree = grow_one(parts_of(ScriptedEngine(random_script(), pauses=pausing), FickleTools(seed), **changes), seed)
    again = grow_one(parts_of(ScriptedEngine(random_script()), Offline(), **changes), seed, record_of(tree))
    assert difference(tree, again) is None
    assert canonical(again) == canonical(tree)
    if changes.get("penalty_scope") != "question":  # whose counter depends on the order of the chains
        assert sorted(again.decisions, key=str) == sorted(tree.decisions, key=str)


def test_another_policy_shows_as_a_difference_with_its_place():
    tree = grow_one(parts_of(ScriptedEngine(random_script()), FickleTools()), 1)

    class Lenient(Offline):
        async def call(self, *_):
            return ToolResult(text="not on record", status=ToolStatus.ERROR)

    other = grow_one(parts_of(ScriptedEngine(random_script(p_call=0.2)), Lenient()), 1, record_of(tree))
    assert "trajectory r/" in difference(tree, other)


@pytest.mark.parametrize("seed", range(4))
def test_a_replay_with_more_chains_at_the_root_still_gets_exactly_its_budget(seed):
    def parts(tools, num_roots):
        always = EntropyBalanced(alpha=1.0, gamma=0.0, penalty_per_step=0.0)
        made = parts_of(ScriptedEngine(calls_then_answer(3), pauses=pausing), tools)
        return replace(made, allocator=RootChains(num_root_chains=num_roots), branch_policy=always)

    tree = grow_one(parts(FickleTools(seed), 2), seed)
    assert sum(decision.num_opened for decision in tree.decisions) == 6
    other = parts(FromRecord(record_of(tree)), 6)
    again = grow_one(other, seed, record_of(tree))
    check_tree(again, other)
    assert difference(tree, again) == "global budget 2, replayed as 6"


@pytest.mark.parametrize("changes", SETTINGS, ids=["paper", "released", "sequential"])
@pytest.mark.parametrize("seed", range(4))
def test_a_group_cut_anywhere_goes_on_from_its_record_to_the_same_tree(changes, seed):
    events = []
    tree = grow_one(
        parts_of(ScriptedEngine(random_script(), pauses=pausing), FickleTools(seed), **changes),
        seed,
        on_event=lambda event: events.append(json.dumps(event)),
    )
    rest = record_of(tree)
    for cut in range(0, len(events) + 1, max(1, len(events) // 7)):
        record = read_events([json.loads(event) for event in events[:cut]])
        engine = ScriptedEngine(random_script(), pauses=pausing)
        tools = FromRecord(rest)
        again = grow_one(parts_of(engine, tools, **changes), seed, record)
        check_tree(again, parts_of(engine, tools, **changes))
        assert len(engine.requests) == len(set(map(str, engine.requests)))
        # What was generated before the cut is not generated again, and it is part of the tree.
        known = set(record.generations)
        assert not known & set(generated(again, engine))
        if cut == len(events):
            assert engine.requests == []
            assert tools.calls == []
            assert difference(tree, again) is None


class FromRecord:
    """Tools that answer as they did the first time, and remember what they were asked."""

    tool_names = ("search",)

    def __init__(self, record):
        self.record, self.calls = record, []

    async def call(self, call, context):
        self.calls.append((context.seed_path, context.call_index))
        found = self.record.result(context.seed_path, context.call_index, call)
        return found or ToolResult(text="another world")


def generated(tree, engine):
    """(chain, turn) of every request that reached the engine, found by its seed."""
    names = {}
    paths = {leaf.seed_path for leaf in tree.leaves} | {("p", 0)}
    for path in paths:
        for turn in range(12):
            names[derive_seed(tree.seed, tree.question.question_id, *path, turn)] = (path, turn)
    return [names[params.seed] for _, params in engine.requests if params.seed in names]


def test_without_a_record_nothing_changes():
    trees = [
        grow_one(parts_of(ScriptedEngine(random_script()), FickleTools(3)), 2, record)
        for record in (None, GroupRecord())
    ]
    assert canonical(trees[0]) == canonical(trees[1])


def test_a_recorded_answer_to_another_call_is_not_used():
    tree = grow_one(parts_of(ScriptedEngine(random_script()), FickleTools()), 1)
    record = record_of(tree)
    (place, (call, result)), *_ = record.calls.items()
    assert record.result(*place, call) == result
    assert record.result(*place, replace(call, text="something else")) is None


@pytest.mark.parametrize("dies_at", [0, 1, 5, 17, 40])
def test_an_engine_that_dies_costs_only_what_was_in_flight(tmp_path, dies_at):
    questions = [make_question(f"q{index}") for index in range(4)]

    def sampler(engine):
        return RolloutSampler(parts_of(engine, FickleTools()), 4, RolloutJournal(tmp_path))

    first = Mortal(random_script(), dies_at=dies_at, pauses=pausing)
    with pytest.raises(EngineError, match="The engine died"):
        sampler(first).rollout(questions, 7, "train", weights=WEIGHTS)
    second = Mortal(random_script(), pauses=pausing)
    trees = sampler(second).rollout(questions, 7, "train", weights=WEIGHTS)
    for tree in trees:
        check_tree(tree, parts_of(second, FickleTools()))
        assert tree.weights_version == 5
    assert list(RolloutJournal(tmp_path).read("train")) != []
    assert not (tmp_path / "train.steps.jsonl").exists()


def test_what_was_generated_before_a_crash_is_generated_once(tmp_path):
    questions = [make_question(f"q{index}") for index in range(4)]
    journal = RolloutJournal(tmp_path)
    first = Mortal(random_script(), dies_at=25, pauses=pausing)
    with pytest.raises(EngineError, match="The engine died"):
        RolloutSampler(parts_of(first, FickleTools()), 4, journal).rollout(questions, 7, "train", weights=WEIGHTS)
    steps = [json.loads(line) for line in journal.steps_path("train").read_text().splitlines()]
    num_generations = sum("token_ids" in step for step in steps)
    tools_before = sum("call" in step for step in steps)
    second, tools = Mortal(random_script(), pauses=pausing), FickleTools()
    trees = RolloutSampler(parts_of(second, tools), 4, journal).rollout(questions, 7, "train", weights=WEIGHTS)
    # The engine of the first life had at most one request of each chain in flight when it died.
    assert num_generations > 10
    assert tools_before > 0
    in_trees = sum(len(step["token_ids"]) for step in steps if "token_ids" in step)
    assert sum(tree.num_generated_tokens for tree in trees) >= in_trees
    repeated = {p.seed for _, p in first.requests} & {p.seed for _, p in second.requests}
    assert len(repeated) == len(first.requests) - num_generations


@pytest.mark.parametrize(
    "change",
    [
        {"weights": WeightsStamp(version=5, digest="other")},
        {"weights": WeightsStamp(version=5)},
        {"seed": 8},
        {"budget": 6},
        {"max_tool_calls": 2},
    ],
    ids=str,
)
def test_what_was_made_under_other_weights_or_settings_is_kept_but_not_taken_over(tmp_path, change):
    questions = [make_question(f"q{index}") for index in range(3)]

    def rollout(engine, weights=WEIGHTS, seed=7, **changes):
        sampler = RolloutSampler(parts_of(engine, FickleTools(), **changes), 4, RolloutJournal(tmp_path))
        return sampler.rollout(questions, seed, "train", weights=weights)

    with pytest.raises(EngineError, match="died"):
        rollout(Mortal(random_script(), dies_at=30, pauses=pausing))
    old = {path.name: path.read_text() for path in tmp_path.glob("*.jsonl*")}
    engine = Mortal(random_script())
    trees = rollout(engine, **change)
    assert sum(tree.num_generated_tokens for tree in trees) == num_new_tokens(trees)
    assert len(engine.requests) == sum(segment.source == "policy" for tree in trees for segment in tree.segments)
    kept = {path.name: path.read_text() for path in tmp_path.glob("*.jsonl*")}
    for name, text in old.items():
        assert kept[f"{name}.superseded-1"] == text


def num_new_tokens(trees):
    """Tokens of the policy's segments: everything that a fresh rollout generated."""
    return sum(len(s.token_ids) for tree in trees for s in tree.segments if s.source == "policy")


def test_a_finished_rollout_is_taken_over_whole(tmp_path):
    questions = [make_question(f"q{index}") for index in range(3)]
    journal = RolloutJournal(tmp_path)
    first, second = ScriptedEngine(random_script()), ScriptedEngine(random_script())
    done = RolloutSampler(parts_of(first, FickleTools()), 4, journal).rollout(questions, 7, "a", weights=WEIGHTS)
    seen = []
    again = RolloutSampler(parts_of(second, FickleTools()), 4, journal).rollout(
        questions, 7, "a", seen.append, weights=WEIGHTS
    )
    assert second.requests == []
    assert [canonical(tree) for tree in again] == [canonical(tree) for tree in done]
    assert seen == again
    assert len(list(journal.read("a"))) == 3
    assert all(tree.question.documents for tree in again)


def test_a_result_that_did_not_fit_is_on_record_for_the_replay():
    class Long(FickleTools):
        async def call(self, *_):
            return ToolResult(text="go " * 300)

    parts = parts_of(ScriptedEngine(random_script(p_call=1.0)), Long())
    tree = grow_one(parts)
    assert {leaf.stop_reason for leaf in tree.leaves} == {StopReason.LENGTH}
    assert len(tree.unused_calls) >= len([leaf for leaf in tree.leaves if leaf.origin is LeafOrigin.ROOT])
    again = grow_one(parts_of(ScriptedEngine(random_script(p_call=1.0)), Offline()), record=record_of(tree))
    assert difference(tree, again) is None
