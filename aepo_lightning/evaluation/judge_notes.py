"""What labelled answers say of the judge behind a score."""

from collections.abc import Mapping
from typing import Any

from aepo_lightning.evaluation.calibration import Calibration
from aepo_lightning.evaluation.results_file import BenchmarkResults
from aepo_lightning.evaluation.statistics import Estimate

_SAME = ("model", "template_digest", "request")
"""What two judges must have in common for one to speak for the other."""


def is_of_judge(calibration: Calibration, checker: Mapping[str, Any]) -> bool:
    """Return whether labelled answers were judged by who gave the verdicts of an evaluation.

    Args:
        calibration: Of a judge.
        checker: The part of a stamp that says who gave its verdicts.
    """
    return "model" in checker and all(calibration.judge.get(name) == checker.get(name) for name in _SAME)


def corrected_score(calibration: Calibration, run: BenchmarkResults) -> Estimate | None:
    """Return the accuracy that people would have found; see `prediction_powered`.

    Args:
        calibration: Of the judge of the run.
        run: Of which trajectories without a verdict are left out.

    Returns:
        None where the run had another judge, or one of the two has fewer than two questions.
    """
    if not is_of_judge(calibration, run.stamp.checker):
        return None
    scored = [each for each in run.results if each.verdict.is_scored]
    return calibration.corrected([(each.question_id, each.verdict.is_correct) for each in scored])


def judge_note(calibration: Calibration, run: BenchmarkResults) -> str:
    """Return in a sentence how far the verdicts of a run can be trusted."""
    if not is_of_judge(calibration, run.stamp.checker):
        return f"{run.name}: was not judged by {calibration.judge.get('model', 'the judge')} as it was checked."
    text = f"{run.name}: its judge agrees with {calibration.confusion.num_judged} labelled answers"
    agreement, kappa = calibration.agreement, calibration.kappa
    text += " in none: it came to no verdict" if agreement is None else f" in {_percent(agreement)} % of them"
    if kappa is not None:
        text += f", kappa {kappa.value:.2f} [{kappa.low:.2f}, {kappa.high:.2f}]"
    if num := calibration.confusion.num_abstained:
        text += f", and came to no verdict on {num} others"
    if (found := corrected_score(calibration, run)) is not None:
        text += f"; pass@1 as people would find it: {_percent(found)}"
    if calibration.judge.get("rule") != run.stamp.checker.get("rule"):
        text += f" (checked with the rule {calibration.judge.get('rule')}, used with {run.stamp.checker.get('rule')})"
    return f"{text}."


def _percent(found: Estimate) -> str:
    return f"{100 * found.value:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"
