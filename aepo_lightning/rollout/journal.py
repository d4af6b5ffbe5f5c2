"""Trees as plain data, and the append-only file in which every finished tree is kept.

One JSON object per line. A tree is written as soon as its last leaf is scored, so a crash loses only trees that were
still growing. The last line of a file may be cut: reading skips it, and the next tree takes its place.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from aepo_lightning.errors import DataError
from aepo_lightning.tree import Leaf, RolloutTree, Segment
from aepo_lightning.types import (
    LeafOrigin,
    Message,
    Question,
    RewardOutput,
    SegmentSource,
    StopReason,
    ToolCall,
    ToolResult,
    ToolStatus,
)


def tree_to_dict(tree: RolloutTree) -> dict[str, Any]:
    """Return the tree as plain values. The question's own corpus is left out: tool results are in the segments."""
    plain = asdict(replace(tree, question=replace(tree.question, documents={})))
    plain["question"].pop("documents")
    return plain


def tree_from_dict(plain: dict[str, Any]) -> RolloutTree:
    """Rebuild a tree from `tree_to_dict`.

    Raises:
        DataError: If a field is missing or of the wrong kind.
    """
    try:
        fields = dict(plain)
        question = dict(fields.pop("question"))
        question["messages"] = tuple(Message(**message) for message in question["messages"])
        question["answers"] = tuple(question["answers"])
        segments = [_segment(segment) for segment in fields.pop("segments")]
        leaves = [_leaf(leaf) for leaf in fields.pop("leaves")]
        return RolloutTree(question=Question(**question), segments=segments, leaves=leaves, **fields)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"A stored tree must have the fields of `RolloutTree`, but: {error!r}.") from error


def _segment(plain: dict[str, Any]) -> Segment:
    fields = dict(plain, source=SegmentSource(plain["source"]))
    if fields["tool_call"] is not None:
        fields["tool_call"] = ToolCall(**fields["tool_call"])
    if fields["tool_result"] is not None:
        result = fields["tool_result"]
        fields["tool_result"] = ToolResult(**{**result, "status": ToolStatus(result["status"])})
    return Segment(**fields)


def _leaf(plain: dict[str, Any]) -> Leaf:
    fields = dict(plain, origin=LeafOrigin(plain["origin"]), stop_reason=StopReason(plain["stop_reason"]))
    fields["seed_path"] = tuple(fields["seed_path"])
    if fields["reward"] is not None:
        fields["reward"] = RewardOutput(**fields["reward"])
    return Leaf(**fields)


class RolloutJournal:
    """Appends finished trees to one file per iteration below `directory`."""

    def __init__(self, directory: str | Path) -> None:
        self._directory = Path(directory)

    def path(self, name: str) -> Path:
        """Return the file that holds the trees of `name`, such as `train-00012`."""
        return self._directory / f"{name}.jsonl"

    def append(self, name: str, tree: RolloutTree) -> None:
        """Write one finished tree."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(tree_to_dict(tree), separators=(",", ":")) + "\n"
        _remove_cut_line(path)
        with path.open("a", encoding="utf-8") as file:
            file.write(line)

    def read(self, name: str) -> Iterator[RolloutTree]:
        """Yield the stored trees of `name`, in the order in which they were finished.

        Raises:
            DataError: If a line other than a cut last one cannot be read; file and line are named.
        """
        path = self.path(name)
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        for number, line in enumerate(lines, start=1):
            if number == len(lines) and not line.endswith(b"\n"):
                return
            try:
                plain = json.loads(line)
                if not isinstance(plain, dict):
                    raise DataError(f"A stored tree must be a JSON object, but got {plain!r:.80}.")
                yield tree_from_dict(plain)
            except ValueError as error:  # not UTF-8, not JSON, or not a tree
                raise DataError(f"{path}, line {number}: {error}") from error


def _remove_cut_line(path: Path) -> None:
    """Cut a file back to its last whole line: what a killed run left behind would spoil the next line."""
    if not path.is_file() or not path.stat().st_size:
        return
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
