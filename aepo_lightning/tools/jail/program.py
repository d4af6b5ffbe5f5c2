"""A program that runs code as the jail does, for places where only a whole program can be sent."""

import inspect

from aepo_lightning.tools.jail.execution import ExitKind
from aepo_lightning.tools.jail.inside import python_child
from aepo_lightning.tools.jail.inside.job import Job

CHILD_SOURCE = inspect.getsource(python_child)
"""Source of the supervisor and the runner."""
_PROGRAM = """\
import io, random, sys, types
_child = types.ModuleType("python_child")
exec({child!r}, _child.__dict__)
_child._FILENAME = "<code>"
random.seed({seed!r})
sys.stdin = io.StringIO({stdin!r})
sys.path[:] = [path for path in sys.path if path]
_done = _child._run({code!r})
"""


def write_program(job: Job) -> str:
    """Wrap the code of a call: last expression echoed, short traceback, seeded `random`, given standard input.

    Args:
        job: The call.

    Returns:
        Python source that needs the standard library only.
    """
    code, stdin = (text.encode("utf-8", "replace").decode() for text in (job.code, job.stdin))
    return _PROGRAM.format(child=CHILD_SOURCE, seed=job.seed, stdin=stdin, code=code)


def name_exit(exit_code: int, stderr: str) -> ExitKind:
    """Tell how a program ended from what is known outside.

    Args:
        exit_code: Of the program.
        stderr: Its standard error.
    """
    if exit_code == 0:
        return ExitKind.OK
    last_line = stderr.strip().rpartition("\n")[2]
    if last_line.partition(":")[0].endswith("MemoryError"):
        return ExitKind.MEMORY
    return ExitKind.ERROR if 0 < exit_code <= 128 else ExitKind.KILLED
