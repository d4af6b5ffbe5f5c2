"""The results as Markdown: verdicts first, then all comparisons, algorithms, the factorial, and what is missing."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from aepo_lightning.evaluation.statistics import Estimate, bootstrap, mean
from benchmarks.support.comparison.claims import CLAIMS, COMPARISONS, NOTHING, OUTCOMES, Comparison, budget_of
from benchmarks.support.comparison.curves import costs, is_short, iteration_curve, step_mean_up_to
from benchmarks.support.comparison.pairs import compared_pairs, unlike_pairs
from benchmarks.support.comparison.results import DONE
from benchmarks.support.comparison.settings import WITHOUT, Job, algorithms, cells, jobs
from benchmarks.support.comparison.statistics import interquartile_mean
from benchmarks.support.comparison.verdicts import (
    Finding,
    Results,
    claim_verdicts,
    judge,
    unpaired_improvement,
)

BEGIN, END = "<!-- results: written by python -m benchmarks.algorithms --table -->", "<!-- end of results -->"
SUMMARY_BEGIN, SUMMARY_END = "<!-- summary: written by python -m benchmarks.algorithms --table -->", "<!-- end -->"
NOT_RUN = "not run yet"
BASELINE = "grpo"
MEASURED: Mapping[str, str] = {
    "tokens beyond the upper bound": "train/clip_fraction_high",
    "tokens that could be": "train/clippable_fraction",
    "gradient beyond a bound": "train/gradient_mass_clipped_fraction",
    "gradient kept there": "train/gradient_mass_preserved_fraction",
    "policy entropy": "train/entropy",
    "branch concentration": "rollout/branch_concentration",
    "by chance": "rollout/expected_branch_concentration",
    "branches on noise": "rollout/branches_on_noise_fraction",
    "decisions there": "rollout/decisions_on_noise_fraction",
    "reward spread of siblings": "rollout/sibling_reward_spread",
    "distinct trajectories": "rollout/num_distinct_actions",
}
"""Means over the token budget that say whether the terms act."""


def summary(findings: Sequence[Finding]) -> str:
    """Return one row for each claim: verdict, and the effects behind it."""
    verdicts = claim_verdicts(findings)
    rows = []
    for claim, text in CLAIMS.items():
        own = [each for each in findings if each.comparison.claim == claim]
        effects = "; ".join(f"{each.comparison.name.partition(' ')[2]} {_effect(each)}" for each in own if each.effect)
        verdict = verdicts[claim] if effects else NOT_RUN
        rows.append((claim, text, f"**{verdict}**", effects or "-"))
    return _table(("", "Claim", "Verdict", "Effects, with 95 % intervals"), rows)


def details(results: Results, findings: Sequence[Finding], pictures: str = "") -> str:
    """Return everything below the summary.

    Args:
        results: Of all runs.
        findings: What they say about every comparison.
        pictures: Where the pictures of the beds are, as the document sees it, with a slash at its end.
    """
    if not results.records:
        return f"{NOT_RUN.capitalize()}.\n"
    present = [bed for bed in results.beds if results.seeds(bed)]
    parts = [
        *(
            f"![{bed}: {title}]({pictures}comparison_{bed}{name}.png)\n"
            for bed in present
            for title, name in (("curves and differences", ""), ("further curves", "_further"))
        ),
        "### Every comparison\n",
        "P is the probability that the first side has more, be that claimed or not.\n",
        _comparisons(results, findings),
        _cold_starts(results, [each.comparison for each in findings]),
        "\n### Every algorithm\n",
        "Interquartile means over seeds with 95 % bootstrap intervals.\n",
        *(_algorithms(results, bed) for bed in present),
        f"\n### Every algorithm against {BASELINE.upper()}\n",
        "Interquartile means of the differences in mean pass@1 up to the token budget, by seed, with 95 % bootstrap "
        "intervals. None of these has a test but those of C1.\n",
        _against_baseline(results),
        "\n### AEPO's factorial\n",
        "Means over seeds with 95 % bootstrap intervals; C5 to C8 are about interquartile means of the same effects.\n",
        _factorial(results),
        "\n### Whether the terms act\n",
        "Medians over seeds of means up to the token budget.\n",
        *(_measured(results, bed) for bed in present),
        "\n### Runs\n",
        _runs(results),
    ]
    return "\n".join(part for part in parts if part)


def _comparisons(results: Results, findings: Iterable[Finding]) -> str:
    rows = []
    for each in findings:
        own = each.comparison
        pairs = ", ".join(f"{bed} {number}" for bed, number in each.num_pairs.items())
        rows.append(
            (
                own.name,
                "more" if own.direction == 1 else "less",
                _effect(each),
                f"{each.improvement:.2f}" if each.effect else "-",
                _unpaired(results, own),
                f"{each.p:.2g}" if each.effect else "-",
                f"{each.adjusted_p:.2g}" if each.effect else "-",
                pairs,
                each.verdict,
            )
        )
    heads = ("Comparison", "Claimed", "Effect", "P, by seed", "P, all runs", "p", "p (Holm)", "Pairs", "Verdict")
    return _table(heads, rows)


def _cold_starts(results: Results, comparisons: Sequence[Comparison]) -> str:
    """Return in words how many pairs are none, and which."""
    pairs, unlike = compared_pairs(results, comparisons), unlike_pairs(results, comparisons)
    places = ", ".join(sorted({f"{one.bed} {one.seed}" for one, _ in unlike}))
    which = f" (bed and seed: {places})" if places else ""
    return f"Pairs whose runs began from cold starts that are not the same: {len(unlike)} of {len(pairs)}{which}.\n"


def _unpaired(results: Results, comparison: Comparison) -> str:
    if comparison.is_factor or comparison.control == NOTHING:
        return "-"
    found = unpaired_improvement(results, comparison.outcome, comparison.treated, comparison.control, comparison.beds)
    return "-" if np.isnan(found) else f"{found:.2f}"


def _algorithms(results: Results, bed: str) -> str:
    outcomes = ("area", "area over calls", "final", "final pass@4", "drop", "entropy", "restlessness")
    rows = []
    for name in algorithms():
        scores = {outcome: results.scores(outcome, bed, name) for outcome in outcomes}
        if scores["area"].size:
            means = [_shown(bootstrap([each], interquartile_mean)) if each.size else "-" for each in scores.values()]
            rows.append((f"`{name}`", str(scores["area"].size), *means))
    rows.sort(key=lambda row: row[2], reverse=True)
    return f"\n**{bed}**\n\n" + _table(("Algorithm", "Runs", *(OUTCOMES[each].title for each in outcomes)), rows)


def _against_baseline(results: Results) -> str:
    """Return what every algorithm gains over GRPO in the primary outcome, on each bed and over all that have it."""
    rows = []
    for name in (each for each in algorithms() if each != BASELINE):
        comparison = Comparison(claim="", outcome="area", treated=name, control=BASELINE)
        gains = [results.differences(comparison, bed) for bed in results.beds]
        present = [each for each in gains if each.size]
        if present:
            by_bed = [_shown(bootstrap([each], interquartile_mean)) if each.size else "-" for each in gains]
            every, pairs = bootstrap(present, interquartile_mean), np.concatenate(present)
            cells_of_row = (f"`{name}`", *by_bed, _shown(every), f"{int((pairs > 0).sum())} of {pairs.size}")
            rows.append((every.value, cells_of_row))
    rows.sort(key=lambda row: row[0], reverse=True)
    return _table(("Algorithm", *results.beds, "all beds", "pairs ahead"), [row for _, row in rows])


def _factorial(results: Results) -> str:
    """Return main effects and interactions of two factors on the primary outcome."""
    rows = []
    for letters in (*WITHOUT, *map("".join, combinations(WITHOUT, 2))):
        effects = [contrasts(results, "area", bed, letters) for bed in results.beds]
        present = [each for each in effects if each.size]
        by_bed = [_shown(bootstrap([each], mean)) if each.size else "-" for each in effects]
        rows.append((" x ".join(letters), *by_bed, _shown(bootstrap(present, mean)) if present else "-"))
    return _table(("Effect", *results.beds, "all beds"), rows)


def contrasts(results: Results, outcome: str, bed: str, letters: str) -> np.ndarray:
    """Return for each seed with all cells the effect of one factor, or the interaction of several.

    The effect of a factor is the mean over the other factors of on less off; an interaction of two is half of how much
    the effect of one is larger with the other on than off.
    """
    names = cells()
    signs = [np.prod([1 if letter in on else -1 for letter in letters]) for on in names]
    scores = [[results.score(outcome, Job(bed, name, seed)) for name in names.values()] for seed in results.seeds(bed)]
    found = np.array(scores, dtype=np.float64).reshape(-1, len(names)) @ np.array(signs) / (len(names) / 2)
    return found[np.isfinite(found)]


def _measured(results: Results, bed: str) -> str:
    budget = budget_of(results.beds[bed], "tokens")
    rows = []
    for name in algorithms():
        own = [r for job, r in results.records.items() if (job.bed, job.algorithm) == (bed, name)]
        own = [record for record in own if record["status"] == DONE]
        if own:
            calls = [1000 * costs(record, "calls").sum() / costs(record, "tokens").sum() for record in own]
            measured = (_median(own, metric, budget) for metric in MEASURED.values())
            rows.append((f"`{name}`", *measured, f"{np.median(calls):.3g}"))
    return f"\n**{bed}**\n\n" + _table(("Algorithm", *MEASURED, "calls for 1,000 tokens"), rows)


def _median(records: Sequence[dict], metric: str, budget: float) -> str:
    found = [step_mean_up_to(*iteration_curve(record, metric, "tokens"), budget) for record in records]
    known = [value for value in found if np.isfinite(value)]
    return f"{np.median(known):.3g}" if known else "-"


def _runs(results: Results) -> str:
    rows = []
    for bed, own in results.beds.items():
        records = [record for job, record in results.records.items() if job.bed == bed]
        done = [record for record in records if record["status"] == DONE]
        budgets = {"tokens": budget_of(own, "tokens"), "calls": budget_of(own, "calls")}
        short = sum(is_short(record, budgets) for record in done)
        seconds = sum(float(record.get("seconds", 0.0)) for record in done)
        codes = len({record["code"] for record in done})
        wanted = len(jobs([bed], list(algorithms())))
        numbers = (wanted, len(done), len(records) - len(done), short, f"{seconds / 3600:.1f}", codes)
        rows.append((bed, *map(str, numbers)))
    heads = (
        "Bed",
        "Planned",
        "Finished",
        "Failed",
        "Ended before a budget",
        "Hours of one core",
        "Versions of the code",
    )
    return _table(heads, rows)


def _effect(finding: Finding) -> str:
    """Return an effect as a difference, or as a change in percent."""
    found = finding.effect
    if found is None or not OUTCOMES[finding.comparison.outcome].is_relative:
        return _shown(found)
    value, low, high = (100 * (np.exp(each) - 1) for each in (found.value, found.low, found.high))
    return f"{value:+.0f} % [{low:+.0f}, {high:+.0f}]"


def _shown(estimate: Estimate | None) -> str:
    return "-" if estimate is None else f"{estimate.value:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells_of_row)} |" for cells_of_row in lines) + "\n"


def write_into(document: Path, results: Results, comparisons: Sequence[Comparison] = COMPARISONS) -> None:
    """Put summary and results between their marks in a document.

    Raises:
        ValueError: If the document lacks a mark.
    """
    findings = judge(results, comparisons)
    text = document.read_text(encoding="utf-8")
    text = _between(text, SUMMARY_BEGIN, SUMMARY_END, summary(findings))
    document.write_text(_between(text, BEGIN, END, details(results, findings, "figures/")), encoding="utf-8")


def _between(text: str, begin: str, end: str, content: str) -> str:
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"The document must have {begin!r} and {end!r} once each, but has not. Add them.")
    head, _, rest = text.partition(begin)
    return f"{head}{begin}\n\n{content}\n{end}{rest.partition(end)[2]}"
