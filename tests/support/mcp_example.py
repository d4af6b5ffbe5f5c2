"""An MCP server with tools that behave and tools that do not. Run as `python mcp_example.py [port]`."""

import os
import sys
import time

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("example", log_level="ERROR")
notes = []


@server.tool(name="Say-It")
def say(text: str, times: int = 1) -> str:
    """Say something."""
    return " ".join([text] * times)


@server.tool()
def nothing_needed() -> dict[str, int]:
    """Answer with a structure."""
    return {"answer": 42}


@server.tool()
def fail(reason: str) -> str:
    """Fail."""
    raise ToolError(reason)


@server.tool()
def nap(seconds: float) -> str:
    """Sleep."""
    time.sleep(seconds)
    return "awake"


@server.tool()
def die(code: int) -> str:
    """End the server."""
    os._exit(code)


@server.tool()
def flood(megabytes: int) -> str:
    """Say too much."""
    return "x" * (megabytes << 20)


@server.tool()
def note(text: str) -> str:
    """Write a note and read all of this process."""
    notes.append(text)
    return ",".join(notes)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run("stdio")
