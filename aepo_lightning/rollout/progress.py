"""How far a rollout is: a bar on a terminal, and lines in the log everywhere else."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

from tqdm.auto import tqdm

from aepo_lightning.distributed.ranks import tick

logger = logging.getLogger(__name__)

_EVERY_S = 30.0


@contextmanager
def rollout_progress(name: str, num_questions: int, is_shown: bool = True) -> Iterator[Callable[..., None]]:
    """Yield what to call when the tree of a question is finished. Whoever watches the ranks is told of it as well.

    Args:
        name: Of the rollout.
        num_questions: How many trees there will be.
        is_shown: Whether to say anything.
    """
    start = last = perf_counter()
    finished = 0
    with tqdm(
        total=num_questions,
        desc=f"rollout {name}",
        unit="q",
        leave=False,
        disable=not (is_shown and sys.stderr.isatty()),
    ) as bar:

        def advance(_: object = None) -> None:
            nonlocal last, finished
            tick()
            finished += 1
            bar.update()
            if is_shown and bar.disable and perf_counter() - last >= _EVERY_S:
                last = perf_counter()
                logger.info("Rollout %s: %d of %d questions, %.0f s.", name, finished, num_questions, last - start)

        yield advance
