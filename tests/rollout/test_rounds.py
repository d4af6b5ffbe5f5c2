"""Decisions in rounds: no timing, and nothing of a chain's own future, enters a decision or the budget left for it."""

from dataclasses import replace
from random import Random

import pytest

from aepo_lightning.contracts.tree import LeafOrigin
from aepo_lightning.errors import EngineError
from aepo_lightning.event_loop import run_in_event_loop
from aepo_lightning.rollout import GroupRecord, GroupRollout, RolloutSampler, RolloutSettings
from aepo_lightning.rollout.chain import Chain, TurnMeasurement
from aepo_lightning.rollout.record import read_events
from aepo_lightning.rollout.rounds import DecisionRounds
from aepo_lightning.rollout.turn_entropy import TurnEntropy
from tests.support.builders import (
    ANSWER,
    CALL,
    RecordingBranchPolicy,
    RootChains,
    ScriptedBudget,
    ScriptedEngine,
    Turn,
    canonical,
    grow,
    make_parts,
    make_question,
    random_script,
    untimed,
)
from tests.support.slow import first_quick

POLICY = random_script(0.6, 0.0)


def often(context):
    return int(context.uniform < 0.8)


def grown(pauses, branch_signal="prefix", **changes):
    """Trees of chains that want more branches than the budget has."""
    changes = {"budget": 5, "allocator": RootChains(num_root_chains=3), "max_tool_calls": 4} | changes
    engine = ScriptedEngine(POLICY, pauses=pauses)
    policy = RecordingBranchPolicy(rule=often)
    questions = [make_question(f"q{number}") for number in range(2)]
    return untimed(grow(engine, questions, branch_policy=policy, branch_signal=branch_signal, **changes))


def late_if_it_ends(params):
    """Whether the turn that is drawn ends the trajectory decides how late the engine reports it."""
    return 9 * POLICY("", params).ends


@pytest.mark.parametrize(
    ("allocator", "top_up"),
    [(RootChains(num_root_chains=3), "parallel"), (ScriptedBudget(num_root_chains=3), "sequential")],
    ids=["roots", "probe"],
)
def test_no_latency_changes_a_tree_even_where_the_branch_budget_runs_out(allocator, top_up):
    prompt = grown(lambda _: 0, allocator=allocator, top_up=top_up)
    random = Random(1)
    assert grown(late_if_it_ends, allocator=allocator, top_up=top_up) == prompt
    assert grown(lambda _: random.randrange(12), allocator=allocator, top_up=top_up) == prompt
    wanted = [sum(decision.num_wanted for decision in tree.decisions) for tree in prompt]
    opened = [sum(decision.num_opened for decision in tree.decisions) for tree in prompt]
    assert sum(wanted) > sum(opened) > 0  # the budget bound


def test_in_the_order_of_arrival_a_latency_decides_who_gets_the_budget():
    changes = {"branch_signal": "after_tool"}
    assert grown(late_if_it_ends, **changes) != grown(lambda _: 0, **changes)


def test_what_a_chain_does_after_its_turn_began_does_not_decide_whether_it_branches_there():
    # Two roots want the one branch after their first call. Root 0 then answers at once, or goes on for two more calls.
    def outcome(ends_early, pause):
        first = set()

        def script(text, params):
            done = text.count("</result>")
            if not done and len(first) < 2:
                first.add(params.seed)
            ends = done >= (1 if ends_early else 3)
            return Turn(text=ANSWER if ends else CALL, ends=ends)

        (tree,) = grow(
            ScriptedEngine(script, pauses=lambda _: pause),
            budget=3,
            allocator=RootChains(num_root_chains=2),
            branch_policy=RecordingBranchPolicy(),
            branch_signal="prefix",
        )
        return [(each.seed_path, each.num_opened) for each in tree.decisions if each.turn == 1]

    found = {tuple(outcome(ends_early, pause)) for ends_early in (True, False) for pause in (0, 5)}
    assert len(found) == 1
    assert sorted(opened for _, opened in found.pop()) == [0, 1]


