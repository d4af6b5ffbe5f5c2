"""How far a rollout is: a bar on a terminal, and lines in the log everywhere else."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from threading import Event, Thread
from time import perf_counter

from tqdm.auto import tqdm

from aepo_lightning.distributed.ranks import tick

logger = logging.getLogger(__name__)

_EVERY_S = 30.0
_LOOK_S = 5.0
"""How often somebody looks whether a line is due."""


class _Lines:
    """Says now and then how far a rollout is, also while no tree is finished."""

    def __init__(self, name: str, num_questions: int) -> None:
        self._name, self._num_questions = name, num_questions
        self._start = self._last = perf_counter()
        self._finished = 0
        self._is_over = Event()

    def advance(self) -> None:
        self._finished += 1
        self._say_if_due()

    def _say_if_due(self) -> None:
        if perf_counter() - self._last >= _EVERY_S:
            self._last = perf_counter()
            seconds = self._last - self._start
            logger.info(
                "Rollout %s: %d of %d questions, %.0f s.", self._name, self._finished, self._num_questions, seconds
            )

    def _watch(self) -> None:
        while not self._is_over.wait(_LOOK_S):
            self._say_if_due()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look at the clock from a thread of its own, which touches nothing else."""
        thread = Thread(target=self._watch, name="aepo-progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._is_over.set()
            thread.join()


@contextmanager
def rollout_progress(name: str, num_questions: int, is_shown: bool = True) -> Iterator[Callable[..., None]]:
    """Yield what to call when the tree of a question is finished. Whoever watches the ranks is told of it as well.

    Args:
        name: Of the rollout.
        num_questions: How many trees there will be.
        is_shown: Whether to say anything.
    """
    is_bar = is_shown and sys.stderr.isatty()
    lines = _Lines(name, num_questions) if is_shown and not is_bar else None
    with (
        nullcontext() if lines is None else lines.watched(),
        tqdm(total=num_questions, desc=f"rollout {name}", unit="q", leave=False, disable=not is_bar) as bar,
    ):

        def advance(_: object = None) -> None:
            tick()
            bar.update()
            if lines is not None:
                lines.advance()

        yield advance
