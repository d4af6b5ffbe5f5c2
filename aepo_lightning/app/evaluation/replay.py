"""`aepo-eval replay FOLDER`: grow the trajectories of an evaluation again, offline, and compare them token by token.

Results of tools come from the journal, so neither tools nor a network are needed; the weights are.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from aepo_lightning.app.build import build, build_data, build_engine
from aepo_lightning.app.evaluation.benchmarks import build_evaluator, named_policy
from aepo_lightning.app.evaluation.folder import load_evaluation
from aepo_lightning.app.evaluation.own_questions import HELD_OUT
from aepo_lightning.app.evaluation.run_policy import policy_of_run
from aepo_lightning.app.evaluation.saved_tools import RecordedTools
from aepo_lightning.app.replay import Replay, render, replay_trees
from aepo_lightning.app.targets import add_allow
from aepo_lightning.contracts.engine import Engine
from aepo_lightning.errors import ConfigError
from aepo_lightning.evaluation.evaluator import JOURNAL
from aepo_lightning.rollout import RolloutJournal, RolloutParts


def replay(words: Sequence[str]) -> int:
    """Run the command line; return 1 if a tree came out different."""
    parser = argparse.ArgumentParser(prog="aepo-eval replay", description=__doc__)
    parser.add_argument("folder", type=Path, help="of an evaluation")
    parser.add_argument("policy", nargs="?", help="where the run or the model lies here; default: where it lay")
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
        policy: Where the run or the model lies. Default: where it lay.
        names: Files of its journal without their ending. Empty takes all.
        question_id: Only the tree of this question.
        allowed: What the configuration in the folder may call beside the parts of this library.

    Raises:
        ConfigError: If it is no evaluation, or has no such trees.
        DataError: If a file is damaged, or the policy cannot be read.
    """
    cfg = load_evaluation(folder, allowed)
    present = sorted(path.stem for path in (folder / JOURNAL).glob("*.jsonl") if not path.stem.endswith(".steps"))
    if missing := [name for name in names if name not in present]:
        raise ConfigError(f"`--name` must be one of the files in {folder / JOURNAL}, but got {missing}.")
    grown = _Own.of(cfg, policy) if "run" in cfg.evaluated else _Benchmarks.of(cfg, policy, folder)
    is_empty = True
    with closing(grown.engine):
        for name in names or present:
            trees = list(RolloutJournal(folder / JOURNAL).read(name))
            trees = [tree for tree in trees if question_id in (None, tree.question.question_id)]
            is_empty = is_empty and not trees
            if trees:
                yield from replay_trees(grown.parts(name), name, trees, 64)
    if is_empty:
        raise ConfigError(
            f"No tree in {folder / JOURNAL} fits; `--question` must be the id of a question that was asked."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Own:
    """A run that was asked its own questions."""

    engine: Engine
    own: RolloutParts

    @classmethod
    def of(cls, cfg: DictConfig, policy: str | None) -> "_Own":
        run = Path(policy or cfg.evaluated.run)
        checkpoint = (
            None if cfg.evaluated.checkpoint is None else run / "checkpoints" / Path(cfg.evaluated.checkpoint).name
        )
        found = policy_of_run(cfg, run, checkpoint)
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
    def of(cls, cfg: DictConfig, policy: str | None, folder: Path) -> "_Benchmarks":
        found = named_policy(policy or cfg.evaluated.source, cfg)
        engine: Engine = build(cfg.engine, policy=found.source)
        evaluator = build_evaluator(cfg, engine, found, RecordedTools.load(folder))
        engine.load_weights(found.weights(), found.global_step)
        return cls(engine=engine, by_name={name: evaluator.parts(build(node)) for name, node in cfg.suite.items()})

    def parts(self, name: str) -> RolloutParts:
        if name not in self.by_name:
            raise ConfigError(f"The journal must have files of {', '.join(self.by_name)}, but got {name}.")
        return self.by_name[name]
