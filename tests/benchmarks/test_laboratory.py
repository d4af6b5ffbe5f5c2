"""The command: what it plans, and that it ends with its figures."""

import json

import pytest

from benchmarks.laboratory import DOCS, FIGURES, enumerable, main, plan
from benchmarks.support.laboratory.cases import CHUNK
from benchmarks.support.laboratory.report import BEGIN, END, tables_of
from benchmarks.support.laboratory.variants import preset_names
from tests.support.paths import CONF

UNBIASED = ("aepo_unbiased", "dr_grpo", "reinforce_pp", "reinforce_pp_baseline", "rloo")
"""Presets whose first update has the direction of the true gradient. All others are biased, as the table says."""


def test_every_preset_has_a_row():
    assert preset_names() == sorted(path.stem for path in (CONF / "algorithm").glob("[!_]*.yaml"))


def test_parts_are_changed_under_the_middle_entropy():
    cases = plan(["off", "on", "components"], [], [0.9, 0.5, 0.1])
    assert {case.setting.entropy for case in cases} == {0.5}
    assert len({(case.table, case.name) for case in cases}) == len(cases)
    algorithms = [case.algorithm for case in cases]
    assert all(one != other for at, one in enumerate(algorithms) for other in algorithms[:at])


def test_presets_that_sample_independently_are_enumerated_as_well():
    found = list(enumerable(["aepo", "empg", "gigpo", "grpo", "reinforce_pp"]))
    assert found[:2] == ["nothing", "deviation in the advantage"]
    assert [name for name in found if name.startswith("`")] == ["`empg`", "`grpo`"]


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
    assert {name for name, _ in found} == {*preset_names()}
    deviations = {key: each["squared_bias"]["value"] / each["squared_bias"]["error"] for key, each in found.items()}
    unbiased = [key for key in found if key[0] in UNBIASED]
    assert len(unbiased) == 3 * len(UNBIASED)
    assert [key for key in unbiased if abs(deviations[key]) > 4] == []
    # The more certain the policy, the less there is to tell.
    biased = [key for key in found if key not in unbiased and key[1] > 0.3]
    assert len(biased) == 2 * (len(preset_names()) - len(UNBIASED))
    assert [key for key in biased if not deviations[key] > 4] == []
    for name, percentages in (("aepo", [30, 25, 5]), ("grpo", [25, 16, 5])):
        assert [round(100 * found[name, entropy]["bias"]) for entropy in (0.9, 0.6, 0.3)] == percentages
    assert found["grpo", 0.6]["bias"] < found["aepo", 0.6]["bias"] < found["empg", 0.6]["bias"]


@pytest.mark.slow
def test_a_budget_of_seconds_ends_the_measurement_after_whole_chunks(capsys):
    main(["--budget", "1", "--presets", "grpo", "--entropies", "0.6", "--tables", "presets"])
    (case,) = json.loads(capsys.readouterr().out.splitlines()[-1])["figures"]["cases"]
    assert case["num_steps"] > 0
    assert case["num_steps"] % CHUNK == 0


@pytest.mark.slow
def test_the_last_line_has_the_figures_and_whether_the_control_is_unbiased(capsys):
    main(["--groups", "40", "--presets", "grpo", "--entropies", "0.6", "--tables", "presets,on,exact"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["name"] == "laboratory"
    assert result["figures"]["cases"][0]["name"] == "grpo"
    assert {"known_factor_gap_k2", "known_factor_gap_k3"} <= set(result["goals"])
    assert [goal for goal in result["goals_missed"] if goal != "groups_per_cpu_s"] == []
