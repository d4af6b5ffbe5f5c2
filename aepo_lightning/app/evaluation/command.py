"""The command `aepo-eval`: evaluate a run or a model, look at evaluations, compare them, judge them again.

    aepo-eval RUN                                             the run's own held-out questions, as training asks them
    aepo-eval PATH_OR_HUB_ID benchmarks=[gsm8k,hotpotqa]      any model or run, on benchmarks

The same command goes on where it was cut off: what is in its folder is not made again.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from aepo_lightning.app.build import find_modules_here
from aepo_lightning.app.command import guarded_command, quieten_libraries, speak_utf8
from aepo_lightning.app.targets import add_allow
from aepo_lightning.app.words import plain_words

_HERE = "aepo_lightning.app.evaluation"


@dataclass(frozen=True, slots=True, kw_only=True)
class SubCommand:
    """A command below `aepo-eval`, imported when it is called."""

    module: str
    function: str
    summary: str

    def load(self) -> Callable[..., Any]:
        """Return the function; one of a sub-command takes the words after its name."""
        found: Callable[..., Any] = getattr(import_module(f"{_HERE}.{self.module}"), self.function)
        return found


SUB_COMMANDS = {
    "show": SubCommand(module="show", function="show", summary="the results of an evaluation beside published ones"),
    "compare": SubCommand(module="compare", function="compare", summary="two evaluations, question by question"),
    "power": SubCommand(module="power", function="power", summary="how many questions show a difference"),
    "rejudge": SubCommand(module="rejudge", function="rejudge", summary="the same trajectories, another judge or rule"),
    "replay": SubCommand(module="replay", function="replay", summary="grow the trajectories again, offline"),
    "judge-check": SubCommand(
        module="judge_check", function="judge_check", summary="how far a judge agrees with labelled answers"
    ),
}

_EVALUATIONS = {
    True: SubCommand(module="benchmarks", function="evaluate_benchmarks", summary="a model on benchmarks"),
    False: SubCommand(module="own_command", function="evaluate_own", summary="a run on its own held-out questions"),
}


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line."""
    speak_utf8()
    own = list(sys.argv[1:] if words is None else words)
    find_modules_here()
    quieten_libraries()
    if own and own[0] in SUB_COMMANDS:
        with guarded_command("What was finished is kept."):
            status = SUB_COMMANDS[own[0]].load()(own[1:])
        sys.exit(status or 0)
    args = _parser().parse_args(_flags_last(own))
    with guarded_command("What was finished is kept: the same command goes on."):
        _evaluate(args)


def _evaluate(args: argparse.Namespace) -> None:
    words = plain_words(args.words)
    asks_benchmarks = any(word.partition("=")[0] == "benchmarks" for word in words)
    _EVALUATIONS[asks_benchmarks].load()(args.source, words, args.allow, args.config_dir, strict=args.strict)


def _flags_last(words: Sequence[str]) -> list[str]:
    """Return words with overrides together: argparse takes them in one piece only, but people write flags between."""
    flags: list[str] = []
    others: list[str] = []
    rest = iter(words)
    for word in rest:
        if word in ("--allow", "--config-dir"):
            flags += [word, *(value for value in [next(rest, None)] if value is not None)]
        elif word.startswith("-"):
            flags.append(word)
        else:
            others.append(word)
    return [*flags, *(["--"] if others else []), *others]


def _parser() -> argparse.ArgumentParser:
    listing = "\n".join(f"  aepo-eval {name:<12} {each.summary}" for name, each in SUB_COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="aepo-eval",
        description=__doc__.partition(":")[2].strip() if __doc__ else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"commands (each has --help):\n{listing}\n\n{_KEYS}",
    )
    parser.add_argument("source", help="a run's folder or checkpoint, a model's folder, or its name on the Hub")
    parser.add_argument("words", nargs="*", metavar="key=value", help="settings, see below")
    parser.add_argument("--config-dir", help="a folder with configuration files of your own, such as benchmark/my.yaml")
    parser.add_argument("--strict", action="store_true", help="exit with an error if a score is in doubt")
    add_allow(parser)
    return parser


_KEYS = """settings with benchmarks:
  benchmarks=[gsm8k,hotpotqa]     which; all is every one that has a file
  num_samples=5                   of each question; default: the benchmark's protocol
  num_questions=20                the first so many of each benchmark
  engine=vllm                     transformers, vllm or vllm_server
  tools=search_cache_python       what may be called, as in training
  judge=...                       who looks at answers where a benchmark's rule is not enough
  sampling.temperature=1.0        instead of the protocol's
  output_dir=FOLDER               default: runs/eval/<name of the model>

settings of a run's own questions are those of its configuration: evaluation.num_samples=8"""


if __name__ == "__main__":
    main()
