"""A branch point explains itself with the numbers of the rule, or not at all."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from aepo_lightning.app.view.decisions import Explainer
from aepo_lightning.app.view.trees import branch_point
from aepo_lightning.branching import EntropyBalanced, NeverBranch, OfficialEntropyBalanced, RandomBranching
from aepo_lightning.contracts.branching import BranchContext
from aepo_lightning.rollout import decision_uniform
from tests.support.builders import RootChains, ScriptedEngine, grow, random_script

RULES = {
    "paper": EntropyBalanced(gamma=4.0, penalty_per_step=0.25),
    "threshold": EntropyBalanced(gamma=4.0, penalty_per_step=0.25, decision="threshold"),
    "released": OfficialEntropyBalanced(gamma=4.0, penalty_per_step=0.25),
    "random": RandomBranching(rate=0.4),
}


@pytest.fixture(scope="module", params=RULES)
def grown(request):
    """A rule, and a tree that grew under it."""
    rule = RULES[request.param]
    engine = ScriptedEngine(random_script(p_call=0.9))
    (tree,) = grow(engine, budget=8, allocator=RootChains(num_root_chains=2), branch_policy=rule)
    return rule, tree


def context_of(tree, decision):
    uniform = decision_uniform(tree.seed, tree.question.question_id, decision.seed_path, decision.turn)
    return BranchContext(
        entropy=decision.entropy,
        initial_entropy=decision.initial_entropy,
        consecutive_branches=decision.consecutive_branches,
        uniform=uniform,
    )


def test_other_settings_give_what_the_rule_gives_under_them(grown):
    rule, tree = grown
    explainer = Explainer(rule=rule)
    values = explainer.describe()["alternatives"]
    assert set(values) == {"alpha", "gamma", "tau", "penalty_per_step", "rate"} & set(explainer.describe()["settings"])
    assert tree.decisions
    for decision in tree.decisions:
        found, context = explainer.explain(tree, decision), context_of(tree, decision)
        assert found["wanted"] == decision.num_wanted
        for name, others in found["other"].items():
            policies = [replace(rule, **{name: value}) for value in values[name]]
            assert [wanted for wanted, _ in others] == [policy.num_branches(context) for policy in policies]
            if hasattr(rule, "score"):
                scores = [policy.score(context) for policy in policies]
                assert [score for _, score in others] == pytest.approx(scores, abs=1e-6)
            own = values[name].index(getattr(rule, name))
            assert others[own][0] == decision.num_wanted


@pytest.mark.parametrize(("name", "bar"), [("paper", "u"), ("threshold", "tau"), ("released", "tau"), ("random", "u")])
def test_what_the_score_is_compared_with_is_named(name, bar):
    found = Explainer(rule=RULES[name], penalty_scope="question", branch_baseline="own").describe()
    assert (found["bar"], found["scope"], found["baseline"]) == (bar, "question", "own")


def test_a_gamma_of_zero_has_others_beside_it():
    found = Explainer(rule=EntropyBalanced(gamma=0.0)).describe()["alternatives"]["gamma"]
    assert found == pytest.approx([0.0, 0.05, 0.1, 0.4, 0.8])


def test_the_numbers_are_those_of_the_paper():
    rule = RULES["paper"]
    (tree,) = grow(
        ScriptedEngine(random_script(p_call=0.9)), budget=8, allocator=RootChains(num_root_chains=2), branch_policy=rule
    )
    for decision in tree.decisions:
        found = Explainer(rule=rule).explain(tree, decision)
        p = (0.5 + 4.0 * found["change"]) * (1 - min(1.0, found["penalty"] * found["l"]))
        assert found["P"] == pytest.approx(p, abs=1e-5)
        assert found["wanted"] == (found["u"] < found["P"])
        assert found["opened"] == decision.num_opened


def test_the_penalty_in_force_is_the_one_on_record_and_an_old_record_has_that_of_the_configuration():
    rule = EntropyBalanced(alpha=1.0, gamma=0.1, penalty_per_step=0.25)
    (tree,) = grow(
        ScriptedEngine(random_script(p_call=0.95)),
        budget=8,
        allocator=RootChains(num_root_chains=1),
        branch_policy=rule.with_penalty(0.5),
    )
    explainer = Explainer(rule=rule)
    explained = [explainer.explain(tree, decision) for decision in tree.decisions]
    assert [each["penalty"] for each in explained] == [0.5] * len(explained)
    assert all(each["P"] is not None for each in explained)
    assert any(each["l"] for each in explained), "or the penalty changes nothing"
    old = [replace(decision, penalty_per_step=None) for decision in tree.decisions]
    found = [explainer.explain(tree, decision) for decision in old]
    # Where branches went before, the penalty of the configuration does not give the score on record.
    assert [each["P"] is None for each in found] == [decision.consecutive_branches > 0 for decision in old]


@pytest.mark.parametrize("rule", [None, NeverBranch()])
def test_what_another_rule_computes_is_not_shown(grown, rule):
    _, tree = grown
    explainer = Explainer(rule=rule, absence="It is not known.")
    found = [explainer.explain(tree, decision) for decision in tree.decisions if decision.num_wanted]
    differing = [each for each in found if each["other"] is None]
    assert differing
    assert all(each["P"] is None and each["H"] is not None and each["u"] is not None for each in differing)
    if rule is None:
        assert explainer.describe() == {"absence": "It is not known."}


def test_decisions_stand_where_their_branches_begin(grown):
    _, tree = grown
    leaves = {leaf.seed_path: leaf for leaf in tree.leaves}
    opened = {branch_point(tree, leaves[each.seed_path], each.turn): each.num_opened for each in tree.decisions}
    assert len(opened) == len(tree.decisions)
    for segment in tree.segments:
        assert bool(opened.get(segment.segment_id)) == segment.is_branch_point


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnRule:
    """A rule with settings that no JSON has, and a score that is no finite number."""

    measure: Callable[..., float] = max
    limit: float = math.inf
    mode: str = "always"

    def score(self, context):
        return math.inf if context.entropy >= 0 else 0.0

    def num_branches(self, context):
        return int(context.entropy >= 0)


def test_a_rule_of_somebody_else_is_told_in_what_a_page_can_have():
    engine = ScriptedEngine(random_script(p_call=0.9))
    (tree,) = grow(engine, budget=4, allocator=RootChains(num_root_chains=2), branch_policy=OwnRule())
    explainer = Explainer(rule=OwnRule())
    found = explainer.describe()
    assert found["settings"] == {"measure": repr(max), "limit": "inf", "mode": "always"}
    assert tree.decisions
    told = [explainer.explain(tree, decision) for decision in tree.decisions]
    assert [each["P"] for each in told] == [None] * len(told)
    json.dumps([found, told], allow_nan=False)
