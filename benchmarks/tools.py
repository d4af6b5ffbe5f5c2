"""Tools: the Python pool, the cache, search, MCP, and rollouts whose tools hang. Peers' ways run beside ours.

    python -m benchmarks.tools [--parts python cache search mcp hangs] [--small]

Every part stands in a file of its own, `tools_*.py`, and says there what it measures against. The Python pool needs
bubblewrap; where it is missing, the part is left out and the result says so. All of it takes about five minutes,
`--small` less than one: its figures are for trying out, not for reporting.
"""

import asyncio
import os
import shutil
import subprocess
from functools import partial

from benchmarks.support import tools_cache, tools_hangs, tools_mcp, tools_python, tools_search
from benchmarks.support.parts import Part, Parts, run_parts


def bubblewrap_problem() -> str | None:
    """Return why bubblewrap cannot be used here, or None if it can."""
    path = shutil.which("bwrap")
    if path is None:
        return "bubblewrap is not installed"
    tried = subprocess.run([path, "--ro-bind", "/", "/", "true"], capture_output=True, text=True, check=False)
    return f"bubblewrap cannot start: {tried.stderr.strip()}" if tried.returncode else None


def measure_python(num_calls: int = 10_000) -> Part:
    """Measure the pool, where there can be one."""
    if (problem := bubblewrap_problem()) is not None:
        return Part(figures={"left_out": problem})
    cores = len(os.sched_getaffinity(0))
    figures = asyncio.run(tools_python.measure(num_calls, 4 * cores, 4 * cores))
    return Part(figures=figures, goals=tools_python.goals(figures))


PARTS: Parts = {
    "python": (measure_python, partial(measure_python, 1_000)),
    "cache": (tools_cache.measure, partial(tools_cache.measure, 1_000, 5_000, 3, 1_000)),
    "search": (tools_search.measure, partial(tools_search.measure, 1_000, 5_000, 500)),
    "mcp": (tools_mcp.measure, partial(tools_mcp.measure, 50, 2)),
    "hangs": (tools_hangs.measure, partial(tools_hangs.measure, 16, 1.0, 1)),
}


if __name__ == "__main__":
    run_parts("tools", __doc__, PARTS)
