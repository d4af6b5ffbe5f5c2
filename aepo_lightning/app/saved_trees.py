"""The trees in the folder of a run or an evaluation: their files, what reads them, and what was found of them."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from aepo_lightning.app.evaluation.folder import CONFIG as EVALUATION_CONFIG
from aepo_lightning.app.evaluation.folder import load_evaluation
from aepo_lightning.app.evaluation.run_policy import is_of_run, named_model, run_of
from aepo_lightning.app.run_folder import CONFIG
from aepo_lightning.app.saved_run import first_policy, load_config
from aepo_lightning.contracts.policy import PolicySource
from aepo_lightning.contracts.reward import TERM_NAME, RewardOutput
from aepo_lightning.contracts.tree import RolloutTree
from aepo_lightning.errors import ConfigError
from aepo_lightning.evaluation.judging import sample_number
from aepo_lightning.evaluation.results import Pair, TrajectoryResult
from aepo_lightning.evaluation.results_file import RESULTS, read_results

ROLLOUTS = "rollouts"
_STEPS = ".steps"
_PARTS = re.compile(r"-rank\d+(-round\d+)?$")


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutFiles:
    """The files of one iteration or benchmark: one for each rank, and for each round of dynamic sampling."""

    name: str
    """What the files have in common, such as `train-00012`."""
    paths: tuple[Path, ...]
    steps: tuple[Path, ...] = ()
    """Of trees that are not finished."""


def rollout_files(source: Path) -> list[RolloutFiles]:
    """Return the rollouts in a folder of which trees are finished, in the order of their names.

    Args:
        source: Of a run, whose evaluations in training are left out, or of an evaluation.

    Raises:
        ConfigError: If there are none.
    """
    found = [each for each in present_rollouts(source) if each.paths]
    if not found:
        raise ConfigError(f"The folder must hold finished rollouts, but {source} has none. Name that of a run.")
    return found


def present_rollouts(source: Path) -> list[RolloutFiles]:
    """Return the rollouts in a folder, also those of which no tree is finished; there may be none.

    Args:
        source: As for `rollout_files`.
    """
    paths: dict[str, list[Path]] = defaultdict(list)
    steps: dict[str, list[Path]] = defaultdict(list)
    for path in sorted((source / ROLLOUTS).glob("*.jsonl"), key=lambda path: path.stem):
        is_steps = path.stem.endswith(_STEPS)
        name = _PARTS.sub("", path.stem.removesuffix(_STEPS))
        (steps if is_steps else paths)[name].append(path)
    names = sorted({*paths, *steps})
    return [RolloutFiles(name=name, paths=tuple(paths[name]), steps=tuple(steps[name])) for name in names]


def opened_folder(source: Path, allowed: Sequence[str], sections: Sequence[str]) -> tuple[DictConfig, PolicySource]:
    """Return the configuration that the trajectories of a folder were grown with, and the policy for its tokenizer.

    Args:
        source: Of a run or an evaluation.
        allowed: What the configuration in the folder may call beside the parts of this library.
        sections: Keys of a run's configuration that will be built.

    Raises:
        ConfigError: If the folder is neither, or its configuration would call what is not allowed.
    """
    if (source / CONFIG).is_file():
        cfg = load_config(source, allowed, sections)
        return cfg, first_policy(cfg, source)
    if not (source / EVALUATION_CONFIG).is_file():
        raise ConfigError(
            f"The folder of a run or an evaluation must be named, but {source} has neither a {CONFIG} nor an "
            f"{EVALUATION_CONFIG}. Name one that `train.py` or `aepo-eval` wrote."
        )
    cfg = load_evaluation(source, allowed, ("tools", "rollout.chat_format"))
    named = str(cfg.evaluated.run if "run" in cfg.evaluated else cfg.evaluated.source)
    path = Path(named).expanduser()
    if "run" not in cfg.evaluated and not is_of_run(path):
        return cfg, named_model(named, cfg)
    folder, _ = run_of(path)
    return cfg, first_policy(load_config(folder, allowed, ("model",)), folder)


def verdicts_of(source: Path) -> dict[Pair, TrajectoryResult]:
    """Return what an evaluation found about its trajectories; nothing for a run."""
    files = sorted((source / RESULTS).glob("*.jsonl"))
    return {result.pair: result for path in files for result in read_results(path).results}


def judged(tree: RolloutTree, verdicts: Mapping[Pair, TrajectoryResult]) -> RolloutTree:
    """Give trajectories what an evaluation found about them: their journal was written before."""
    for leaf in tree.leaves if verdicts else ():
        result = verdicts.get((tree.question.question_id, sample_number(leaf)))
        leaf.reward = None if result is None else _reward(result)
    return tree


def _reward(result: TrajectoryResult) -> RewardOutput:
    """Return the reward of a run's own questions, or the score of a benchmark, which asks for no form."""
    verdict, scores = result.verdict, result.scores
    return RewardOutput(
        reward=float(scores.get("reward", verdict.score)),
        is_correct=verdict.is_correct,
        is_well_formed=bool(scores.get("is_well_formed", 1.0)),
        is_scored=verdict.is_scored,
        answer=result.answer,
        reason=verdict.reason,
        terms={name: score for name, score in scores.items() if TERM_NAME.fullmatch(name)},
    )