def test_the_signal_is_the_entropy_of_the_first_token_and_the_engine_is_asked_for_no_more():
    engine = ScriptedEngine(random_script(0.8, 0.0))
    original = engine._generation

    def rising(turn, token_ids, params, reason):
        generation = original(turn, token_ids, params, reason)
        return replace(generation, entropies=[turn.entropy + 7 * place for place in range(len(token_ids))])

    engine._generation = rising
    policy = RecordingBranchPolicy(rule=lambda _: 0)
    grow(engine, branch_policy=policy, branch_signal="prefix", turn_entropy=TurnEntropy(normalizer="none"))
    assert {params.num_probe_tokens for _, params in engine.requests} == {1}
    assert policy.contexts
    assert all(max(context.entropy, context.initial_entropy) < 1 for context in policy.contexts)


@pytest.mark.parametrize("kept", first_quick([0.3, 0.7, 1.0]))
def test_a_group_that_was_cut_off_goes_on_to_the_same_tree(kept):
    events = []
    parts = make_parts(
        ScriptedEngine(random_script(0.8, 0.0)),
        budget=8,
        allocator=ScriptedBudget(num_root_chains=3),
        branch_policy=RecordingBranchPolicy(rule=often),
        branch_signal="prefix",
    )
    whole = run_group(parts, GroupRecord(), events.append)
    record = read_events(events[: int(len(events) * kept)])
    assert canonical(run_group(parts, record, None)) == canonical(whole)
    assert any(leaf.origin is LeafOrigin.BRANCH for leaf in whole.leaves)


def run_group(parts, record, sink):
    return run_in_event_loop(GroupRollout(parts, make_question(), 4, record, sink).grow())


def chain(name):
    return Chain(segment_id=0, seed_path=("r", name), root=name, origin=LeafOrigin.ROOT, token_ids=[])


def at(turn):
    return TurnMeasurement(branch_point=0, turn=turn, num_tool_calls=turn, entropy=0.0, signal=0.0, initial_entropy=0.0)


def test_a_round_begins_when_no_chain_can_still_come_to_it():
    rounds = DecisionRounds(order=lambda chain, _: -chain.root)
    first, second, third = map(chain, range(3))
    for each in (first, second, third):
        rounds.join(each)
    rounds.wait(first, at(1))
    rounds.wait(first, at(2))
    rounds.wait(second, at(1))
    assert rounds.take() is None  # the third may come to turn 1
    rounds.leave(third)
    assert rounds.take() == (second, at(1))  # by the order, not by arrival
    assert rounds.take() == (first, at(1))
    assert rounds.take() is None  # the second may come to turn 2
    branch = first.branch(at(1), 0, 0, keep_baseline=True)
    rounds.join(branch)
    rounds.leave(second)
    assert rounds.take() is None  # a branch does not decide at the turn it starts with, but may at the next
    rounds.leave(branch)
    assert rounds.take() == (first, at(2))
    assert rounds.take() is None


def test_an_engine_that_reports_estimates_is_refused():
    parts, fallen = make_parts(ScriptedEngine(POLICY), branch_signal="prefix"), ScriptedEngine(POLICY)
    fallen.entropy_source, fallen.fall_back_to_top_k = "top_20", lambda _: None
    sampler = RolloutSampler(replace(parts, engine=fallen))
    with pytest.raises(
        EngineError, match="`entropy_source` must be 'exact' for `branch_signal=prefix`, but got 'top_2"
    ):
        sampler.rollout([], 0)
    other = replace(parts, engine=fallen, settings=replace(parts.settings, branch_signal="after_tool"))
    assert RolloutSampler(other).rollout([], 0) == []


def test_the_estimate_of_a_turns_entropy_is_refused():
    with pytest.raises(ValueError, match=r"`turn_entropy\.estimator` must be 'exact' for `branch_signal=prefix`"):
        RolloutSettings(branch_signal="prefix", turn_entropy=TurnEntropy(estimator="top_k"))
