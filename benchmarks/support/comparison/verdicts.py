"""Claims judged by the results: differences paired by bed and seed, an interval, a test, a verdict."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from aepo_lightning.evaluation.statistics import Estimate, Scores, Statistic, bootstrap, holm, mean, sign_flip_p
from benchmarks.support.comparison.claims import CLAIMS, COMPARISONS, NOTHING, OUTCOMES, Comparison
from benchmarks.support.comparison.results import DONE
from benchmarks.support.comparison.runs import Record
from benchmarks.support.comparison.settings import Bed, Job, cells
from benchmarks.support.comparison.statistics import (
    interquartile_mean,
    paired_improvement,
    probability_of_improvement,
)

Verdict = Literal["reproduced", "reproduced, but small", "refuted", "undecided", "too few runs"]
LEAST_PAIRS = 5
"""On each bed, under which nothing is judged."""
LEVEL = 0.05
STATISTICS: Mapping[str, Statistic] = {"mean": mean, "interquartile mean": interquartile_mean}


@dataclass(frozen=True)
class Results:
    """Finished runs, and the beds that they were made on."""

    records: Mapping[Job, Record]
    beds: Mapping[str, Bed]

    @cached_property
    def _scores(self) -> dict[tuple[str, Job], float]:
        return {}

    def score(self, outcome: str, job: Job) -> float:
        """Return an outcome of a run, on a logarithmic scale if its effects are relative; NaN if there is none."""
        if (outcome, job) not in self._scores:
            self._scores[outcome, job] = self._read(outcome, job)
        return self._scores[outcome, job]

    def _read(self, outcome: str, job: Job) -> float:
        if job.algorithm == NOTHING:
            return 0.0
        if not self.is_done(job):
            return float("nan")
        own = OUTCOMES[outcome]
        value = own.read(self.records[job], self.beds[job.bed])
        if not own.is_relative:
            return value
        return float(np.log(value)) if value > 0 else float("nan")

    def is_done(self, job: Job) -> bool:
        """Return whether there is a run and it is finished."""
        record = self.records.get(job)
        return record is not None and record["status"] == DONE

    def seeds(self, bed: str) -> list[int]:
        """Return the seeds of which there is a run on a bed."""
        return sorted({job.seed for job in self.records if job.bed == bed})

    def scores(self, outcome: str, bed: str, algorithm: str) -> Scores:
        """Return an outcome of all runs of an algorithm on a bed that have it."""
        found = np.array([self.score(outcome, Job(bed, algorithm, seed)) for seed in self.seeds(bed)])
        return found[np.isfinite(found)]

    def differences(self, comparison: Comparison, bed: str) -> Scores:
        """Return one difference for each seed that both sides have, in the order of the seeds."""
        pairs = sides(comparison)
        rows = [
            [self.score(comparison.outcome, Job(bed, one, seed)) for pair in pairs for one in pair]
            for seed in self.seeds(bed)
        ]
        values = np.array(rows, dtype=np.float64).reshape(-1, len(pairs), 2)
        found = (values[:, :, 0] - values[:, :, 1]).mean(axis=1)
        return np.asarray(found[np.isfinite(found)])


def sides(comparison: Comparison) -> list[tuple[str, str]]:
    """Return the algorithms that are compared: one pair, or those cells that differ in a factor alone."""
    if not comparison.is_factor:
        return [(comparison.treated, comparison.control)]
    letter, names = comparison.treated, cells()
    return [(names[on], names[on.replace(letter, "")]) for on in names if letter in on]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What the runs say about one comparison."""

    comparison: Comparison
    num_pairs: Mapping[str, int]
    effect: Estimate | None
    """Treated less control. None without pairs."""
    improvement: float
    """Share of pairs in which the first side has more, mean over beds."""
    p: float
    adjusted_p: float = 1.0
    """After Holm's correction for all comparisons that can be judged."""

    @property
    def verdict(self) -> Verdict:
        """What follows by the rule of the analysis plan."""
        if self.effect is None or min(self.num_pairs.values()) < LEAST_PAIRS:
            return "too few runs"
        sign, smallest = self.comparison.direction, OUTCOMES[self.comparison.outcome].smallest
        is_significant = self.adjusted_p < LEVEL
        most = max(sign * self.effect.low, sign * self.effect.high)
        if is_significant and sign * self.effect.value > 0:
            return "reproduced, but small" if most < smallest else "reproduced"
        if is_significant or most < smallest:
            return "refuted"
        return "undecided"


def judge(results: Results, comparisons: Sequence[Comparison] = COMPARISONS) -> list[Finding]:
    """Return what the runs say about every comparison."""
    found = [_find(results, comparison) for comparison in comparisons]
    testable = {each.comparison.name: each.p for each in found if each.verdict != "too few runs"}
    adjusted = holm(testable)
    return [replace(each, adjusted_p=adjusted.get(each.comparison.name, 1.0)) for each in found]


def _find(results: Results, comparison: Comparison) -> Finding:
    strata = [results.differences(comparison, bed) for bed in comparison.beds]
    num_pairs = {bed: each.size for bed, each in zip(comparison.beds, strata, strict=True)}
    present = [each for each in strata if each.size]
    statistic = STATISTICS[comparison.statistic]
    return Finding(
        comparison=comparison,
        num_pairs=num_pairs,
        effect=bootstrap(present, statistic) if present else None,
        improvement=paired_improvement(present) if present else float("nan"),
        p=sign_flip_p(present, statistic) if present else 1.0,
    )


def claim_verdicts(findings: Iterable[Finding]) -> dict[str, Verdict]:
    """Return the verdict on each claim: what its comparisons agree on; refuted if one of them is."""
    verdicts: dict[str, Verdict] = {}
    found = list(findings)
    for claim in CLAIMS:
        own = {each.verdict for each in found if each.comparison.claim == claim}
        if "refuted" in own:
            verdicts[claim] = "refuted"
        elif own == {"reproduced"}:
            verdicts[claim] = "reproduced"
        elif own and own <= {"reproduced", "reproduced, but small"}:
            verdicts[claim] = "reproduced, but small"
        elif "too few runs" in own or not own:
            verdicts[claim] = "too few runs"
        else:
            verdicts[claim] = "undecided"
    return verdicts


def unpaired_improvement(results: Results, outcome: str, treated: str, control: str, beds: Sequence[str]) -> float:
    """Return the probability that a run of `treated` has more than one of `control`, mean over beds that have both."""
    strata = [(results.scores(outcome, bed, treated), results.scores(outcome, bed, control)) for bed in beds]
    both = [(x, y) for x, y in strata if x.size and y.size]
    if not both:
        return float("nan")
    return probability_of_improvement([x for x, _ in both], [y for _, y in both])
