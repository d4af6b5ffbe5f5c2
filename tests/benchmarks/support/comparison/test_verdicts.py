"""What follows from results for a claim, by the rule that was written before them."""

import numpy as np
import pytest

from aepo_lightning.evaluation.statistics import Estimate
from benchmarks.support.comparison.claims import CLAIMS, COMPARISONS, OUTCOMES, SEVEN, Comparison
from benchmarks.support.comparison.settings import Job, algorithms, cells
from benchmarks.support.comparison.table import BEGIN, END, contrasts, details, summary, write_into
from benchmarks.support.comparison.verdicts import Finding, Results, claim_verdicts, judge, sides
from tests.support.compared import BEDS, factorial_ends, make_record, make_records
from tests.support.paths import ROOT

AREA = Comparison(claim="C1", outcome="area", treated="aepo", control="grpo")


def finding(low, value, high, p, comparison=AREA, pairs=5):
    numbers = dict.fromkeys(comparison.beds, pairs)
    effect = Estimate(float(value), float(low), float(high))
    return Finding(comparison=comparison, num_pairs=numbers, effect=effect, improvement=0.5, p=p, adjusted_p=p)


LESS = Comparison(claim="C10", outcome="calls", treated="aepo", control="grpo", direction=-1)  # smallest: 0.1


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        pytest.param(finding(0.01, 0.03, 0.05, 0.01), "reproduced", id="as claimed"),
        pytest.param(finding(0.005, 0.01, 0.015, 0.01), "reproduced, but small", id="less than is worth having"),
        pytest.param(finding(-0.05, -0.03, -0.01, 0.01), "refuted", id="the other way"),
        pytest.param(finding(-0.01, 0.0, 0.01, 0.9), "refuted", id="nothing worth having"),
        pytest.param(finding(-0.01, 0.02, 0.05, 0.2), "undecided", id="wide"),
        pytest.param(finding(0.01, 0.03, 0.05, 0.01, pairs=4), "too few runs", id="four pairs"),
        pytest.param(finding(-0.5, -0.3, -0.2, 0.01, LESS), "reproduced", id="less, as claimed"),
        pytest.param(finding(-0.05, 0.0, 0.05, 0.9, LESS), "refuted", id="no less"),
    ],
)
def test_a_comparison_is_judged_by_test_and_interval(found, verdict):
    assert found.verdict == verdict


def test_a_claim_is_refuted_by_one_comparison_and_reproduced_by_all():
    good, bad = finding(0.01, 0.03, 0.05, 0.01), finding(-0.01, 0.0, 0.01, 0.9)
    wide, few = finding(-0.01, 0.02, 0.05, 0.2), finding(0, 0, 0, 1, pairs=0)
    small = finding(0.005, 0.01, 0.015, 0.01)
    assert claim_verdicts([good, good])["C1"] == "reproduced"
    assert claim_verdicts([good, small])["C1"] == "reproduced, but small"
    assert claim_verdicts([good, wide])["C1"] == "undecided"
    assert claim_verdicts([good, few])["C1"] == "too few runs"
    assert claim_verdicts([good, bad, few])["C1"] == "refuted"
    assert claim_verdicts([good])["C2"] == "too few runs"


def test_runs_are_paired_by_bed_and_seed():
    records = make_records({"grpo": 0.4}, seeds=range(3), beds=["burst"])
    for seed, end in ((0, 0.6), (2, 0.8), (7, 0.9)):  # seed 7 has no partner, seed 1 none here
        job = Job("burst", "aepo", seed)
        records[job] = make_record(job, end=end)
    failed = Job("burst", "aepo", 1)
    records[failed] = make_record(failed, status="failed")
    results = Results(records, BEDS)
    found = results.differences(AREA, "burst")
    partners = [results.score("area", Job("burst", "grpo", seed)) for seed in (0, 2)]
    # the mean of a line from 0.2 to its end is half of their sum
    assert found.tolist() == pytest.approx([0.4 - partners[0], 0.5 - partners[1]])


def test_a_factor_is_compared_within_every_setting_of_the_others():
    pairs = sides(Comparison(claim="C8", outcome="area", treated="A", control="without"))
    assert len(pairs) == 8
    assert ("aepo", "aepo-MPS") in pairs
    assert ("aepo-A", "arpo") in pairs


def test_effects_of_the_factorial_are_found():
    # ends add up 0.1 for M and -0.06 for S; areas are halves of that
    results = Results(make_records(factorial_ends({"M": 0.1, "S": -0.06})), BEDS)
    for letters, effect in (("M", 0.05), ("S", -0.03), ("A", 0.0), ("MS", 0.0), ("PA", 0.0)):
        assert contrasts(results, "area", "burst", letters) == pytest.approx(np.full(5, effect), abs=0.004)
    factor = Comparison(claim="C5", outcome="area", treated="M", control="without")
    assert results.differences(factor, "burst") == pytest.approx(contrasts(results, "area", "burst", "M"))


