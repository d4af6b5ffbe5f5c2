"""The command `aepo-eval judge-check`: run a judge on labelled answers and say how far it agrees with them.

    aepo-eval judge-check --labelled FILE.jsonl judge.base_url=http://127.0.0.1:8000/v1 judge.model=NAME

Each line of the file has `question`, `golds`, `answer` and `is_correct`. Figures and single verdicts are written as
JSON, with which an evaluation by the same judge shows how far its score can be trusted. Until they are, verdicts lie
beside (`*.verdicts`), so that the same command goes on where it was cut off.
"""

import argparse
import glob
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from aepo_lightning.app.build import build
from aepo_lightning.app.evaluation.composing import composed_config
from aepo_lightning.app.evaluation.judges import describe_work
from aepo_lightning.app.printed import plain_console, print_text
from aepo_lightning.app.words import plain_words
from aepo_lightning.errors import ConfigError
from aepo_lightning.evaluation.calibration import Calibration
from aepo_lightning.evaluation.labelled import calibrate, read_labelled, write_calibration
from aepo_lightning.evaluation.statistics import Estimate
from aepo_lightning.event_loop import run_in_event_loop
from aepo_lightning.rewards.judge import JudgeCounts, LLMJudge

_CONFIG = "judge_check"


def judge_check(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: The words after its name.

    Returns:
        The exit status: 1 if the judge came to no verdict at all.

    Raises:
        AepoError: If the settings or the file cannot be used.
    """
    args = _parser().parse_intermixed_args(list(argv))
    labelled = read_labelled(args.labelled)
    output = args.output or args.labelled.with_suffix(".judge_check.json")
    unfinished = output.with_name(f"{output.name}.verdicts")
    judge = judge_from_words(plain_words(args.words), args.config_dir, unfinished)
    calibration = run_in_event_loop(calibrate(judge, labelled, judge.identity))
    write_calibration(output, calibration)
    for path in output.parent.glob(f"{glob.escape(unfinished.name)}*"):
        path.unlink(missing_ok=True)
    plain_console().print(render_calibration(calibration, judge.counts))
    print_text(f"written to {output}")
    return int(calibration.agreement is None)


def judge_from_words(words: Sequence[str], config_dir: str | None = None, store: Path | None = None) -> LLMJudge:
    """Return the judge that overrides describe.

    Args:
        words: `judge.key=value`, and `judge=NAME` for another file of `conf/judge/`.
        config_dir: A folder of configuration files that is searched as well.
        store: Where verdicts are kept if `judge.cache_path` does not say.

    Raises:
        ConfigError: If they do not fit, or what they describe is no judge.
    """
    node = composed_config(_CONFIG, words, config_dir).judge
    if "cache_path" in node and node.cache_path is None and store is not None:
        node.cache_path = str(store)
    judge = build(node)
    if not isinstance(judge, LLMJudge):
        raise ConfigError(
            f"`judge` must be an `LLMJudge`, but got {type(judge).__name__}. A rule needs no calibration."
        )
    return judge


def render_calibration(calibration: Calibration, counts: JudgeCounts | None = None) -> Group:
    """Return the figures of a calibration as they are printed.

    Args:
        calibration: What the judge made of labelled answers.
        counts: What that cost; None says nothing about it.
    """
    table = calibration.confusion
    cells = Table("", "labelled correct", "labelled incorrect")
    cells.add_row("judged correct", str(table.true_positives), str(table.false_positives))
    cells.add_row("judged incorrect", str(table.false_negatives), str(table.true_negatives))
    cells.add_row("no verdict", str(table.abstained_correct), str(table.abstained_incorrect))
    num_questions = len({pair.question_id for pair in calibration.pairs})
    judge = calibration.judge.get("model", "?")
    lines = [
        f"{len(calibration.pairs)} answers to {num_questions} questions, judged by {judge}",
        f"agreement    {_percent(calibration.agreement)}",
        f"kappa        {_number(calibration.kappa)}",
    ]
    if calibration.abstentions:
        kinds = ", ".join(f"{kind} {num}" for kind, num in calibration.abstentions.items())
        lines.append(f"no verdict   {table.num_abstained} ({kinds})")
    if counts is not None:
        lines.append(f"took         {describe_work(counts)}")
    return Group(Text("\n".join(lines)), cells)


def _percent(found: Estimate | None) -> str:
    if found is None:
        return "none: the judge came to no verdict"
    return f"{100 * found.value:.1f} % [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def _number(found: Estimate | None) -> str:
    if found is None:
        return "not defined: all labels and verdicts are the same"
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="aepo-eval judge-check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--labelled", type=Path, required=True, metavar="FILE", help="JSONL of labelled answers")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="JSON to write; default: beside the labels, *.judge_check.json"
    )
    parser.add_argument("--config-dir", help="a folder with configuration files of your own, such as judge/my.yaml")
    parser.add_argument(
        "words", nargs="*", metavar="judge.key=value", help="settings of the judge, over conf/judge/llm.yaml"
    )
    return parser
