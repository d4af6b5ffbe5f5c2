"""Figures of the page of claims that no table has, from the committed results."""

from dataclasses import replace

from aepo_lightning.evaluation.statistics import bootstrap
from benchmarks.algorithms import COMMITTED, DOCUMENT
from benchmarks.support.comparison.claims import Comparison
from benchmarks.support.comparison.results import load
from benchmarks.support.comparison.settings import BEDS
from benchmarks.support.comparison.statistics import interquartile_mean
from benchmarks.support.comparison.verdicts import Results


def test_aepo_against_random_branches_at_its_own_rate():
    every, damaged = load(COMMITTED)
    found, damaged_too = load(COMMITTED.with_name("random_branching_rate.jsonl.gz"))
    assert damaged == damaged_too == 0
    often = {replace(job, algorithm="often"): record for job, record in found.items()}
    comparison = Comparison(claim="C9", outcome="area", treated="aepo", control="often", beds=("burst",))
    gains = Results(every | often, BEDS).differences(comparison, "burst")
    effect = bootstrap([gains], interquartile_mean)
    shown = f"AEPO less it is {effect.value:.3f} [{effect.low:.3f}, {effect.high:+.3f}], ahead at four of ten"
    assert (int((gains > 0).sum()), gains.size) == (4, 10)
    assert shown in " ".join(DOCUMENT.read_text().split())
