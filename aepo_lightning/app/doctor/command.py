"""The command `aepo-doctor`: whether a run of a configuration would work here, a line for each thing looked at.

    aepo-doctor [group=option ...] [+experiment=NAME] [key=value ...]     the words of `python train.py`

Exit status 1 means that something failed. What is built and generated for it is thrown away.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from omegaconf import OmegaConf
from rich.console import Console
from rich.text import Text

from aepo_lightning.app.build import find_modules_here
from aepo_lightning.app.command import CONFIG_NAME, guarded_command, quieten_libraries, speak_utf8
from aepo_lightning.app.doctor.answers import (
    look_at_branch_rule,
    look_at_model,
    look_at_questions,
    look_at_reward,
    look_at_round_trip,
)
from aepo_lightning.app.doctor.finding import Check, Finding, Level, examine
from aepo_lightning.app.doctor.machine import (
    look_at_devices,
    look_at_disk,
    look_at_memory,
    look_at_permission,
    look_at_versions,
)
from aepo_lightning.app.doctor.policy import (
    look_at_clip_range,
    look_at_masks,
    look_at_parity,
    look_at_publication,
    look_for_alarms,
)
from aepo_lightning.app.doctor.services import look_at_judges, look_at_tools
from aepo_lightning.app.doctor.subject import Subject, examined
from aepo_lightning.app.evaluation.composing import composed_config
from aepo_lightning.app.overrides import explain_missing
from aepo_lightning.app.printed import print_text
from aepo_lightning.app.threads import set_threads
from aepo_lightning.app.words import plain_words
from aepo_lightning.errors import ConfigError
from aepo_lightning.printable import printable

CHECKS: tuple[Check[Subject], ...] = (
    Check("versions", look_at_versions),
    Check("devices", look_at_devices),
    Check("memory", look_at_memory),
    Check("disk", look_at_disk),
    Check("permission", look_at_permission),
    Check("model", look_at_model),
    Check("questions", look_at_questions),
    Check("tool", look_at_tools),
    Check("judge", look_at_judges),
    Check("round trip", look_at_round_trip),
    Check("reward", look_at_reward),
    Check("branch rule", look_at_branch_rule),
    Check("clip range", look_at_clip_range),
    Check("log-probs", look_at_parity),
    Check("publication", look_at_publication),
    Check("masks", look_at_masks),
    Check("rollouts", look_for_alarms),
)
_STYLES = {Level.PASS: "green", Level.WARN: "yellow", Level.FAIL: "bold red", Level.SKIPPED: "dim"}
_WIDTH = 16


def doctor(
    words: Sequence[str], *, config_dir: str | None = None, num_questions: int = 2, is_quick: bool = False
) -> Iterator[tuple[str, Finding]]:
    """Yield what there is to say about a configuration, as soon as it is known.

    Args:
        words: Overrides, as Hydra reads them.
        config_dir: A folder that is searched for options as well.
        num_questions: How many are rolled out.
        is_quick: Leave the weights alone, and what needs them.

    Raises:
        ConfigError: If the words do not compose.
    """
    cfg = composed_config(CONFIG_NAME, words, config_dir)
    if problem := explain_missing(OmegaConf.missing_keys(cfg)):
        raise ConfigError(problem)
    set_threads(cfg.num_threads)
    with TemporaryDirectory(prefix="aepo-doctor-") as folder:
        options = {"num_questions": num_questions, "is_quick": is_quick}
        with examined(cfg, Path(folder), **options) as subject:
            yield from examine(CHECKS, subject)


def shown(name: str, finding: Finding) -> Text:
    """Return a finding as a line."""
    line = Text(f"{finding.level:<8}", _STYLES[finding.level])
    told = f"{name:<{_WIDTH}}{finding.line}{f' {finding.remedy}' if finding.remedy else ''}"
    return line.append(printable(told), "default")


def main() -> None:
    """Run the command line."""
    speak_utf8()
    find_modules_here()
    quieten_libraries()
    args = _parser().parse_intermixed_args()
    console = Console(soft_wrap=True, highlight=False)
    found: list[tuple[str, Finding]] = []
    with guarded_command("Nothing was kept."):
        options = {"config_dir": args.config_dir, "num_questions": args.questions, "is_quick": args.quick}
        for name, finding in doctor(plain_words(args.words), **options):
            found.append((name, finding))
            if not args.json:
                console.print(shown(name, finding))
    counts = Counter(finding.level for _, finding in found)
    if args.json:
        lines = [{"check": name, **asdict(finding)} for name, finding in found]
        print_text(json.dumps({"findings": lines, "counts": counts}))
    else:
        console.print(", ".join(f"{counts[level]} {level}" for level in Level if counts[level]) + ".")
    sys.exit(bool(counts[Level.FAIL] or (args.strict and counts[Level.WARN])))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="aepo-doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", metavar="key=value", help="as for train.py; default: the main job")
    parser.add_argument("--questions", type=int, default=2, help="how many are rolled out (default 2)")
    parser.add_argument("--quick", action="store_true", help="leave the weights alone, and what needs them")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--strict", action="store_true", help="exit status 1 for warnings, too")
    parser.add_argument("--config-dir", help="a folder with configuration files of your own")
    return parser


if __name__ == "__main__":
    main()
