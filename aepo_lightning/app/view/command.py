"""The command `aepo-view`: rollout trees of a run or an evaluation in the browser, each branch with its reason.

    aepo-view RUN_OR_EVALUATION                     one file for each iteration or benchmark, below RUN/view
    aepo-view RUN_OR_EVALUATION --name train-00012  only this one
    aepo-view RUN_OR_EVALUATION --serve             all of them on this machine, also what grows in a run that goes on
    aepo-view RUN --relive --name train-00012       make its optimiser steps again first, for ratio and clip state

The files need nothing else: no network, no server. They can be sent to somebody.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from aepo_lightning.app.build import find_modules_here
from aepo_lightning.app.command import guarded_command, quieten_libraries, speak_utf8
from aepo_lightning.app.paths import writing
from aepo_lightning.app.printed import print_text
from aepo_lightning.app.saved_trees import RolloutFiles, rollout_files
from aepo_lightning.app.targets import add_allow
from aepo_lightning.app.view.folder import OpenedFolder
from aepo_lightning.app.view.pages import Shown, make_page
from aepo_lightning.app.view.server import serve
from aepo_lightning.app.view.updates import Relived, relive_updates
from aepo_lightning.atomic_files import replacing
from aepo_lightning.errors import ConfigError


def write_pages(
    source: Path, target: Path | None = None, names: Sequence[str] = (), allowed: Sequence[str] = ()
) -> list[Path]:
    """Write a page for each iteration of a run, or each benchmark of an evaluation; return where they are.

    Args:
        source: Folder of the run or evaluation.
        target: Folder of the pages; None is `view` in `source`.
        names: Which ones, such as `train-00012`. Empty writes all.
        allowed: What the configuration in the folder may call beside the parts of this library.

    Raises:
        ConfigError: If the folder has no finished rollouts, or none of these names, or the pages cannot be written.
        DataError: If a file is damaged.
    """
    folder, target = OpenedFolder.open(source, allowed), target or source / "view"
    written = []
    for each in _chosen(rollout_files(source), names):
        page = make_page(folder, each.name, folder.trees(each), Shown(updates=folder.updates(each)))
        path = target / f"{each.name}.html"
        with writing(target):
            target.mkdir(parents=True, exist_ok=True)
            with replacing(path) as partial:
                partial.write_text(page, encoding="utf-8")
        written.append(path)
    return written


def relive(source: Path, names: Sequence[str] = (), allowed: Sequence[str] = ()) -> Iterator[str]:
    """Make the optimiser steps of iterations again and keep what they say of each token; yield a line for each.

    Args:
        source: Folder of the run.
        names: As for `write_pages`. Where none is named, an iteration of which no step can be made again is told of.
        allowed: As for `write_pages`.

    Raises:
        ConfigError: If there are no such iterations, or no step of one that was named can be made again.
        DataError: If a file is damaged.
    """
    for each in _chosen(rollout_files(source), names):
        try:
            done = _relive_one(source, each, allowed)
        except ConfigError as error:
            if names:
                raise
            yield f"{each.name}: not made again. {error}"
            continue
        rest = f" The others were not: {done.problem}" if done.problem else ""
        yield f"{each.name}: {done.num_steps} optimiser steps made again, over {done.num_trees} questions.{rest}"


def _relive_one(source: Path, files: RolloutFiles, allowed: Sequence[str]) -> Relived:
    if files.steps:
        raise ConfigError(
            f"The rollout of an iteration must be over for its steps to be made again, but that of {files.name} goes "
            "on, or was cut off. Name another one."
        )
    with writing(source):
        return relive_updates(source, files.name, allowed)


def _chosen(present: Sequence[RolloutFiles], names: Sequence[str]) -> list[RolloutFiles]:
    known = {each.name: each for each in present}
    if missing := [name for name in names if name not in known]:
        raise ConfigError(f"`--name` must be one of {', '.join(known)}, but got {missing[0]!r}. Choose one.")
    return [known[name] for name in names] or list(present)


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="aepo-view", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of a run or an evaluation")
    parser.add_argument("--name", action="append", default=[], help="an iteration or benchmark; default all")
    parser.add_argument("--out", type=Path, help="folder of the files; default `view` in the folder")
    parser.add_argument("--serve", action="store_true", help="serve the pages on 127.0.0.1 instead of writing files")
    parser.add_argument("--relive", action="store_true", help="make the optimiser steps again first, for what they say")
    parser.add_argument("--port", type=int, default=8008, help="with --serve; 0 takes any; default 8008")
    add_allow(parser)
    speak_utf8()
    args = parser.parse_args(words)
    find_modules_here()
    quieten_libraries()
    with guarded_command("Pages that were written are kept."):
        for line in relive(args.folder, args.name, args.allow) if args.relive else ():
            print_text(line)
        if args.serve:
            serve(OpenedFolder.open(args.folder, args.allow), args.port, print_text)
            return
        for path in write_pages(args.folder, args.out, args.name, args.allow):
            print_text(str(path))


if __name__ == "__main__":
    main()
