"""`aepo-eval replay FOLDER`: grow the trajectories of an evaluation again, offline, and compare them token by token.

Results of tools come from the journal, so neither tools nor a network are needed; the weights are.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from aepo_lightning.app.build import build, build_data, build_engine
from aepo_lightning.app.evaluation.benchmarks import build_evaluator, named_policy
from aepo_lightning.app.evaluation.folder import load_evaluation
from aepo_lightning.app.evaluation.own_questions import HELD_OUT
from aepo_lightning.app.evaluation.run_policy import policy_of_run, run_of
from aepo_lightning.app.evaluation.saved_tools import RecordedTools
from aepo_lightning.app.replay import Replay, render, replay_trees, saved_trees
from aepo_lightning.app.targets import add_allow
from aepo_lightning.app.threads import set_threads
from aepo_lightning.contracts.engine import Engine
from aepo_lightning.contracts.tree import RolloutTree
from aepo_lightning.errors import ConfigError
from aepo_lightning.evaluation.evaluated_policy import EvaluatedPolicy
from aepo_lightning.evaluation.evaluator import JOURNAL
from aepo_lightning.rollout import RolloutParts


def replay(words: Sequence[str]) -> int:
    """Run the command line; return 1 if a tree came out different."""
    parser = argparse.ArgumentParser(prog="aepo-eval replay", description=__doc__)
    parser.add_argument("folder", type=Path, help="of an evaluation")
    parser.add_argument(
        "policy", nargs="?", help="where the run, its checkpoint or the model lies; default: where it lay"
    )
    parser.add_argument("--name", action="append", default=[], help="file of the journal without its ending")
    parser.add_argument("--question", help="only the trajectories of this question id")
    add_allow(parser)
    args = parser.parse_args(list(words))
    found = list(replay_evaluation(args.folder, args.policy, args.name, args.question, tuple(args.allow)))
    Console().print(render(found))
    return int(any(each.difference is not None for each in found))


def replay_evaluation(
    folder: Path,
    policy: str | None = None,
    names: Sequence[str] = (),
    question_id: str | None = None,
    allowed: tuple[str, ...] = (),
) -> Iterator[Replay]:
    """Grow the trees of an evaluation again and yield how each came out.

    Args:
        folder: Of the evaluation.
        policy: Where the run, its checkpoint or the model lies. Default: where it lay.
        names: Files of its journal without their ending. Empty takes all.
        question_id: Only the tree of this question.
        allowed: What the configuration in the folder may call beside the parts of this library.

    Raises:
        ConfigError: If it is no evaluation, or has no such trees; if the run has been trained on since.
        DataError: If a file is damaged, or the policy cannot be read.
    """
    cfg = load_evaluation(folder, allowed)
    if "rejudged" in cfg:
        raise ConfigError(f"{folder} has new verdicts and no trajectories. Replay {cfg.rejudged}, which has them.")
    saved = saved_trees(folder / JOURNAL, names, question_id)
    first = next(saved)  # what is not there is said before a model is read
    set_threads(cfg.num_threads)
    grown: _Own | _Benchmarks
    is_own = "run" in cfg.evaluated
    if is_own:
        run, checkpoint = run_of_own(cfg, policy)
        found = policy_of_run(cfg, run, checkpoint)
        grown = _Own.of(cfg, run, found)
    else:
        found = named_policy(policy or cfg.evaluated.source, cfg, allowed)
        grown = _Benchmarks.of(cfg, found, folder)
    with closing(grown.engine):
        for name, trees in chain([first], saved):
            if is_own or found.global_step:
                check_steps(trees, found)
            yield from replay_trees(grown.parts(name), name, trees, 64)


def check_steps(trees: Sequence[RolloutTree], policy: EvaluatedPolicy) -> None:
    """Refuse a policy that has been trained for longer, or less long, than the one that grew the trees.

    Args:
        trees: As they were saved.
        policy: Of a run. A model in a folder of its own does not know of steps.

    Raises:
        ConfigError: If it is another.
    """
    steps = {tree.weights_version for tree in trees}
    if steps - {policy.global_step}:
        raise ConfigError(
            f"The trees were grown after {', '.join(map(str, sorted(steps)))} optimiser steps, but the weights of "
            f"{policy.name} are those after {policy.global_step}. Name the checkpoint as POLICY."
        )


def run_of_own(cfg: DictConfig, policy: str | None) -> tuple[Path, Path | None]:
    """Return the folder of the run that was asked its own questions, and the checkpoint; None is the newest.

    Args:
        cfg: Of the evaluation.
        policy: Where the run, or the checkpoint, lies now. None is where it lay.

    Raises:
        ConfigError: If there is no run.
    """
    run, checkpoint = run_of(Path(policy or cfg.evaluated.run).expanduser())
    if checkpoint is None and cfg.evaluated.checkpoint is not None:
        checkpoint = run / "checkpoints" / Path(cfg.evaluated.checkpoint).name
    return run, checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class _Own:
    """A run that was asked its own questions."""

    engine: Engine
    own: RolloutParts

    @classmethod
    def of(cls, cfg: DictConfig, run: Path, found: EvaluatedPolicy) -> "_Own":
        engine = build_engine(cfg, found.source)
        parts = build_data(cfg, engine, build(cfg.algorithm), run).prepare_sampler(found.source.tokenizer).parts
        engine.load_weights(found.weights(), found.global_step)
        return cls(engine=engine, own=parts.for_evaluation(cfg.data.num_val_samples))

    def parts(self, name: str) -> RolloutParts:
        if not name.startswith(HELD_OUT):
            raise ConfigError(f"The journal must have files of {HELD_OUT} questions, but got {name}.")
        return self.own


@dataclass(frozen=True, slots=True, kw_only=True)
class _Benchmarks:
    """A model that was asked benchmarks."""

    engine: Engine
    by_name: Mapping[str, RolloutParts]

    @classmethod
    def of(cls, cfg: DictConfig, found: EvaluatedPolicy, folder: Path) -> "_Benchmarks":
        engine: Engine = build(cfg.engine, policy=found.source)
        evaluator = build_evaluator(cfg, engine, found, RecordedTools.load(folder))
        engine.load_weights(found.weights(), found.global_step)
        return cls(engine=engine, by_name={name: evaluator.parts(build(node)) for name, node in cfg.suite.items()})

    def parts(self, name: str) -> RolloutParts:
        if name not in self.by_name:
            raise ConfigError(f"The journal must have files of {', '.join(self.by_name)}, but got {name}.")
        return self.by_name[name]
