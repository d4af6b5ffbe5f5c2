"""The command `aepo-eval compare`: two evaluations, question by question."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from aepo_lightning.app.evaluation.tables import print_tables
from aepo_lightning.app.printed import print_text
from aepo_lightning.errors import DataError
from aepo_lightning.evaluation.comparison import Comparison, compare_results, protocol_differences
from aepo_lightning.evaluation.report import Table
from aepo_lightning.evaluation.results_file import BenchmarkResults, read_evaluation
from aepo_lightning.evaluation.statistics import holm

_LONGEST = 90


def compare(words: Sequence[str]) -> None:
    """Print how far two evaluations differ, and on which questions.

    Args:
        words: Of the command line, after `compare`.

    Raises:
        DataError: If a folder is not that of an evaluation, they have no benchmark or question in common, or they
            measured in different ways and `--other-protocol` does not allow it.
    """
    args = _parser().parse_args(list(words))
    pairs = pair_runs(args.before, args.after)
    differences = [f"  {one.name}: {each}" for one, other in pairs for each in protocol_differences(one, other)]
    if differences and not args.other_protocol:
        raise DataError(
            f"What is compared must be measured in the same way, but {args.before} and {args.after} differ in:\n"
            + "\n".join(differences)
            + "\nEvaluate one of them again, or compare with --other-protocol."
        )
    found = [compare_results(one, other) for one, other in pairs]
    if args.json:
        print_text(json.dumps({each.benchmark: asdict(each) for each in found}, indent=1))
        return
    notes = ["! measured in different ways:", *differences] if differences else []
    notes += _notes(found)
    print_tables([comparison_table(found), *(changes_table(each, args.changes) for each in found)], notes)


def pair_runs(before: Path, after: Path) -> list[tuple[BenchmarkResults, BenchmarkResults]]:
    """Return the results on the benchmarks that two evaluations have in common.

    Raises:
        DataError: If there is none, or a folder is not that of an evaluation.
    """
    ours, theirs = ({run.name: run for run in read_evaluation(folder)} for folder in (before, after))
    common = [name for name in ours if name in theirs]
    if not common:
        raise DataError(
            f"Evaluations that are compared must have a benchmark in common, but {before} has {', '.join(ours)} and "
            f"{after} has {', '.join(theirs)}."
        )
    return [(ours[name], theirs[name]) for name in common]


def comparison_table(found: Sequence[Comparison]) -> Table:
    """Return one row for each benchmark; p-values of several are also adjusted for their number (Holm)."""
    adjusted = holm({each.benchmark: each.paired.p for each in found})
    rows = []
    for each in found:
        difference = each.paired.difference
        interval = f"{_points(difference.value)} [{_points(difference.low)}, {_points(difference.high)}]"
        bounds = "" if each.if_worst == each.if_best else f"{_points(each.if_worst)}..{_points(each.if_best)}"
        rows.append(
            [
                f"{each.benchmark} ({each.metric})",
                str(each.num_questions),
                str(each.num_left_out),
                f"{100 * each.before:.1f}",
                f"{100 * each.after:.1f}",
                interval,
                bounds,
                f"{each.paired.p:.4f}",
                f"{adjusted[each.benchmark]:.4f}",
            ]
        )
    headings = ("benchmark", "questions", "left out", "before", "after", "difference", "bounds", "p", "p (Holm)")
    return Table(title="Paired over questions, in points with 95 % intervals", headings=headings, rows=rows)


def changes_table(found: Comparison, most: int) -> Table:
    """Return the questions that changed most, as many that got worse as that got better where there are."""
    worse = [each for each in found.changes if each.after < each.before]
    better = [each for each in found.changes if each.after > each.before][::-1]
    rows = [
        [each.question_id, each.level, f"{each.before:.2f}", f"{each.after:.2f}", _cut(each.question)]
        for each in (*better[:most], *worse[:most])
    ]
    title = f"{found.benchmark}: {len(better)} questions got better, {len(worse)} worse"
    headings = ("question", "level", "before", "after", "text")
    return Table(title=title, headings=headings, rows=rows, words=("level", "text"))


def _notes(found: Sequence[Comparison]) -> list[str]:
    return [
        f"{each.benchmark}: {each.num_samples[0]} and {each.num_samples[1]} samples of a question, so that p is near."
        for each in found
        if each.num_samples[0] != each.num_samples[1]
    ]


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def _cut(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST]}..."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="aepo-eval compare", description=__doc__)
    parser.add_argument("before", type=Path, help="folder of an evaluation")
    parser.add_argument("after", type=Path, help="folder of another one; differences are this one's less the first's")
    parser.add_argument(
        "--changes", type=int, default=10, metavar="N", help="questions to list of each kind; default 10"
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument(
        "--other-protocol", action="store_true", help="compare although they were not measured in the same way"
    )
    return parser
