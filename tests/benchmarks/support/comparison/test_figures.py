"""Pictures of a comparison: which there are, and what they show."""

import matplotlib.image
import numpy as np

from benchmarks.support.comparison import figures
from benchmarks.support.comparison.curves import iteration_curve, known_only
from benchmarks.support.comparison.figures import FURTHER, draw
from benchmarks.support.comparison.settings import Job
from benchmarks.support.comparison.verdicts import Results
from tests.support.compared import BEDS, make_record, make_records


def test_a_bed_with_runs_has_two_pictures_and_one_without_has_none(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "_PLACES", 3)
    monkeypatch.setattr(figures, "_BAND_RESAMPLES", 20)
    records = make_records({"aepo": 0.5, "grpo": 0.4}, seeds=range(3), beds=["burst"])
    written = draw(Results(records, BEDS), tmp_path)
    assert [path.name for path in written] == ["comparison_burst.png", "comparison_burst_further.png"]
    assert all(matplotlib.image.imread(path).std() > 0 for path in written)


def test_further_curves_are_over_tokens_and_over_calls_and_of_what_terms_do():
    units = {unit for _, _, metric, unit in FURTHER if metric in ("val/pass@4", "val/reward")}
    assert units == {"tokens", "calls"}
    assert len({metric for _, _, metric, _ in FURTHER}) == 6


def test_places_that_were_not_measured_are_no_part_of_a_curve():
    at, values = known_only(*iteration_curve(make_record(Job("", "", 0)), "train/entropy_beyond_high", "tokens"))
    assert (at.tolist(), values.tolist()) == ([100.0], [1.8])
    assert not known_only(*iteration_curve(make_record(Job("", "", 0)), "no/such", "tokens"))[0].size
    assert np.isfinite(values).all()
