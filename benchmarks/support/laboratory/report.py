"""The tables of a guide: figures as Markdown, put between two marks of a file."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- begin: python -m benchmarks.laboratory -->", "<!-- end -->"
_SAMPLED = ("", "cosine", "bias", "bias within quests", "c of the quests", "tokens", "calls", "value bias", "steps")
_EXACT = ("", "k", "cosine", "cosine within quests", "factor of each quest")


def tables_of(figures: Mapping[str, Any]) -> str:
    """Return one table for each group of cases and each entropy, and the one without chance."""
    cases = figures["cases"]
    keys = dict.fromkeys((case["table"], case["entropy"]) for case in cases)
    parts = []
    for table, entropy in keys:
        own = [case for case in cases if (case["table"], case["entropy"]) == (table, entropy)]
        title = f"### {table}, entropy {entropy:g} of uniform"
        parts.append(f"{title}\n\n{_table(_SAMPLED, map(_sampled_row, own))}")
    if figures["exact"]:
        title = f"### Independent samples without chance, entropy {figures['exact_entropy']:g} of uniform"
        parts.append(f"{title}\n\n{_table(_EXACT, map(_exact_row, figures['exact']))}")
    return "\n\n".join(parts)


def merged(known: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Return figures with those of another measurement put in place of their like, the others kept."""
    cases = {_key(case): case for case in known.get("cases", [])} | {_key(case): case for case in found["cases"]}
    order = list(dict.fromkeys(key[:2] for key in cases))
    newest = found if found["exact"] else known
    entropy = newest.get("exact_entropy", found["exact_entropy"])
    exact = [*(known.get("exact", []) if known.get("exact_entropy") == entropy else []), *found["exact"]]
    return {
        "cases": sorted(cases.values(), key=lambda case: order.index(_key(case)[:2])),
        "exact": list({(row["name"], row["budget"]): row for row in exact}.values()),
        "exact_entropy": entropy,
    }


def _key(case: Mapping[str, Any]) -> tuple[str, float, str]:
    return case["table"], case["entropy"], case["name"]


def insert(path: Path, text: str) -> None:
    """Put text between the marks of a file.

    Raises:
        ValueError: If the file does not have both marks, each once.
    """
    page = path.read_text(encoding="utf-8")
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"`{path}` must contain {BEGIN!r} and {END!r} once each. Put them where the tables go.")
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    path.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def _sampled_row(case: Mapping[str, Any]) -> list[str]:
    return [
        f"`{case['name']}`" if case["table"] == "Presets" else case["name"],
        f"{case['cosine']['value']:.4f} ± {case['cosine']['error']:.4f}",
        _root(case["squared_bias"]),
        _root(case["squared_bias_within"]),
        ", ".join(f"{scale['value']:.3g}" for scale in case["scales"]),
        f"{case['tokens_per_unit']:.0f}",
        f"{case['calls_per_unit']:.0f}",
        ", ".join(_signed(bias) for bias in case["value_biases"]),
        f"{case['num_steps']:,}",
    ]


def _exact_row(row: Mapping[str, Any]) -> list[str]:
    within = ", ".join(f"{cosine:.5f}" for cosine in row["cosines_within"])
    factors = ", ".join(f"{factor:.4f}" for factor in row["factors"])
    return [row["name"], str(row["budget"]), f"{row['cosine']:.5f}", within, factors]


def _root(square: Mapping[str, float]) -> str:
    """Return the root of an estimated square as a percentage, and how many standard errors the square is from 0."""
    deviations = square["value"] / square["error"] if square["error"] else math.inf
    return f"{100 * math.sqrt(max(0.0, square['value'])):.1f} % ({deviations:+.1f} s.e.)"


def _signed(estimate: Mapping[str, float]) -> str:
    text = f"{estimate['value']:+.4f} ± {estimate['error']:.4f}"
    return f"**{text}**" if abs(estimate["value"]) > 4 * estimate["error"] else text


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
