"""Plain values as one HTML file that needs nothing else: no network, no further file.

Data stand in the page as base64 of compressed JSON, in pieces that are read when they are looked at. Base64 has no
character that means something in HTML, and the page's program writes text as text: what a model or a tool wrote is
never parsed. A policy in the page's head lets it run its own program only, and load nothing.
"""

import gzip
import json
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.resources import files
from typing import Any

from aepo_lightning.app.view.folder import OF_UPDATE, OpenedFolder
from aepo_lightning.app.view.questions import question_row, unfinished_row
from aepo_lightning.app.view.trees import UNIT, TreeWriter, Vocabulary
from aepo_lightning.app.view.updates import TreeKey, TreeUpdate, key_of
from aepo_lightning.contracts.tree import RolloutTree

_PIECE_BYTES = 1 << 18
"""About how much JSON is in one piece: it is unpacked in a few milliseconds."""
_UPDATED = (*OF_UPDATE, "advantage")
_FOLDER = "page"
_PROGRAM = (
    *("texts.js", "store.js", "state.js", "questions.js", "tree.js", "tokens.js", "trajectory.js"),
    *("decisions.js", "siblings.js", "timeline.js", "keys.js", "main.js"),
)
_STYLE = "view.css"


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """How a page that is served hears of more."""

    name: str
    """Of what it shows."""
    version: str
    """Changes when more is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a page shows besides finished trees, as far as it is there."""

    unfinished: Sequence[RolloutTree] = ()
    """Trees whose rollout is not over."""
    updates: Mapping[TreeKey, TreeUpdate] = field(default_factory=dict)
    """What the update made of trees."""
    live: Live | None = None
    """How the page hears of more; None for a file."""


def make_page(folder: OpenedFolder, name: str, trees: Sequence[RolloutTree], shown: Shown | None = None) -> str:
    """Return the page of an iteration or a benchmark.

    Args:
        folder: Where the trees are from.
        name: Of what they are.
        trees: Finished ones, in order.
        shown: What there is besides.
    """
    shown, vocabulary = shown or Shown(), Vocabulary(folder.texts)
    writer = TreeWriter(
        vocabulary=vocabulary, explainer=folder.explainer, advantages=folder.advantages, updates=shown.updates
    )
    pieces, places = _pieces([*map(writer, trees), *map(writer.unfinished, shown.unfinished)])
    rows = [*map(question_row, trees), *map(unfinished_row, shown.unfinished)]
    is_updated = any(key_of(tree) in shown.updates for tree in trees)
    head = {
        "run": folder.path.resolve().name,
        "name": name,
        "unit": UNIT,
        "rule": folder.explainer.describe(),
        "absences": {key: why for key, why in folder.absences.items() if not is_updated or key not in _UPDATED},
        "questions": [{**row, "place": place} for row, place in zip(rows, places, strict=True)],
        "live": None if shown.live is None else {"name": shown.live.name, "version": shown.live.version},
    }
    return render({"head": head, "vocabulary": vocabulary.texts}, pieces, may_ask=shown.live is not None)


def _pieces(trees: Iterable[dict[str, Any]]) -> tuple[list[str], list[list[int]]]:
    """Return trees packed in pieces, and for each tree its piece and its place there."""
    pieces: list[list[str]] = [[]]
    places = []
    size = 0
    for tree in trees:
        text = _to_json(tree)
        if pieces[-1] and size + len(text) > _PIECE_BYTES:
            pieces.append([])
            size = 0
        places.append([len(pieces) - 1, len(pieces[-1])])
        pieces[-1].append(text)
        size += len(text)
    return [_pack("[" + ",".join(each) + "]") for each in pieces], places


def render(data: Mapping[str, Any], pieces: Sequence[str], *, may_ask: bool = False) -> str:
    """Return a page.

    Args:
        data: Plain values by name, which the program unpacks at once.
        pieces: Packed values, which it unpacks when they are looked at.
        may_ask: Whether it may ask the server that it came from.
    """
    style, program = _read(_STYLE), "'use strict';\n" + "\n".join(map(_read, _PROGRAM))
    rules = ["default-src 'none'", f"script-src {_hash(program)}", f"style-src {_hash(style)}"]
    rules += ["base-uri 'none'", "form-action 'none'", *(["connect-src 'self'"] if may_ask else [])]
    packed = {f"data-{name}": _pack(_to_json(values)) for name, values in data.items()}
    packed |= {f"data-piece-{number}": piece for number, piece in enumerate(pieces)}
    scripts = "".join(f'<script type="text/plain" id="{name}">{text}</script>\n' for name, text in packed.items())
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{"; ".join(rules)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>aepo-view</title>\n<style>{style}</style>\n</head>\n<body>\n"
        "<noscript>This page draws its trees with JavaScript.</noscript>\n"
        f"{scripts}<script>{program}</script>\n</body>\n</html>\n"
    )


def _read(name: str) -> str:
    return (files(__package__) / _FOLDER / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def _to_json(values: Any) -> str:
    return json.dumps(values, separators=(",", ":"))  # ASCII: any half of a surrogate pair is an escape


def _pack(text: str) -> str:
    return b64encode(gzip.compress(text.encode(), compresslevel=6, mtime=0)).decode()
