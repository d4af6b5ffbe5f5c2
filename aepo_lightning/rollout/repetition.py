"""How much of what was generated is said again."""

from collections.abc import Sequence

LENGTH = 4
"""Tokens in a row that count as said again if they stood in the same turn before."""


def count_repeated(token_ids: Sequence[int]) -> tuple[int, int]:
    """Return how many runs of four tokens a turn says again, and how many it has.

    Args:
        token_ids: Of one turn.
    """
    runs = list(zip(*(token_ids[start:] for start in range(LENGTH)), strict=False))
    return len(runs) - len(set(runs)), len(runs)
