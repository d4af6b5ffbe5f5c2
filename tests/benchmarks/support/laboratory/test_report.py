"""Figures as tables, and how those of several measurements come together."""

import pytest

from benchmarks.support.laboratory.report import BEGIN, END, insert, merged, tables_of


def case(name, table="Presets", entropy=0.6, cosine=0.5):
    number = {"value": cosine, "error": 0.01}
    return {
        "table": table,
        "name": name,
        "entropy": entropy,
        "num_steps": 1000,
        "cosine": number,
        "squared_bias": {"value": 0.04, "error": 0.01},
        "squared_bias_within": {"value": -0.01, "error": 0.01},
        "scales": [number, number],
        "tokens_per_unit": 41.6,
        "calls_per_unit": 10.0,
        "value_biases": [{"value": 0.05, "error": 0.01}, {"value": 0.01, "error": 0.01}],
    }


def figures(*cases, exact=()):
    return {"cases": list(cases), "exact": list(exact), "exact_entropy": 0.6}


def test_a_row_says_how_many_errors_a_square_is_from_zero_and_marks_a_biased_value():
    text = tables_of(figures(case("grpo")))
    row = text.splitlines()[-1]
    assert row == (
        "| `grpo` | 0.5000 ± 0.0100 | 20.0 % (+4.0 s.e.) | 0.0 % (-1.0 s.e.) | 0.5, 0.5 | 42 | 10 | "
        "**+0.0500 ± 0.0100**, +0.0100 ± 0.0100 | 1,000 |"
    )


def test_figures_measured_again_take_the_place_of_their_like_and_others_stay():
    exact = [{"name": "nothing", "budget": 2, "cosine": 1.0, "cosines_within": [1.0], "factors": [0.5]}]
    known = figures(case("aepo"), case("grpo"), case("no penalty", table="Parts"), exact=exact)
    found = merged(known, figures(case("grpo", cosine=0.9), case("rloo")))
    assert [each["name"] for each in found["cases"]] == ["aepo", "grpo", "rloo", "no penalty"]
    assert found["cases"][1]["cosine"]["value"] == 0.9
    assert found["exact"] == exact
    assert "| nothing | 2 | 1.00000 | 1.00000 | 0.5000 |" in tables_of(found)


def test_rows_without_chance_stay_beside_those_of_others_under_the_same_entropy():
    def row(name, factor):
        return {"name": name, "budget": 2, "cosine": 1.0, "cosines_within": [1.0], "factors": [factor]}

    known = figures(exact=[row("nothing", 0.5), row("`grpo`", 0.7)])
    found = merged(known, figures(exact=[row("`grpo`", 0.8), row("`gspo`", 0.9)]))
    assert [(each["name"], each["factors"]) for each in found["exact"]] == [
        ("nothing", [0.5]),
        ("`grpo`", [0.8]),
        ("`gspo`", [0.9]),
    ]
    other = figures(exact=[row("`grpo`", 0.6)]) | {"exact_entropy": 0.3}
    assert merged(known, other)["exact"] == other["exact"]


def test_tables_go_between_the_marks_of_a_page_again_and_again(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    insert(page, "new")
    insert(page, "newer")
    assert page.read_text() == f"before\n{BEGIN}\n\nnewer\n\n{END}\nafter\n"


def test_a_page_without_marks_is_refused(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("nothing")
    with pytest.raises(ValueError, match="once each"):
        insert(page, "new")
