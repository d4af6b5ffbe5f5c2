"""The command `aepo-replay`: grow saved trees again, offline, and compare them token by token.

    aepo-replay RUN_FOLDER [--name train-00012-rank0] [--question ID] [--weights FILE]

Weights come from where the run kept them: beside the rollouts, in a checkpoint, or in the folder of the cold start.
Tools are not called: their results are in the trees. Exit status 1 means that a tree came out different.
"""

import argparse
import asyncio
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from aepo_lightning.app.build import build, build_data, build_engine, find_modules_here
from aepo_lightning.app.command import guarded_command, quieten_libraries, speak_utf8
from aepo_lightning.app.kept_weights import find_weights
from aepo_lightning.app.saved_run import first_policy, load_config, saved_adapter
from aepo_lightning.app.targets import add_allow
from aepo_lightning.app.threads import set_threads
from aepo_lightning.contracts.tool import ToolCall, ToolContext, ToolResult, ToolStatus
from aepo_lightning.contracts.tree import RolloutTree
from aepo_lightning.errors import ConfigError
from aepo_lightning.evaluation.judging import Unjudged
from aepo_lightning.event_loop import run_in_event_loop
from aepo_lightning.policy.publishing.archive import read_weights
from aepo_lightning.rollout import GroupRollout, RolloutJournal, RolloutParts, difference, record_of

BUILT = (
    *("model", "engine", "algorithm", "data", "tools", "reward", "rollout", "experience", "publication_check"),
    "module.adapter",
)
"""What a replay builds of a configuration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """How one tree came out."""

    name: str
    question_id: str
    num_tokens: int
    """Tokens that the policy sampled."""
    difference: str | None
    """Where it differs first; None if it is the same token by token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineTools:
    """Answers nothing: what a replay needs is on record."""

    tool_names: tuple[str, ...]

    async def call(self, call: ToolCall, context: ToolContext) -> ToolResult:
        """Say that there is no record. The tree is different by then."""
        del call, context
        return ToolResult(text="Error: no result of this call is on record.", status=ToolStatus.ERROR)


def replay_run(
    folder: Path,
    names: Sequence[str] = (),
    question_id: str | None = None,
    weights: Path | None = None,
    allowed: Sequence[str] = (),
) -> Iterator[Replay]:
    """Grow trees of a run again and yield how each came out.

    Args:
        folder: The run's folder.
        names: Files of its journal without their ending, such as `train-00012-rank0`. Empty takes all.
        question_id: Only the tree of this question.
        weights: A safetensors file to use instead of what the run kept.
        allowed: What the configuration in the folder may call beside the parts of this library.

    Raises:
        ConfigError: If the folder has no such trees, or their weights were not kept; if its configuration would call
            what is not allowed.
        DataError: If a file is damaged.
    """
    cfg = load_config(folder, allowed, BUILT)
    set_threads(cfg.num_threads)
    policy, lora = first_policy(cfg, folder), saved_adapter(cfg)
    engine = build_engine(cfg, policy)
    try:
        parts = build_data(cfg, engine, build(cfg.algorithm), folder).prepare_sampler(policy.tokenizer).parts
        loaded: int | None = None
        for name, trees in saved_trees(folder / "rollouts", names, question_id):
            for version in sorted({tree.weights_version for tree in trees}):
                if version != loaded:
                    found = read_weights(weights) if weights else find_weights(folder, policy, lora, version)
                    engine.load_weights(found.items(), version)
                    loaded = version
                chosen = [tree for tree in trees if tree.weights_version == version]
                yield from replay_trees(parts, name, chosen, cfg.rollout.max_concurrent_questions)
    finally:
        engine.close()


def saved_trees(folder: Path, names: Sequence[str], question_id: str | None) -> Iterator[tuple[str, list[RolloutTree]]]:
    """Yield the trees of each file of a journal, with the name of the file.

    Args:
        folder: Of the journal.
        names: Of files, without their ending. Empty takes all.
        question_id: Only trees of this question.

    Raises:
        ConfigError: If there is no such file, or no such tree.
        DataError: If a file is damaged.
    """
    journal = RolloutJournal(folder)
    present = sorted(path.stem for path in folder.glob("*.jsonl") if not path.stem.endswith(".steps"))
    if missing := [name for name in names if name not in present]:
        there = ", ".join(present) or "none"
        raise ConfigError(f"`--name` must be one of the files in {folder} ({there}), but got {missing}.")
    is_empty = True
    for name in names or present:
        trees = [tree for tree in journal.read(name) if question_id in (None, tree.question.question_id)]
        if trees:
            is_empty = False
            yield name, trees
    if is_empty:
        raise ConfigError(f"No tree in {folder} fits; `--question` must be the id of a saved tree.")


def replay_trees(parts: RolloutParts, name: str, trees: list[RolloutTree], num_at_once: int) -> list[Replay]:
    """Grow trees again with what is on record of them; return how each came out.

    Args:
        parts: With the weights that grew them in the engine. Neither the tools nor the reward, which may be a judge at
            the end of a network, are called.
        name: Of the file that they come from.
        trees: As they were saved.
        num_at_once: How many of them grow at the same time.
    """
    offline = OfflineTools(tool_names=tuple(parts.tools.tool_names))
    unlimited = replace(parts.settings, timeout_s=None)  # time-outs are on record
    parts = replace(parts, reward=Unjudged(), tools=offline, settings=unlimited)

    async def grow_all() -> list[RolloutTree]:
        places = asyncio.Semaphore(num_at_once)

        async def grow(tree: RolloutTree) -> RolloutTree:
            async with places:
                return await GroupRollout(parts, tree.question, tree.seed, record_of(tree)).grow()

        return await asyncio.gather(*map(grow, trees))

    return [
        Replay(
            name=name,
            question_id=tree.question.question_id,
            num_tokens=tree.num_generated_tokens,
            difference=difference(tree, again),
        )
        for tree, again in zip(trees, run_in_event_loop(grow_all()), strict=True)
    ]


def render(replays: Sequence[Replay]) -> Table:
    """Return one row per file of the journal, and one per tree that came out different."""
    table = Table(title="replayed trees", title_justify="left")
    for heading in ("rollout", "trees", "tokens", "identical"):
        table.add_column(heading, justify="left" if heading == "rollout" else "right")
    for name in dict.fromkeys(replay.name for replay in replays):
        own = [replay for replay in replays if replay.name == name]
        same = sum(replay.difference is None for replay in own)
        table.add_row(escape(name), str(len(own)), str(sum(replay.num_tokens for replay in own)), str(same))
        for replay in own:
            if replay.difference is not None:
                # Whoever wrote the id writes no markup and sends nothing to the terminal.
                table.add_row(escape(f"  {replay.question_id!r}: {replay.difference}"))
    return table


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of a run")
    parser.add_argument(
        "--name", action="append", default=[], help="file of the journal without its ending; default all"
    )
    parser.add_argument("--question", help="only the tree of this question id")
    parser.add_argument("--weights", type=Path, help="safetensors file to use instead of what the run kept")
    add_allow(parser)
    speak_utf8()
    args = parser.parse_args()
    find_modules_here()
    quieten_libraries()
    replays: list[Replay] = []
    console = Console()
    with guarded_command("The run is as it was."), console.status("replaying") as status:
        for replay in replay_run(args.folder, args.name, args.question, args.weights, args.allow):
            replays.append(replay)
            status.update(f"replaying {replay.name}: {len(replays)} trees")
    console.print(render(replays))
    sys.exit(any(replay.difference is not None for replay in replays))


if __name__ == "__main__":
    main()
