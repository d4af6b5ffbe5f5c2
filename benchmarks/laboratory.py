"""The first update of every algorithm against the true gradient, in a world small enough to enumerate.

    python -m benchmarks.laboratory [--budget SECONDS | --groups N] [--presets aepo,grpo] [--entropies 0.9,0.6,0.3]
                                    [--tables presets,off,on,components,branching,credit,exact] [--write]

Seven kinds of tables: every preset of `conf/algorithm`; AEPO with one part taken out; parts that are right up to a
known factor with one of AEPO's put in; the same with a component that is off by default, with branches, and with
another credit of turns; and independent samples without chance, those of presets among them. docs/laboratory.md says
what the columns mean. `--write` puts the figures into docs/figures/laboratory.json, where those of other cases stay,
and makes the tables of the guide from that file.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from aepo_lightning.training.algorithm import Algorithm
from benchmarks.support.common import describe_machine, print_result
from benchmarks.support.laboratory import variants
from benchmarks.support.laboratory.cases import Case, Setting, enumerate_updates, is_independent, measure
from benchmarks.support.laboratory.report import insert, merged, tables_of
from benchmarks.support.laboratory.world import World

DOCS = Path(__file__).resolve().parents[1] / "docs"
FIGURES = DOCS / "figures" / "laboratory.json"
TABLES = ("presets", "off", "on", "components", "branching", "credit", "exact")
TITLES = {
    "off": "AEPO with one part taken out",
    "on": "Right parts with one of AEPO's put in",
    "components": "Right parts with a component that is off by default",
    "branching": "Right parts with branches",
    "credit": "Right parts with another credit",
}
MIN_GROUPS_PER_CPU_S = 200.0


def plan(tables: list[str], names: list[str], entropies: list[float]) -> list[Case]:
    """Return what is measured. Parts of AEPO are taken out and put in under the middle entropy."""
    world = World()
    settings = [Setting(entropy=entropy, world=world) for entropy in entropies]
    middle = settings[len(settings) // 2]
    cases = []
    if "presets" in tables:
        presets = {name: variants.preset(name) for name in names}
        cases += [
            Case(table="Presets", name=name, algorithm=algorithm, setting=setting)
            for setting in settings
            for name, algorithm in presets.items()
        ]
    kinds = {
        "off": variants.one_off,
        "on": variants.one_on,
        "components": variants.components,
        "branching": variants.branching,
        "credit": variants.credits,
    }
    for table, make in kinds.items():
        if table in tables:
            cases += [
                Case(table=TITLES[table], name=name, algorithm=algorithm, setting=middle)
                for name, algorithm in make().items()
            ]
    return cases


def enumerable(names: list[str] | None) -> dict[str, Algorithm]:
    """Return what needs no sampling: of the parts that are put in and of the presets, those that sample independently.

    Args:
        names: Presets; None for all.
    """
    presets = {f"`{name}`": variants.preset(name) for name in names or variants.preset_names()}
    return {name: each for name, each in {**variants.one_on(), **presets}.items() if is_independent(each)}


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    options = _options(arguments)
    torch.set_num_threads(1)
    cases = plan(options.tables, options.presets or variants.preset_names(), options.entropies)
    measured = []
    for case in cases:
        found = measure(case, seconds=options.budget / len(cases), num_groups=options.groups)
        measured.append(found)
        error = found["cosine"]["error"]
        print(f"{case.table}, {case.setting.entropy:g}, {case.name}: {found['cosine']['value']:.4f} ± {error:.4f}")
        sys.stdout.flush()
    middle = Setting(entropy=options.entropies[len(options.entropies) // 2], world=World())
    exact = enumerate_updates(enumerable(options.presets), middle, (2, 3)) if "exact" in options.tables else []
    figures = {"cases": measured, "exact": exact, "exact_entropy": middle.entropy}
    print(tables_of(figures))
    if options.write:
        kept = merged(json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.exists() else {}, figures)
        FIGURES.write_text(json.dumps({"machine": describe_machine(), **kept}, indent=1) + "\n", encoding="utf-8")
        insert(DOCS / "laboratory.md", tables_of(kept))
    print_result("laboratory", figures, _goals(measured, exact))


def _goals(measured: list[dict[str, Any]], exact: list[dict[str, Any]]) -> dict[str, tuple[float, str, float]]:
    """Return what must hold: speed, and no bias where theory says that there is none."""
    goals: dict[str, tuple[float, str, float]] = {}
    if measured:
        speeds = sorted(case["groups_per_cpu_s"] for case in measured)
        goals["groups_per_cpu_s"] = (speeds[len(speeds) // 2], ">=", MIN_GROUPS_PER_CPU_S)
    for case in measured:
        if case["table"] == TITLES["on"] and case["name"] == "nothing":
            square = case["squared_bias"]
            goals["control_bias_in_errors"] = (square["value"] / square["error"], "<=", 4.0)
    for row in exact:
        if row["name"] == "nothing":
            factor = (row["budget"] - 1) / row["budget"]
            gap = max(abs(found / factor - 1.0) for found in row["factors"])
            goals[f"known_factor_gap_k{row['budget']}"] = (gap, "<=", 1e-5)
    return goals


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=300.0, help="seconds for all sampled tables together")
    parser.add_argument("--groups", type=int, help="groups of each quest in every case, in place of a budget")
    parser.add_argument("--presets", type=lambda text: text.split(","), help="names, all by default")
    parser.add_argument(
        "--entropies", type=lambda text: [float(each) for each in text.split(",")], default="0.9,0.6,0.3"
    )
    parser.add_argument("--tables", type=lambda text: text.split(","), default=",".join(TABLES))
    parser.add_argument("--write", action="store_true", help="put tables and figures into docs/")
    options = parser.parse_args(arguments)
    if unknown := sorted({*options.tables} - {*TABLES}):
        parser.error(f"`--tables` must name some of {', '.join(TABLES)}, but got {', '.join(unknown)}.")
    if unknown := sorted({*(options.presets or ())} - {*variants.preset_names()}):
        parser.error(f"`--presets` must name files of conf/algorithm, but got {', '.join(unknown)}.")
    return options


if __name__ == "__main__":
    main()
