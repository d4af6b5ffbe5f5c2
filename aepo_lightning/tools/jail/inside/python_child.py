"""What runs inside the interpreter that `PythonTool` starts: one supervisor and one worker.

The source of this file is handed to `python -I -c`, so it imports the standard library only and stays quick to start.
The worker sets its own resource limits and runs the code from standard input. The supervisor waits for it, adopts what
it leaves behind (also daemons that left the process group), kills that, and reports at last how the worker ended.
Arguments: memory of each process in MiB, processor time in seconds, and the descriptor of the report.
"""

import ast
import ctypes
import linecache
import mmap
import os
import resource
import signal
import sys
from collections.abc import Callable
from types import FrameType, ModuleType, TracebackType

_FILENAME = "<python>"
_MAX_FILE_BYTES = 32 << 20
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def main() -> None:
    """Fork the worker; supervise it in the parent, run the code in the child."""
    memory_mb, cpu_s, report = (int(argument) for argument in sys.argv[1:4])
    out_of_memory = mmap.mmap(-1, 1)  # shared with the worker
    source = sys.stdin.buffer.read().decode("utf-8")
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None).prctl
        prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    signal.signal(signal.SIGTERM, _stop)
    worker = os.fork()
    if worker == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.close(report)
        _limit_resources(memory_mb, cpu_s)
        _run(source, lambda: out_of_memory.__setitem__(0, 1))
        return
    status = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
    _kill_descendants()
    os.write(report, f"{status} {out_of_memory[0]}".encode())
    os._exit(0)


def echo_last_expression(source: str) -> ast.Module:
    """Parse code and, as the official tool does, print its last statement if that is an expression but not a print.

    Args:
        source: Python code.

    Returns:
        The syntax tree, ready to compile.
    """
    tree = ast.parse(source, _FILENAME)
    last = tree.body[-1] if tree.body else None
    if isinstance(last, ast.Expr) and not _is_print(last.value):
        name = ast.copy_location(ast.Name("print", ast.Load()), last.value)
        last.value = ast.copy_location(ast.Call(name, [last.value], []), last.value)
        ast.fix_missing_locations(tree)
    return tree


def _is_print(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"


def _run(source: str, on_memory_error: Callable[[], object]) -> None:
    sys.excepthook = _show_traceback
    sys.argv = ["-c"]
    linecache.cache[_FILENAME] = (len(source), None, source.splitlines(keepends=True), _FILENAME)
    module = ModuleType("__main__")
    sys.modules["__main__"] = module  # pickle and dataclasses look classes of the code up there
    try:
        exec(compile(echo_last_expression(source), _FILENAME, "exec"), module.__dict__)
    except MemoryError:
        on_memory_error()
        raise


def _show_traceback(kind: type[BaseException], error: BaseException, frames: TracebackType | None) -> None:
    import traceback  # slow to load and only needed when the code fails

    while frames is not None and frames.tb_frame.f_code.co_filename != _FILENAME:
        frames = frames.tb_next
    traceback.print_exception(kind, error, frames, limit=-3)


def _limit_resources(memory_mb: int, cpu_s: int) -> None:
    for kind, soft, hard in (
        (resource.RLIMIT_AS, memory_mb << 20, memory_mb << 20),
        (resource.RLIMIT_CPU, cpu_s, cpu_s + 1),
        (resource.RLIMIT_FSIZE, _MAX_FILE_BYTES, _MAX_FILE_BYTES),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        ceiling = resource.getrlimit(kind)[1]
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        resource.setrlimit(kind, (soft, hard))
    # One thread pool per call on every core would exhaust both the cores and the address space.
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")


def _stop(_signal: int, _frame: FrameType | None) -> None:
    _kill_descendants()
    os._exit(128 + signal.SIGTERM)


def _kill_descendants() -> None:
    """Kill children until none is left; grandchildren become children when their parent dies."""
    while True:
        try:
            with open(f"/proc/self/task/{os.getpid()}/children") as listing:
                children = [int(pid) for pid in listing.read().split()]
            for pid in children:
                os.kill(pid, signal.SIGKILL)
            os.waitpid(-1, 0)
        except OSError:  # no children left, or no such listing outside Linux: the caller kills the process group
            return


if __name__ == "__main__":
    main()
