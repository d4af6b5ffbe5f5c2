"""The settings of the released code, all together: they run, they give exactly k, and each does what it names."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aepo_lightning.branching import OfficialEntropyBalanced
from aepo_lightning.budgets import PreMonitoring
from aepo_lightning.contracts.tree import LeafOrigin
from aepo_lightning.rollout import RolloutSampler
from aepo_lightning.rollout.turn_entropy import TurnEntropy
from tests.support.builders import (
    RecordingBranchPolicy,
    RootChains,
    ScriptedEngine,
    calls_then_answer,
    make_parts,
    make_question,
    random_script,
)
from tests.support.tree_laws import check_tree

OFFICIAL = {
    "keep_probe": False,
    "branch_signal": "before_tool",
    "penalty_scope": "question",
    "branch_baseline": "own",
    "top_up": "sequential",
    "turn_entropy": TurnEntropy(aggregate="sum", normalizer="log_vocab", estimator="top_k", num_top_logprobs=10),
}
PRE_MONITORING = PreMonitoring(beta=0.5, rounding="floor_plus_one", includes_root_turn=True)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 12), st.integers(0, 100), st.sampled_from([0.0, 0.5, 0.9]), st.booleans())
def test_the_official_settings_give_exactly_k_trajectories(budget, seed, p_call, is_dynamic):
    allocator = PRE_MONITORING if is_dynamic else RootChains(num_root_chains=(budget + 1) // 2)
    engine = ScriptedEngine(random_script(p_call), pauses=lambda params: params.seed % 3)
    policy = OfficialEntropyBalanced()
    parts = make_parts(engine, budget=budget, allocator=allocator, branch_policy=policy, max_tool_calls=6, **OFFICIAL)
    for tree in RolloutSampler(parts).rollout([make_question("a"), make_question("b")], seed):
        check_tree(tree, parts)


def test_the_official_measure_asks_the_engine_for_ten_logprobs_and_twenty_tokens():
    engine = ScriptedEngine(calls_then_answer(1))
    parts = make_parts(engine, budget=2, allocator=PRE_MONITORING, **OFFICIAL)
    RolloutSampler(parts).rollout([make_question()], 0)
    assert {(params.num_top_logprobs, params.num_probe_tokens) for _, params in engine.requests} == {(10, 20)}


@pytest.mark.parametrize(("budget", "expected"), [(16, 9), (12, 7), (2, 2), (1, 1)])
def test_equal_entropies_give_half_the_budget_and_one(budget, expected):
    # Every token of every turn has the same log-probs, but the turns have 3, 3 and 9 tokens and the measure is a sum:
    # one turn before and after a tool must be equally long for equal entropies.
    def script(text, params):
        turn = calls_then_answer(1)(text, params)
        return turn if text.count("</result>") == 0 else type(turn)(text="go go", ends=True)

    parts = make_parts(ScriptedEngine(script), budget=budget, allocator=PRE_MONITORING, **OFFICIAL)
    (tree,) = RolloutSampler(parts).rollout([make_question()], 0)
    assert tree.root_entropy == pytest.approx(tree.tool_entropies[0])
    assert tree.global_budget == expected


def test_the_average_entropy_runs_over_every_turn_once():
    # H = 2, 4 and 6 nats per token in three turns of 3, 3 and 9 tokens; the mean over the turns of the sums over ln V
    # decides. The exact estimator makes the numbers plain.
    measure = TurnEntropy(aggregate="sum", normalizer="none")
    changes = OFFICIAL | {"turn_entropy": measure}
    seen = []

    class Recorded:
        needs_probe = True

        def global_budget(self, total, root_entropy, tool_entropies):
            seen.append((root_entropy, list(tool_entropies)))
            return PRE_MONITORING.global_budget(total, root_entropy, tool_entropies)

    engine = ScriptedEngine(calls_then_answer(2, lambda done: 2.0 + 2 * done))
    parts = make_parts(engine, budget=16, allocator=Recorded(), **changes)
    (tree,) = RolloutSampler(parts).rollout([make_question()], 0)
    assert seen == [(6.0, [12.0, 54.0])]  # 3 * 2; 3 * 4; 9 * 6
    # m = floor(16 * sigmoid(0.5 * (6 - 24))) + 1 with 24 = (6 + 12 + 54) / 3
    assert tree.global_budget == math.floor(16 / (1 + math.exp(9))) + 1 == 1


def test_the_first_tool_call_of_a_chain_and_of_a_branch_sees_no_change():
    recorder = RecordingBranchPolicy(rule=lambda context: int(context.consecutive_branches < 3))
    engine = ScriptedEngine(random_script(0.9, 0.0))
    changes = OFFICIAL | {"turn_entropy": TurnEntropy(normalizer="none")}
    parts = make_parts(engine, budget=8, allocator=RootChains(num_root_chains=4), branch_policy=recorder, **changes)
    (tree,) = RolloutSampler(parts).rollout([make_question()], 1)
    unchanged = sum(context.entropy == context.initial_entropy for context in recorder.contexts)
    chains_that_decide = sum(
        leaf.num_tool_calls >= (leaf.seed_path[-2] + 1 if leaf.origin is LeafOrigin.BRANCH else 1)
        for leaf in tree.leaves
    )
    assert any(leaf.origin is LeafOrigin.BRANCH for leaf in tree.leaves)
    assert unchanged == chains_that_decide
    assert len(recorder.contexts) > unchanged
