"""Trees as plain data, and the append-only file in which every finished tree is kept.

One JSON object per line. A tree is written as soon as its last leaf is scored, so a crash loses only trees that were
still growing. The last line of a file may be cut; reading skips nothing else.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
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
    plain = asdict(tree)
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
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(tree_to_dict(tree), separators=(",", ":")) + "\n")

    def read(self, name: str) -> Iterator[RolloutTree]:
        """Yield the stored trees of `name`, in the order in which they were finished.

        Raises:
            DataError: If a line other than a cut last one cannot be read; file and line are named.
        """
        path = self.path(name)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
        for number, line in enumerate(lines, start=1):
            if number == len(lines) and not line.endswith("\n"):
                return
            try:
                yield tree_from_dict(json.loads(line))
            except (json.JSONDecodeError, DataError) as error:
                raise DataError(f"{path}, line {number}: {error}") from error
