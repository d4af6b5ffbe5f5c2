"""Work that one process of a job does before the processes know each other, while the others wait for its result.

Where torchrun or srun starts the ranks, all of them come here at once, on all machines. What they share is the folder
of the run. Where Lightning starts the others, it does so later, and they find the work done.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from time import monotonic, sleep

from lightning.pytorch.utilities import rank_zero_only

from aepo_lightning.errors import TrainingError

JOB_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_NTASKS", "SLURM_PROCID")
"""Variables that tell Lightning of a job with several processes."""
_BEAT_S = 2.0
_SILENT_S = 120.0
"""Longer than a network file system takes to show a change, and than any pause of a living process."""


def make_once(
    result: Path,
    make: Callable[[], None],
    silent_s: float = _SILENT_S,
    is_sound: Callable[[], bool] = lambda: True,
) -> None:
    """Let the first process of the job make something, and return in every process when it is there.

    Args:
        result: A file on a disk of all machines. It must appear when everything is made, and not before.
        make: Makes it. Lightning sees no other process meanwhile.
        silent_s: How long the first process may give no sign of life.
        is_sound: Says of a result that is there whether it is the one that is wanted. Another one is made in its place.

    Raises:
        TrainingError: If the first process is gone.
    """

    def is_there() -> bool:
        return result.is_file() and is_sound()

    if is_there():
        return
    sign = result.parent.with_name(f"{result.parent.name}.making")
    if is_first_process():
        with _beating(sign), _alone():
            make()
        return
    _wait(is_there, result, sign, silent_s)


def is_first_process() -> bool:
    """Whether this process is the first one of its job."""
    return not getattr(rank_zero_only, "rank", 0) and os.environ.get("NODE_RANK", "0") == "0"


@contextmanager
def _alone() -> Iterator[None]:
    """Hide the job from Lightning, which would look for the other processes."""
    hidden = {name: os.environ.pop(name) for name in JOB_VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextmanager
def _beating(sign: Path) -> Iterator[None]:
    """Change a file for as long as the block lasts."""
    is_over = Event()

    def beat() -> None:
        count = 0
        while not is_over.wait(_BEAT_S if count else 0):
            count += 1
            sign.write_text(str(count), encoding="utf-8")

    sign.parent.mkdir(parents=True, exist_ok=True)
    thread = Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        sign.unlink(missing_ok=True)


def _wait(is_there: Callable[[], bool], result: Path, sign: Path, silent_s: float) -> None:
    last, heard_at = "", monotonic()
    while not is_there():
        now = _read(sign)
        if now != last:
            last, heard_at = now, monotonic()
        if monotonic() - heard_at > silent_s:
            raise TrainingError(
                f"{result} must be made by the first process of the job, but it gave no sign for {silent_s:g} s. Look "
                "at its output, and see that all machines share this folder."
            )
        sleep(min(_BEAT_S, silent_s) / 4)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
