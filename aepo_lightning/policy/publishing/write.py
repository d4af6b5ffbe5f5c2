"""Writing what all ranks gather, on one of them."""

from collections.abc import Callable, Iterator
from typing import Any

from aepo_lightning.distributed.collectives import together


def write_together(source: Iterator[Any], write: Callable[[], None], is_writer: bool) -> None:
    """Write on one rank what all ranks gather; an error is everyone's. Collective.

    Args:
        source: What is gathered, piece by piece.
        write: Takes it from there.
        is_writer: Whether this rank writes.

    Raises:
        DataError: On every rank, if it cannot be written.
    """

    def act() -> None:
        try:
            if is_writer:
                write()
        finally:
            for _ in source:  # gathering is collective, also after an error
                pass

    together(act)
