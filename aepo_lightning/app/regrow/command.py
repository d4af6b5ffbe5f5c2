"""The command `aepo-regrow`: continue a trajectory from any node of a saved tree, and see old and new side by side.

    aepo-regrow RUN --node 'q=28:trail-train-28&leaf=r/1&seg=2'                      as it was
    aepo-regrow RUN --node 'q=28:trail-train-28&leaf=r/1&seg=2' --edit 'e4 e2 e0'    with another result of the tool
    aepo-regrow RUN --node 'q=28:trail-train-28&leaf=r/1&token=12' --samples 4       from a token on, four times

A node is named as in the address of a page of `aepo-view`, which can be copied: q is the question, leaf a trajectory by
its branch path or number, seg a segment of it, token a place in the response. After a result or a prompt the chain goes
on, and an edit replaces it; a turn is written again, from the token on if one is named, and an edit is what it begins
with. Weights come from where the run kept them. Exit status 1 means that nothing was changed and other tokens came out.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from aepo_lightning.app.build import find_modules_here
from aepo_lightning.app.command import guarded_command, quieten_libraries, speak_utf8
from aepo_lightning.app.node import NodeName
from aepo_lightning.app.printed import plain_console, print_text
from aepo_lightning.app.regrow.page import write_page
from aepo_lightning.app.regrow.regrown import Wish, regrow
from aepo_lightning.app.regrow.told import plain, told
from aepo_lightning.app.targets import add_allow
from aepo_lightning.errors import ConfigError


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = _parser().parse_args(words)
    find_modules_here()
    quieten_libraries()
    with guarded_command("The run is as it was."):
        wish = Wish(
            edit=args.edit if args.edit_file is None else _read(args.edit_file),
            samples=args.samples,
            seed=args.seed,
            iteration=args.iteration,
            checkpoint=args.checkpoint,
            is_offline=args.offline,
        )
        regrown = regrow(args.folder, NodeName.parse(args.node), wish, args.allow)
        if args.json:
            print_text(json.dumps(plain(regrown)))
        else:
            console = plain_console()
            for each in told(regrown):
                console.print(each, soft_wrap=isinstance(each, Text))
        if args.html is not None:
            write_page(args.html, args.folder, regrown, args.allow)
            if not args.json:
                print_text(str(args.html))
    sys.exit(regrown.must_be_same and regrown.chains[0].difference is not None)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"`--edit-file` must be a text file in UTF-8, but {path} is not: {error}.") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="aepo-regrow", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--node", required=True, metavar="ID", help="from which to go on, in quotes")
    text = parser.add_mutually_exclusive_group()
    text.add_argument("--edit", metavar="TEXT", help="what is to stand there: a result, a question, or words of a turn")
    text.add_argument("--edit-file", type=Path, metavar="FILE", help="the same from a file; a last line break is cut")
    parser.add_argument(
        "--samples", type=int, default=1, help="continuations, the first with the saved seeds; default 1"
    )
    parser.add_argument("--seed", type=int, help="in place of the tree's")
    parser.add_argument("--iteration", type=int, help="in which the question was asked; default: the first")
    parser.add_argument("--checkpoint", type=Path, help="or a safetensors file, in place of the weights of the tree")
    parser.add_argument("--offline", action="store_true", help="refuse calls of tools that are not on record")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write both as a page of aepo-view, too")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_allow(parser)
    speak_utf8()
    return parser


if __name__ == "__main__":
    main()
