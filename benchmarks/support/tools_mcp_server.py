"""The MCP server of the tool benchmark. Run as `python tools_mcp_server.py [port]`."""

import sys

from mcp.server import MCPServer

server = MCPServer("benchmark", log_level="ERROR")


@server.tool()
def say(text: str) -> str:
    """Say something."""
    return text


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run("stdio")
