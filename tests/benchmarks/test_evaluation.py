"""The benchmark of evaluation: a goal that had nothing to compare is not one that was met."""

import pytest

from benchmarks.evaluation import compare_run


def test_a_run_that_printed_no_figures_cannot_be_compared(tmp_path):
    with pytest.raises(SystemExit, match="has no figures of its last evaluation"):
        compare_run(tmp_path)
