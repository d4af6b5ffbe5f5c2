"""Why a chain branched after a tool result or did not: the numbers of the rule, and what other settings would give.

Every number is either on record or computed by the rule of the run's configuration itself. What the rule gives is
compared with what is on record; where the two differ, the run used another rule, and nothing computed is shown.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from aepo_lightning.contracts.branching import BranchContext, BranchPolicy, PenalisedBranchPolicy, ScoredBranchPolicy
from aepo_lightning.contracts.tree import BranchDecision, RolloutTree
from aepo_lightning.rollout import decision_uniform

_SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
_FACTORS = (0.0, 0.25, 0.5, 2.0, 4.0)
_GAMMA = 0.2
"""Where the own gamma is 0, multiples of the paper's are tried."""
_PENALTIES = (0.0, 0.05, 0.1, 0.2, 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Explainer:
    """Explains the decisions of trees that grew under one rule."""

    rule: BranchPolicy | None
    """Of the configuration. None where it cannot be had."""
    absence: str = ""
    """Why there is none."""
    can_branch: bool = True
    """False where nothing ever branches, as in evaluations: that chains went on alone is no decision there."""
    penalty_scope: str = "chain"
    """Whose branches in a row the rule counts: of the chain, or of its question."""
    branch_baseline: str = "root"
    """Which turn has the entropy that a branch is compared with: the first of the root chain, or the branch's own."""
    _by_penalty: dict[float | None, tuple[BranchPolicy, list["Alternative"]]] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """Return the rule in words.

        Keys: `name`, `formula` (as it is documented), `settings`, `alternatives` (values of each setting that are
        tried), `bar` (what its score is compared with: `tau`, or `u`, the number drawn), `scope` and `baseline` (see
        the fields). Without a rule only `absence`.
        """
        if self.rule is None:
            return {"absence": self.absence}
        kind = type(self.rule)
        settings = {each.name: _plain(getattr(self.rule, each.name)) for each in _settings(self.rule)}
        alternatives: dict[str, list[float]] = {}
        for each in _alternatives(self.rule):
            alternatives.setdefault(each.name, []).append(each.value)
        formula = (inspect.getdoc(kind) or "").split("\n\n")[0]
        return {
            "name": kind.__name__,
            "formula": formula,
            "settings": settings,
            "alternatives": alternatives,
            "bar": _bar(self.rule),
            "scope": self.penalty_scope,
            "baseline": self.branch_baseline,
        }

    def explain(self, tree: RolloutTree, decision: BranchDecision) -> dict[str, Any]:
        """Return everything about a decision, as plain values.

        Keys: `H`, `H0`, `change`, `l`, `penalty` (per step, as it was in force), `u` (the number drawn), `P`, `wanted`,
        `opened`, `penalised`, `problem`, and `other`: for each setting of the rule, what its alternatives would have
        given, as pairs of branches wanted and P. Absent values are None.
        """
        context = BranchContext(
            entropy=decision.entropy,
            initial_entropy=decision.initial_entropy,
            consecutive_branches=decision.consecutive_branches,
            uniform=decision_uniform(tree.seed, tree.question.question_id, decision.seed_path, decision.turn),
        )
        rule, alternatives = self._in_force(decision.penalty_per_step)
        is_known = rule is not None and _agrees(rule, context, decision)
        other: dict[str, list[list[float | None]]] = {}
        for each in alternatives if is_known else ():
            found: list[float | None] = [each.rule.num_branches(context), _score(each.rule, context)]
            other.setdefault(each.name, []).append(found)
        return {
            "H": _rounded(decision.entropy),
            "H0": _rounded(decision.initial_entropy),
            "change": _rounded(decision.entropy - decision.initial_entropy),
            "l": decision.consecutive_branches,
            "penalty": _penalty(rule, decision) if is_known else decision.penalty_per_step,
            "u": _rounded(context.uniform),
            "P": _score(rule, context) if rule is not None and is_known else None,
            "wanted": decision.num_wanted,
            "opened": decision.num_opened,
            "penalised": decision.is_penalised,
            "problem": decision.problem,
            "other": other if is_known else None,
        }

    def _in_force(self, penalty: float | None) -> tuple[BranchPolicy | None, list["Alternative"]]:
        """Return the rule as it was at a decision, with its alternatives."""
        if self.rule is None:
            return None, []
        if penalty not in self._by_penalty:
            rule = self.rule
            if penalty is not None and isinstance(rule, PenalisedBranchPolicy):
                rule = rule.with_penalty(penalty)
            alternatives = [each.under(rule) for each in _alternatives(self.rule)]
            self._by_penalty[penalty] = (rule, alternatives)
        return self._by_penalty[penalty]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """A rule with one other setting."""

    name: str
    value: float
    rule: BranchPolicy

    def under(self, rule: BranchPolicy) -> "Alternative":
        """Return the same change of another rule."""
        return Alternative(name=self.name, value=self.value, rule=replace(rule, **{self.name: self.value}))  # type: ignore[type-var]


def _settings(rule: BranchPolicy) -> Sequence[Any]:
    return fields(rule) if is_dataclass(rule) else ()


def _alternatives(rule: BranchPolicy) -> list[Alternative]:
    """Return the rule with other values of one setting each, its own among them."""
    found = []
    for each in _settings(rule):
        own = getattr(rule, each.name)
        for value in _values(each.name, own):
            found.append(Alternative(name=each.name, value=value, rule=replace(rule, **{each.name: value})))  # type: ignore[type-var]
    return found


def _bar(rule: BranchPolicy) -> str:
    is_threshold = hasattr(rule, "tau") and getattr(rule, "decision", "threshold") == "threshold"
    return "tau" if is_threshold else "u"


def _values(name: str, own: Any) -> list[float]:
    others: Mapping[str, Sequence[float]] = {
        "alpha": _SHARES,
        "tau": _SHARES,
        "rate": _SHARES,
        "gamma": [(float(own) or _GAMMA) * factor for factor in _FACTORS] if name == "gamma" else (),
        "penalty_per_step": _PENALTIES,
    }
    return sorted({*others[name], float(own)}) if name in others else []


def _agrees(rule: BranchPolicy, context: BranchContext, decision: BranchDecision) -> bool:
    """Return whether a rule gives what is on record of a decision."""
    if rule.num_branches(context) != decision.num_wanted:
        return False
    if decision.score_shift is None or not isinstance(rule, ScoredBranchPolicy):
        return True
    return math.isclose(rule.score(context) - rule.alpha, decision.score_shift, abs_tol=1e-9)


def _penalty(rule: BranchPolicy | None, decision: BranchDecision) -> float | None:
    if decision.penalty_per_step is None and isinstance(rule, PenalisedBranchPolicy):
        return rule.penalty_per_step
    return decision.penalty_per_step


def _score(rule: BranchPolicy, context: BranchContext) -> float | None:
    score = getattr(rule, "score", None)
    found = math.nan if score is None else score(context)
    return _rounded(found) if math.isfinite(found) else None  # a page has no other numbers


def _plain(value: Any) -> Any:
    """Return a setting as a page can have it: what is no finite number, text or truth value in words."""
    is_number = isinstance(value, int | float) and math.isfinite(value)
    return value if is_number or value is None or isinstance(value, str) else repr(value)


def _rounded(value: float) -> float:
    return round(value, 6)
