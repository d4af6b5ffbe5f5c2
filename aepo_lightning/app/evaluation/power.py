"""The command `aepo-eval power`: how many questions show a difference, from one evaluation or two as a pilot."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from aepo_lightning.app.evaluation.compare import pair_runs
from aepo_lightning.app.evaluation.tables import print_tables
from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.evaluation.power import (
    FEWEST_FOR_VARIANCE,
    Spread,
    detectable_difference,
    questions_needed,
    spread_of_one,
    spread_of_pair,
)
from aepo_lightning.evaluation.report import Table
from aepo_lightning.evaluation.results_file import BenchmarkResults, read_evaluation
from aepo_lightning.evaluation.statistics import Scores
from aepo_lightning.evaluation.summary import by_question, headline

_FLAT = (
    "! {}: no score of the pilot differs from another, which says nothing of how scores spread. Take more questions, "
    "or a model that is neither always right nor always wrong."
)
_SMALL = "! {}: a pilot must have at least two questions with verdicts, but got {}. It is left out."


def power(words: Sequence[str]) -> None:
    """Print how many questions show a difference of so many points.

    Args:
        words: Of the command line, after `power`.

    Raises:
        ConfigError: If a number has no meaning, or the pilot is too small on all of its benchmarks.
        DataError: If a folder is not that of an evaluation.
    """
    args, flat = _parser().parse_args(list(words)), set[str]()
    small: dict[str, int] = {}
    try:
        rows = list(_rows(args, flat, small))
    except DataError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not rows:
        found = ", ".join(f"{number} of {name}" for name, number in small.items())
        raise ConfigError(f"A pilot must have at least two questions with verdicts, but got {found}. Evaluate more.")
    asked, shown = f"questions for {args.difference:g} points", "points that these show"
    headings = ("benchmark", "correlation", "samples", asked, "questions here", shown)
    title = f"Found with probability {args.power:g} by a two-sided test at {args.level:g}"
    left_out = [_SMALL.format(name, number) for name, number in small.items()]
    notes = [_note(args), *left_out, *(_FLAT.format(name) for name in sorted(flat))]
    print_tables([Table(title=title, headings=headings, rows=rows)], notes)


def _rows(args: argparse.Namespace, flat: set[str], small: dict[str, int]) -> Iterator[list[str]]:
    """Yield rows, and add the benchmarks to `flat` whose pilot does not tell how scores spread."""
    for name, number, correlation, spread in _spreads(args, small):
        for num_samples in args.num_samples if spread.within is not None else [1]:
            settings = {"num_samples": num_samples, "power": args.power, "level": args.level}
            needed = questions_needed(spread, args.difference / 100, **settings)
            shown = 100 * detectable_difference(spread, number, **settings)
            if shown:
                yield [name, correlation, str(num_samples), str(needed), str(number), f"{shown:.1f}"]
            else:
                flat.add(name)
                yield [name, correlation, str(num_samples), "-", str(number), "-"]


def _spreads(args: argparse.Namespace, small: dict[str, int]) -> Iterator[tuple[str, int, str, Spread]]:
    """Yield for each benchmark its name, number of questions, and spreads with the correlations they assume.

    Those with too few questions are added to `small` with their number.
    """
    if args.other is None:
        for run in read_evaluation(args.folder):
            values = list(_values(run).values())
            if len(values) < FEWEST_FOR_VARIANCE:
                small[run.name] = len(values)
                continue
            for correlation in args.correlation:
                spread = spread_of_one(values, correlation)
                yield run.name, len(values), f"{correlation:g}" if spread.within else "0", spread
                if spread.within is None:
                    break  # it is not used
        return
    for one, other in pair_runs(args.folder, args.other):
        ours, theirs = _values(one), _values(other)
        common = [name for name in ours if name in theirs]
        if len(common) < FEWEST_FOR_VARIANCE:
            small[one.name] = len(common)
            continue
        spread = spread_of_pair([ours[name] for name in common], [theirs[name] for name in common])
        yield one.name, len(common), "measured", spread


def _values(run: BenchmarkResults) -> dict[str, Scores]:
    """Return the scores of the samples of each question that has verdicts."""
    read = headline(run.stamp.metric)
    known = {
        question[0].question_id: [read(each) for each in question if each.verdict.is_scored]
        for question in by_question(run.results)
    }
    return {name: np.array(scores, dtype=np.float64) for name, scores in known.items() if scores}


def _note(args: argparse.Namespace) -> str:
    if args.other is not None:
        return "Variances are those of the two evaluations' differences."
    return (
        "Variances are those of one evaluation; correlation is what is assumed of the two runs that will be compared, "
        "over questions. Give a second evaluation to measure it."
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="aepo-eval power", description=__doc__)
    parser.add_argument("folder", type=Path, help="of an evaluation, the pilot")
    parser.add_argument("other", type=Path, nargs="?", help="of another one, to measure how differences spread")
    parser.add_argument("--difference", type=float, default=2.0, metavar="POINTS", help="to be found; default 2")
    parser.add_argument(
        "--num-samples", type=int, nargs="+", default=[1, 3, 5], metavar="N", help="of each question; default 1 3 5"
    )
    parser.add_argument("--power", type=float, default=0.8, help="probability to find it; default 0.8")
    parser.add_argument("--level", type=float, default=0.05, help="of the two-sided test; default 0.05")
    parser.add_argument(
        "--correlation",
        type=float,
        nargs="+",
        default=[0.5, 0.8, 0.95],
        metavar="R",
        help="of two runs over questions, assumed where one evaluation is given; default 0.5 0.8 0.95",
    )
    return parser
