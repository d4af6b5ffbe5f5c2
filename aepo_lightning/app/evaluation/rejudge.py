"""`aepo-eval rejudge FOLDER judge=...`: the same trajectories, another judge or rule. Nothing is generated.

The new verdicts lie below `rejudged/NAME` as an evaluation of their own, which `show` and `compare` take; the old ones
stay as they are. A judge that was down is asked again, and only for what it did not score: the same judge keeps the
verdicts that it gave, also those of the evaluation itself.
"""

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from aepo_lightning.app.build import build
from aepo_lightning.app.evaluation.composing import EVAL, composed_config
from aepo_lightning.app.evaluation.folder import evaluation_folder, load_evaluation
from aepo_lightning.app.evaluation.judges import build_judge, judge_work
from aepo_lightning.app.evaluation.tables import print_tables
from aepo_lightning.app.printed import print_text
from aepo_lightning.app.targets import add_allow
from aepo_lightning.app.words import plain_words
from aepo_lightning.contracts.checker import AnswerChecker
from aepo_lightning.errors import ConfigError
from aepo_lightning.evaluation.judging import checked
from aepo_lightning.evaluation.results import TrajectoryResult
from aepo_lightning.evaluation.results_file import BenchmarkResults, ResultsFile, read_evaluation, results_path
from aepo_lightning.evaluation.stamps import part_settings
from aepo_lightning.event_loop import run_in_event_loop
from aepo_lightning.rollout.description import digest_of
from aepo_lightning.rollout.progress import rollout_progress

REJUDGED = "rejudged"
"""The folder, within that of an evaluation, that holds an evaluation for each further judge."""
_AT_ONCE = 64
_LEFT = "! {name}: {left} of {total} trajectories have no verdict. The same command asks again for them."


def rejudge(words: Sequence[str]) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="aepo-eval rejudge", description=__doc__)
    parser.add_argument("folder", type=Path, help="of an evaluation")
    parser.add_argument("words", nargs="+", metavar="judge=...", help="an option of conf/judge and its settings")
    parser.add_argument("--name", help="of the new verdicts; default: that of the judge, with a digest of its settings")
    parser.add_argument("--config-dir", help="a folder with configuration files of your own, such as judge/my.yaml")
    add_allow(parser)
    args = parser.parse_intermixed_args(list(words))
    target = rejudge_evaluation(args.folder, args.words, args.name, args.config_dir, tuple(args.allow))
    print_text(f"new verdicts  {target}")


def rejudge_evaluation(
    folder: Path,
    words: Sequence[str],
    name: str | None = None,
    config_dir: str | None = None,
    allowed: tuple[str, ...] = (),
) -> Path:
    """Judge the trajectories of an evaluation anew; return the folder of the verdicts.

    Args:
        folder: Of the evaluation.
        words: Overrides that choose the judge: `judge=...`, `judge.model=...`.
        name: Of the verdicts. An evaluation of this name goes on: what has no scored verdict is judged.
        config_dir: A folder with configuration files of the user's own.
        allowed: What the configuration in the folder may call beside the parts of this library.

    Raises:
        ConfigError: If no judge is named, it is no evaluation on benchmarks, or `name` is none of a folder or stands
            for another judge.
        DataError: If results cannot be read.
    """
    if name is not None and (name in ("", ".", "..") or Path(name).name != name):
        raise ConfigError(f"`name` must be that of a folder, without a path, but got {name!r}. Write --name second.")
    cfg, node = load_evaluation(folder, allowed), _judge_node(words, config_dir)
    target = folder / REJUDGED / (name or _default_name(node))
    if "suite" not in cfg:
        raise ConfigError(f"{folder} must hold results of benchmarks, but has those of a run's own reward alone.")
    found = read_evaluation(folder)
    new = OmegaConf.merge(cfg, {"judge": node, "rejudged": str(folder)})
    assert isinstance(new, DictConfig), "made of mappings"
    with evaluation_folder(target, new):
        for each in found:
            checker = build_judge(node, build(cfg.suite[each.name]))
            num_left = _judge_again(each, checker, results_path(target, each.name))
            left = [_LEFT.format(name=each.name, left=num_left, total=len(each.results))] if num_left else []
            print_tables((), [*judge_work(each.name, checker), *left])
    return target


def _judge_node(words: Sequence[str], config_dir: str | None) -> DictConfig:
    own = plain_words(words)
    keys = [each.key_or_group for each in OverridesParser.create().parse_overrides(own)]
    if strangers := [key for key in keys if key.partition(".")[0] != "judge"]:
        raise ConfigError(f"Settings of a judge must begin with `judge`, but got `{strangers[0]}`. Take it out.")
    node = composed_config(EVAL, [*own, "benchmarks=[]"], config_dir).judge
    if not (isinstance(node, DictConfig) and "_target_" in node):
        raise ConfigError("`judge` must name who looks at the answers, but got none. Write judge=...")
    return node


def _default_name(node: DictConfig) -> str:
    settings = OmegaConf.to_container(node, resolve=True)
    return f"{str(node._target_).rpartition('.')[2].lower()}-{digest_of(settings)[:6]}"


def _judge_again(old: BenchmarkResults, checker: AnswerChecker, path: Path) -> int:
    """Judge what has no scored verdict yet; return how many trajectories have none afterwards."""
    num_left, stamp = 0, replace(old.stamp, checker=part_settings(checker))
    with (
        ResultsFile(path, stamp, asks_again=True) as file,
        rollout_progress(f"judging {old.name}", len(old.results)) as count,
    ):
        due = _take_over(old, file)
        for _ in range(len(old.results) - len(due)):
            count()

        async def judge_all() -> None:
            places = asyncio.Semaphore(_AT_ONCE)

            async def judge(result: TrajectoryResult) -> None:
                nonlocal num_left
                async with places:
                    verdict = await checked(checker, result.claim)
                    file.append(replace(result, verdict=verdict))
                num_left += not verdict.is_scored
                count()

            async with asyncio.TaskGroup() as group:
                for each in due:
                    group.create_task(judge(each))

        run_in_event_loop(judge_all())
    return num_left


def _take_over(old: BenchmarkResults, file: ResultsFile) -> list[TrajectoryResult]:
    """Add the verdicts that the same judge gave already; return what it is still to be asked.

    A rule is asked again: it costs nothing, and its code may be another by now.
    """
    due = [each for each in old.results if each.pair not in file.pairs]
    is_same_judge = "model" in file.stamp.checker and not old.stamp.differences(file.stamp, ["checker"])
    for each in due if is_same_judge else ():
        if each.verdict.is_scored:
            file.append(each)
    return [each for each in due if each.pair not in file.pairs]