def test_an_interaction_by_hand():
    ends = {name: 0.4 + 0.08 * ("M" in on and "S" in on) for on, name in cells().items()}
    records = {job: make_record(job, end=ends[job.algorithm]) for job in make_records(ends, range(1), ["burst"])}
    # with S on, M adds 0.04 to the area, without it nothing: half of the difference, and half of the sum for M alone
    results = Results(records, BEDS)
    assert contrasts(results, "area", "burst", "MS") == pytest.approx([0.02])
    assert contrasts(results, "area", "burst", "M") == pytest.approx([0.02])


def test_seeds_that_lack_a_cell_are_left_out_of_the_factorial():
    records = make_records(factorial_ends({}), seeds=range(2), beds=["burst"])
    del records[Job("burst", "aepo-PA", 1)]
    assert contrasts(Results(records, BEDS), "area", "burst", "M").size == 1


def test_outcomes_by_hand():
    job = Job("burst", "grpo", 0)
    results = Results({job: make_record(job, start=0.6, end=0.2, calls=(6, 14))}, BEDS)
    found = {name: results.score(name, job) for name in OUTCOMES}
    assert found["area"] == pytest.approx(0.4)
    assert found["area over calls"] == pytest.approx(0.4)  # 0.6 to 0.2 on one line, whatever the unit
    assert found["final"] == pytest.approx(0.2)
    assert found["final pass@4"] == pytest.approx(0.4)
    assert found["drop"] == pytest.approx(0.4)
    assert found["entropy"] == pytest.approx(0.95)
    assert found["restlessness"] == pytest.approx(0.1 / 0.95)
    assert found["concentration"] == pytest.approx(0.1)
    assert found["calls"] == pytest.approx(np.log(10))
    assert found["distinct"] == pytest.approx(np.log(4))
    assert found["entropy beyond the bound"] == pytest.approx(
        np.log(1.8 / 0.9)
    )  # the first iteration has no such token


def test_planned_comparisons_are_about_what_there_is():
    assert {each.claim for each in COMPARISONS} == {*CLAIMS}
    names = [each.name for each in COMPARISONS]
    assert len(names) == len({*names})
    factors = {"M", "P", "S", "A"}
    unknown = {one for each in COMPARISONS for one in (each.treated, each.control)} - factors - {"without", "nothing"}
    assert unknown <= {*algorithms()}


def test_the_plan_names_every_claim_and_every_baseline():
    text = (ROOT / "docs/faithfulness.md").read_text()
    assert [claim for claim in CLAIMS if f"| {claim} |" not in text] == []
    assert [name for name in SEVEN if f"`{name}`" not in text] == []


def test_the_table_has_verdicts_first_and_replaces_only_what_lies_between_the_marks(tmp_path):
    ends = factorial_ends({"M": 0.1, "P": 0.0}) | {"grpo": 0.3, "dapo": 0.9}
    records = make_records(ends, seeds=range(5), beds=["burst"])
    results = Results(records, {"burst": BEDS["burst"]})
    comparisons = [
        Comparison(claim="C1", outcome="area", treated="aepo", control=x, beds=("burst",)) for x in ("grpo", "dapo")
    ]
    findings = judge(results, comparisons)
    assert [each.verdict for each in findings] == ["undecided", "refuted"]  # 2 of 32 signs: p = 1/16; far below DAPO
    assert "| C1 | AEPO consistently outperforms seven mainstream RL algorithms | **refuted** |" in summary(findings)
    assert "**not run yet**" in summary(findings)
    text = details(results, findings)
    assert "| C1 aepo against dapo: area | more | " in text
    assert "| `dapo` | 5 | +0.5" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| `dapo` |") and " 0.95 " in line]
    assert row.endswith("| 200 |"), "20 calls for 100 tokens"
    gains = text.partition("### Every algorithm against GRPO")[2].partition("###")[0].splitlines()
    first, last = [line for line in gains if line.startswith("| `")][:: len(ends) - 2]
    assert first.startswith("| `dapo` | +0.")
    assert (first.endswith("| 5 of 5 |"), last.endswith("| 0 of 5 |")) == (True, False)
    document = tmp_path / "doc.md"
    document.write_text((ROOT / "docs/faithfulness.md").read_text())
    write_into(document, results, comparisons)
    once = document.read_text()
    assert text.replace("(comparison_", "(figures/comparison_") in once
    write_into(document, results, comparisons)
    assert document.read_text() == once
    assert (
        once.partition("## The experiment")[2].partition(BEGIN)[0]
        == ((ROOT / "docs/faithfulness.md").read_text().partition("## The experiment")[2].partition(BEGIN)[0])
    )
    document.write_text(END)
    with pytest.raises(ValueError, match="once each"):
        write_into(document, results, comparisons)


def test_a_table_of_nothing_says_that_nothing_has_run():
    nothing = Results({}, BEDS)
    findings = judge(nothing)
    assert summary(findings).count("**not run yet**") == len(CLAIMS)
    assert details(nothing, findings) == "Not run yet.\n"
