"""The command `aepo-eval show`: the numbers of an evaluation beside published ones."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from aepo_lightning.app.evaluation.published import ALL, published_scores_of, rule_note, saved_suite
from aepo_lightning.app.evaluation.tables import print_tables
from aepo_lightning.app.paths import writing
from aepo_lightning.app.printed import print_text
from aepo_lightning.evaluation.labelled import read_calibration
from aepo_lightning.evaluation.report import Report
from aepo_lightning.evaluation.results_file import read_evaluation
from aepo_lightning.evaluation.trust import TrustLimits

JUDGE_CHECK = "judge_check.json"
"""Where `show` looks for what labelled answers say of the judge."""


def show(words: Sequence[str]) -> None:
    """Print the numbers of an evaluation.

    Args:
        words: Of the command line, after `show`.

    Raises:
        ConfigError: If a limit is no share, or the report cannot be written.
        DataError: If the folder is not that of an evaluation, or with `--strict` a score is in doubt.
    """
    args = _parser().parse_args(list(words))
    report = make_report(args.folder, args.published, _limits(args), args.judge_check)
    if args.json:
        print_text(json.dumps(report.to_dict(), indent=1))
    elif args.markdown:
        print_text(report.to_markdown(), end="")
    else:
        print_tables(report.tables, report.notes)
    if args.write:
        with writing(args.folder):
            report.write(args.folder)
    if args.strict:
        report.check()


def make_report(
    folder: Path, method: str = "AEPO", limits: TrustLimits | None = None, judge_check: Path | None = None
) -> Report:
    """Return the report of an evaluation.

    Args:
        folder: Of the evaluation.
        method: Whose published numbers stand beside it: one method, `all`, or none if empty.
        limits: Beyond which scores are marked. None is the defaults.
        judge_check: What `judge-check` wrote. None takes `judge_check.json` of the folder, if it is there.

    Raises:
        ConfigError: If the configuration in the folder cannot be read.
        DataError: If the folder is not that of an evaluation, or has no results yet, or the check cannot be read.
    """
    runs, suite = read_evaluation(folder), saved_suite(folder)
    published = {run.name: published_scores_of(run.name, method, suite) for run in runs}
    own = folder / JUDGE_CHECK
    path = judge_check or (own if own.is_file() else None)
    remarks = [rule_note(run, suite) for run in runs if published[run.name]]
    calibration = None if path is None else read_calibration(path)
    return Report.of(runs, limits, published, calibration, [each for each in remarks if each])


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Add what decides whether a score is marked or refused."""
    usual = TrustLimits()
    parser.add_argument("--strict", action="store_true", help="exit with an error if a score is in doubt")
    parser.add_argument(
        "--max-failed-tools",
        type=float,
        default=usual.max_failed_tools,
        metavar="SHARE",
        help=f"of trajectories with failed tools, above which a score is in doubt; default {usual.max_failed_tools:g}",
    )
    parser.add_argument(
        "--max-unjudged",
        type=float,
        default=usual.max_unjudged,
        metavar="SHARE",
        help=f"of trajectories without a verdict, above which a score is in doubt; default {usual.max_unjudged:g}",
    )


def _limits(args: argparse.Namespace) -> TrustLimits:
    return TrustLimits(max_failed_tools=args.max_failed_tools, max_unjudged=args.max_unjudged)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="aepo-eval show", description=__doc__)
    parser.add_argument("folder", type=Path, help="of an evaluation")
    parser.add_argument(
        "--published", default="AEPO", metavar="METHOD", help=f"whose numbers stand beside; default AEPO, or {ALL}"
    )
    parser.add_argument(
        "--judge-check",
        type=Path,
        metavar="FILE",
        help=f"of `judge-check`; default {JUDGE_CHECK} of the folder, if there",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="print Markdown")
    form.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument(
        "--write", action="store_true", help="also write report.json, report.md and pass_at_k.png there"
    )
    add_limits(parser)
    return parser
