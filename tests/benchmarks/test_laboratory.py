"""The command: what it plans, and that it ends with its figures."""

import json

import pytest

from benchmarks.laboratory import DOCS, FIGURES, main, plan
from benchmarks.support.laboratory.report import BEGIN, END, tables_of
from benchmarks.support.laboratory.variants import preset_names
from tests.support.paths import CONF


def test_every_preset_has_a_row():
    assert preset_names() == sorted(path.stem for path in (CONF / "algorithm").glob("[!_]*.yaml"))


def test_parts_are_changed_under_the_middle_entropy():
    cases = plan(["off", "on"], [], [0.9, 0.5, 0.1])
    assert {case.setting.entropy for case in cases} == {0.5}
    assert len({(case.table, case.name) for case in cases}) == len(cases)
    algorithms = [case.algorithm for case in cases]
    assert all(one != other for at, one in enumerate(algorithms) for other in algorithms[:at])


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--tables", "none"], "--tables"), (["--presets", "no_such"], "no_such")]
)
def test_what_is_not_there_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


def test_the_guide_shows_the_figures_that_are_kept():
    page = (DOCS / "laboratory.md").read_text()
    shown = page.partition(BEGIN)[2].partition(END)[0]
    assert shown.strip() == tables_of(json.loads(FIGURES.read_text()))


def test_the_figures_have_the_signs_that_the_guide_speaks_of():
    cases = json.loads(FIGURES.read_text())["cases"]
    found = {(case["name"], case["entropy"]): case for case in cases if case["table"] == "Presets"}
    deviations = {key: each["squared_bias"]["value"] / each["squared_bias"]["error"] for key, each in found.items()}
    unbiased = [key for key in found if key[0] in ("rloo", "dr_grpo", "aepo_unbiased")]
    assert len(unbiased) >= 7
    assert [key for key in unbiased if abs(deviations[key]) > 4] == []
    biased = [("aepo", 0.9), ("aepo", 0.6), ("grpo", 0.9), ("grpo", 0.6), ("empg", 0.9), ("empg", 0.6)]
    assert [key for key in biased if not deviations[key] > 4] == []
    assert found["grpo", 0.6]["bias"] < found["aepo", 0.6]["bias"] < found["empg", 0.6]["bias"]


@pytest.mark.slow
def test_the_last_line_has_the_figures_and_whether_the_control_is_unbiased(capsys):
    main(["--groups", "40", "--presets", "grpo", "--entropies", "0.6", "--tables", "presets,on,exact"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["name"] == "laboratory"
    assert result["figures"]["cases"][0]["name"] == "grpo"
    assert {"known_factor_gap_k2", "known_factor_gap_k3"} <= set(result["goals"])
    assert [goal for goal in result["goals_missed"] if goal != "groups_per_cpu_s"] == []
