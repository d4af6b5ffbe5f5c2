"""Which row of the cache holds which slot, so that the sequences of a step can stand in the first rows."""

from collections.abc import Iterable, Sequence


class SlotRows:
    """A permutation of slots over rows.

    A step that reads the first rows needs no copy of keys and values: they are a view of the cache. Requests keep
    their slots for life, so the contents of rows are exchanged instead where a slot of the step lies further back.
    """

    def __init__(self, num_slots: int) -> None:
        """Start with every slot in the row of its own number."""
        self._rows = list(range(num_slots))
        self._slots = list(range(num_slots))

    def __getitem__(self, slot: int) -> int:
        """Return the row of a slot."""
        return self._rows[slot]

    def of(self, slots: Iterable[int]) -> list[int]:
        """Return the rows of slots."""
        return [self._rows[slot] for slot in slots]

    def to_exchange(self, slots: Sequence[int], count: int) -> list[tuple[int, int]]:
        """Return which rows to exchange so that slots lie in the first `count` rows.

        Args:
            slots: At most `count` of them.
            count: Rows of the step.

        Returns:
            Pairs of rows; each row is in at most one.
        """
        behind = [self._rows[slot] for slot in slots if self._rows[slot] >= count]
        if not behind:
            return []
        wanted = set(slots)
        free = [row for row in range(count) if self._slots[row] not in wanted]
        return list(zip(free, behind, strict=False))

    def exchange(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Note that the contents of rows have been exchanged."""
        for row, other in pairs:
            self._slots[row], self._slots[other] = self._slots[other], self._slots[row]
            self._rows[self._slots[row]], self._rows[self._slots[other]] = row, other
