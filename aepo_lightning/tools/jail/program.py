"""A program that runs code as the jail does, for places where only a whole program can be sent."""

import inspect

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
_done = _child._run({code!r}, lambda: sys.stderr.write({mark!r}))
"""


def write_program(job: Job, mark: str = "") -> str:
    """Wrap the code of a call: last expression echoed, short traceback, seeded `random`, given standard input.

    Args:
        job: The call.
        mark: Written to standard error where a `MemoryError` ends the code.

    Returns:
        Python source that needs the standard library only.
    """
    code, stdin = (text.encode("utf-8", "replace").decode() for text in (job.code, job.stdin))
    return _PROGRAM.format(child=CHILD_SOURCE, seed=job.seed, stdin=stdin, code=code, mark=mark)
