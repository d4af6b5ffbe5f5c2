"""A server that speaks MCP by hand, badly. Run as `python mcp_raw.py FOLDER MODE`.

It writes a file into the folder at each start. Modes: `good`; `second-hangs` answers nothing unless it is the first;
`pair` answers nothing until two have been started; `silent` never lists its tools.
"""

import json
import os
import sys
import time
from pathlib import Path

TOOLS = [
    {"name": "Echo", "inputSchema": {"type": "object", "properties": {"text": {"type": "string"}}}},
    {
        "name": "9lives",
        "inputSchema": {
            "$defs": {"Cat": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}},
            "type": "object",
            "properties": {
                "cat": {"$ref": "#/$defs/Cat"},
                "age": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
            },
            "required": ["cat"],
        },
    },
    {"name": "far", "inputSchema": {"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:9/schema.json"}}}},
    {
        "name": "letters",
        "inputSchema": {"type": "object", "properties": {"a": {"type": "string", "pattern": r"^\p{L}+$"}}},
    },
    {
        "name": "old",
        "inputSchema": {"type": "object", "properties": {"a": {"type": "array", "items": [{"type": "string"}]}}},
    },
    {"name": "anything", "inputSchema": {"type": "object", "properties": {"a": True}}},
    {"name": "picture", "inputSchema": {"type": "object"}},
]


def result_of(message, mode):
    method = message.get("method")
    if method == "initialize":
        version = message["params"]["protocolVersion"]
        return {
            "protocolVersion": version,
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "raw", "version": "1"},
        }
    if method == "tools/list":
        if mode == "silent":
            time.sleep(60)
        place = int((message.get("params") or {}).get("cursor") or 0)
        return {"tools": TOOLS[place : place + 2], **({"nextCursor": str(place + 2)} if place + 2 < len(TOOLS) else {})}
    if method == "tools/call":
        content = [{"type": "text", "text": str(os.getpid())}]
        if message["params"]["name"] == "picture":
            content += [
                {"type": "image", "data": "AAAA", "mimeType": "image/png"},
                {"type": "resource", "resource": {"uri": "file:///x", "blob": "AAAA"}},
                {"type": "resource", "resource": {"uri": "file:///y", "text": "inside"}},
                {"type": "resource_link", "uri": "file:///z", "name": "z"},
            ]
        return {"content": content}
    return None


def answer(line, mode):
    message = json.loads(line)
    if "id" not in message:
        return
    result = result_of(message, mode)
    reply = {"jsonrpc": "2.0", "id": message["id"]}
    reply |= {"error": {"code": -32601, "message": "no such method"}} if result is None else {"result": result}
    sys.stdout.buffer.write(b"starting up, this is no protocol \xff\xfe\n{}\n" + json.dumps(reply).encode() + b"\n")
    sys.stdout.buffer.flush()


def main(folder, mode):
    (folder / str(os.getpid())).touch()
    num_started = len(list(folder.iterdir()))
    while mode == "pair" and len(list(folder.iterdir())) < 2:
        time.sleep(0.01)
    if mode == "second-hangs" and num_started > 1:
        time.sleep(60)
    for line in sys.stdin:
        answer(line, mode)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
