"""When the steps of finished trees happened: a file beside the trees, which may be lost without harm.

The trees of two runs of the same seed are the same, line by line. Clocks are not, so what they said stands apart.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aepo_lightning.contracts.tree import RolloutTree
from aepo_lightning.errors import DataError
from aepo_lightning.rollout.checked_lines import read_lines

FOLDER = "times"


def times_path(directory: Path, name: str) -> Path:
    """Return the file that belongs to the trees of `name` in the folder of a journal."""
    return directory / FOLDER / f"{name}.jsonl"


def times_of(tree: RolloutTree) -> dict[str, Any]:
    """Return when the segments of a tree began and ended, as plain values."""
    spans = [None if s.span_s is None else [round(second, 6) for second in s.span_s] for s in tree.segments]
    return {"question": tree.question.question_id, "seed": tree.seed, "stamp": tree.stamp, "spans": spans}


def add_times(trees: Sequence[RolloutTree], path: Path) -> None:
    """Give the segments of trees their times, as far as a file has them. Lines that are damaged are passed over.

    Args:
        trees: As they were read from their own file.
        path: Of the times.
    """
    found: dict[tuple[object, ...], list[Any]] = {}
    for line in read_lines(path):
        try:
            plain = line.load()
            found[plain["question"], plain["seed"], plain["stamp"]] = plain["spans"]
        except (DataError, KeyError):
            continue
    for tree in trees:
        spans = found.get((tree.question.question_id, tree.seed, tree.stamp), [])
        if len(spans) == len(tree.segments):
            for segment, span in zip(tree.segments, spans, strict=True):
                segment.span_s = None if span is None else (float(span[0]), float(span[1]))
