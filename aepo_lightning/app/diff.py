"""The command `aepo-diff`: the first decision, token, reward or gradient in which two runs differ, and why.

    aepo-diff RUN_A RUN_B

Compared is what the runs have left in their folders, in the order in which it happened: first weights, the trees of an
iteration, losses and gradients of its optimiser steps, the weights after them, and so on. Exit status 1 means that
there is a difference.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aepo_lightning.app.build import find_modules_here
from aepo_lightning.app.command import guarded_command, quieten_libraries, speak_utf8
from aepo_lightning.app.differences import find_differences, listing
from aepo_lightning.app.first_difference import UPDATE, Decode, FirstDifference, SavedRun, first_difference
from aepo_lightning.app.logged_scalars import read_scalars
from aepo_lightning.app.printed import print_text
from aepo_lightning.app.saved_run import first_policy, load_config
from aepo_lightning.app.targets import add_allow
from aepo_lightning.errors import AepoError, ConfigError

_CAUSES = {
    "weights": ("model", "coldstart", "seed", "module", "adapter"),
    "question": ("data", "seed", "rollout.chat_format", "tools", "model"),
    "seed": ("seed", "data.seed"),
    "budget": ("algorithm", "rollout"),
    "decision": ("algorithm.branch_policy", "algorithm", "engine"),
    "trajectories": ("algorithm", "rollout"),
    "token": ("rollout.sampling", "engine", "algorithm", "model"),
    "log-prob": ("engine", "rollout.sampling", "num_threads", "model"),
    "tool result": ("tools", "data"),
    "end": ("rollout.sampling", "engine", "algorithm", "tools"),
    "reward": ("reward", "rollout.scoring"),
    "loss": ("algorithm", "experience", "module", "strategy", "trainer", "num_threads"),
    "gradient": ("module", "algorithm", "experience", "strategy", "trainer", "num_threads"),
}
"""Parts of the configuration that bear on each kind of difference, the nearest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDifference:
    """What there is to say about two runs."""

    first: FirstDifference | None
    num_same: int
    """Rollouts that are the same before it."""
    near: Sequence[str]
    """Differences of the configurations that bear on it."""
    others: Sequence[str]
    unseen: Sequence[str]
    """What was not compared, because one of them has none of it; sentences."""


def compare_runs(one: Path, other: Path, allowed: Sequence[str] = ()) -> RunDifference:
    """Compare two runs by what is in their folders.

    Args:
        one: A run's folder.
        other: Another one's.
        allowed: What their configurations may name beside the parts of this library; only the model is built.

    Raises:
        ConfigError: If one is not the folder of a run, or they have nothing that can be compared.
        DataError: If a file is damaged.
    """
    configs = [load_config(folder, allowed, ("model",)) for folder in (one, other)]
    runs = [SavedRun(folder=folder, scalars=read_scalars(folder, UPDATE)) for folder in (one, other)]
    shared = set(runs[0].rollouts) & set(runs[1].rollouts)
    numbers = [run.scalars.get(UPDATE[0], {}) for run in runs]
    if not shared and not numbers[0].keys() & numbers[1].keys():
        raise ConfigError(
            f"{one} and {other} must have rollouts or optimiser steps of the same number, but have none. Name two runs."
        )
    first, num_same = first_difference(runs[0], runs[1], _decoder(configs[0], one))
    found = find_differences(*configs, trained=False, own_folder=False, also=("num_threads",))
    causes = _CAUSES.get(first.kind, ()) if first is not None else ()
    ranked = sorted(found, key=lambda each: _rank(each.key, causes))
    near = [each.change for each in ranked if _rank(each.key, causes) < len(causes)]
    return RunDifference(
        first=first,
        num_same=num_same,
        near=near,
        others=[each.change for each in ranked[len(near) :]],
        unseen=list(_unseen(runs)),
    )


def _unseen(runs: Sequence[SavedRun]) -> Iterator[str]:
    """Yield what only one of two runs has, or neither."""
    first, second = runs
    for word, run, its in (("first", first, second), ("second", second, first)):
        if own := set(run.rollouts) - set(its.rollouts):
            yield f"The {word} run has {len(own)} rollouts that the other has not."
    for word, run in zip(("first", "second"), runs, strict=True):
        if cut := [name for name in run.rollouts if not run.is_over(name)]:
            yield f"{cut[-1]} of the {word} run was cut off: what there is of it counts."
        if not run.scalars:
            yield f"The {word} run has no losses and gradients in {run.folder / 'tensorboard'}."


def _rank(key: str, causes: Sequence[str]) -> int:
    return next((place for place, cause in enumerate(causes) if f"{key}.".startswith(f"{cause}.")), len(causes))


def _decoder(cfg: Any, folder: Path) -> Decode:
    """Return what gives the text of tokens: the tokenizer of the run, or their numbers where that is not here."""
    try:
        tokenizer = first_policy(cfg, folder).tokenizer
    except AepoError:
        return lambda tokens: " ".join(map(str, tokens))
    return lambda tokens: str(tokenizer.decode(list(tokens)))


def told(found: RunDifference) -> str:
    """Return a comparison as lines."""
    first = found.first
    if first is None:
        lines = [f"The runs are the same, bit for bit, in the {found.num_same} rollouts that both have and after them."]
        return "\n".join([*lines, *found.unseen, *_told_configs("Their configurations differ in", found.others)])
    lines = [
        f"Rollouts that are the same: {found.num_same}. The first difference is a {first.kind}:",
        f"  {first.where}",
        *([f"  after     {first.context!r}"] if first.context else []),
        f"  first     {first.one}",
        f"  second    {first.other}",
        *found.unseen,
        *_told_configs("Of the configurations, this bears on it", found.near),
        *_told_configs("They also differ in", found.others),
    ]
    if not found.near and not found.others:
        lines.append(
            "The configurations are the same: look at the machine, the versions, the number of processes, a tool or a "
            "judge that answers otherwise, or an engine that does not repeat itself (docs/rollouts.md)."
        )
    return "\n".join(lines)


def _told_configs(title: str, changes: Sequence[str]) -> list[str]:
    return [f"{title}:", listing(changes)] if changes else []


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="aepo-diff", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("one", type=Path, metavar="RUN_A", help="folder of a run")
    parser.add_argument("other", type=Path, metavar="RUN_B", help="folder of another run")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_allow(parser)
    speak_utf8()
    args = parser.parse_args()
    find_modules_here()
    quieten_libraries()
    with guarded_command("Both runs are as they were."):
        found = compare_runs(args.one, args.other, args.allow)
        print_text(json.dumps(asdict(found)) if args.json else told(found))
    sys.exit(found.first is not None)


if __name__ == "__main__":
    main()
