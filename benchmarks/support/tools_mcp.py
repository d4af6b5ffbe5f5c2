"""Calls to an MCP server over sessions that stay open, over stdio and HTTP.

The other side opens a session for each call and closes it again, as a loop does that knows the server's address only;
over stdio that starts the server anew.
"""

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from aepo_lightning.contracts.tool import ToolCall, ToolStatus
from aepo_lightning.tools import MCPServer, ToolRuntime, mcp_tools
from benchmarks.support.parts import Part
from benchmarks.support.tools_parts import CONTEXT, percentile_ms

AT_ONCE = 16
NUM_SESSIONS = 4
START_S = 60.0
_COMMAND = [sys.executable, str(Path(__file__).with_name("tools_mcp_server.py"))]


def measure(num_calls: int = 500, num_reconnects: int = 10) -> Part:
    """Measure both ways to reach a server.

    Args:
        num_calls: One after another, and again `AT_ONCE` at a time.
        num_reconnects: Calls of the other side.
    """
    stdio = _figures(lambda: MCPServer(_COMMAND, num_sessions=NUM_SESSIONS), num_calls, num_reconnects)
    with _http_server() as url:
        http = _figures(lambda: MCPServer(url=url, num_sessions=NUM_SESSIONS), num_calls, num_reconnects)
    goals = {
        "mcp_stdio_p50_ms": (stdio["p50_ms"], "<=", 10.0),
        "mcp_http_p50_ms": (http["p50_ms"], "<=", 10.0),
        "mcp_failed": (stdio["failed"] + http["failed"], "<=", 0.0),
    }
    return Part(figures={"stdio": stdio, "http": http}, goals=goals)


@contextmanager
def _http_server() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([*_COMMAND, str(port)], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.kill()
        process.wait()


def _figures(connect: Callable[[], MCPServer], num_calls: int, num_reconnects: int) -> dict[str, float]:
    server = connect()
    runtime = ToolRuntime(tools=[mcp_tools(server)], timeout_s=60.0)
    asyncio.run(_call(runtime, AT_ONCE, AT_ONCE))  # opens the sessions
    alone, failed = asyncio.run(_call(runtime, num_calls, 1))
    started = time.perf_counter()
    together, failed_together = asyncio.run(_call(runtime, num_calls, AT_ONCE))
    rate = num_calls / (time.perf_counter() - started)
    server.close()
    reconnecting = [_reconnect(connect) for _ in range(num_reconnects)]
    p50 = percentile_ms(alone, 0.5)
    return {
        "p50_ms": p50,
        "p99_ms": percentile_ms(alone, 0.99),
        f"calls_per_s_{AT_ONCE}_at_once": round(rate),
        f"p50_ms_{AT_ONCE}_at_once": percentile_ms(together, 0.5),
        "failed": failed + failed_together,
        "reconnecting_p50_ms": percentile_ms(reconnecting, 0.5),
        "ratio": round(percentile_ms(reconnecting, 0.5) / p50, 1),
    }


async def _call(runtime: ToolRuntime, num_calls: int, at_once: int) -> tuple[Sequence[float], int]:
    latencies, statuses, pending = [], [], iter(range(num_calls))

    async def caller() -> None:
        for number in pending:
            asked = time.perf_counter()
            result = await runtime.call(ToolCall(tool="say", text=f"hello {number}"), CONTEXT)
            latencies.append(time.perf_counter() - asked)
            statuses.append(result.status)

    await asyncio.gather(*(caller() for _ in range(at_once)))
    return latencies, sum(status is not ToolStatus.OK for status in statuses)


def _reconnect(connect: Callable[[], MCPServer]) -> float:
    started = time.perf_counter()
    server = connect()
    asyncio.run(server.call("say", {"text": "hello"}))
    server.close()
    return time.perf_counter() - started
