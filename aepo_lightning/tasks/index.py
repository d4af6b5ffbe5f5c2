"""Checks of a position in a split, shared by the tasks."""

from aepo_lightning.contracts.question import Split


def check_index(split: Split, index: int, size: int | None) -> None:
    """Refuse a position outside a split.

    Args:
        split: Which split, for the message.
        index: The position asked for.
        size: Number of questions of the split, or None if it has no end.

    Raises:
        ValueError: If `split` is neither train nor val.
        IndexError: If the position is negative or beyond the end.
    """
    if split not in ("train", "val"):
        raise ValueError(f"`split` must be 'train' or 'val', but got {split!r}. Use one of the two.")
    if index < 0 or (size is not None and index >= size):
        end = "no end" if size is None else f"{size} questions"
        raise IndexError(f"`index` must be a position of split {split!r} ({end}), but got {index}. Ask within it.")
