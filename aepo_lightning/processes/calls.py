"""One call of a function in a worker process: what is sent, and what comes back."""

import json
import pickle
from collections.abc import Mapping
from typing import Any

from aepo_lightning.errors import ToolError, boundary
from aepo_lightning.processes.child import TEXT
from aepo_lightning.processes.fork_server import server_of
from aepo_lightning.processes.program import Program
from aepo_lightning.processes.told_error import told_error


async def call_apart(
    program: Program, name: str, arguments: Mapping[str, Any], context: object = None, seed: int = 0
) -> str:
    """Call a function of a program in one of its processes, and return its answer as text; None is no text.

    Cancelling the call kills the process.

    Args:
        program: Where the function is.
        name: Its qualified name there; empty for the one function of a program that is not a module.
        arguments: By name.
        context: A further argument of that name. None is no argument.
        seed: Of the random generators there, in 32 bits.

    Raises:
        Exception: As the function raised it, with its names and message.
        ToolError: If the process ended instead, or arguments or context cannot be sent.
        ToolUnavailableError: If no process can be started.
    """
    sent = b"" if context is None else _pickled(context)
    frame = {"function": name, "arguments": dict(arguments), "context": sent, "seed": seed}
    reply = await server_of(program).call(_pickled(frame))
    if reply[:1] == TEXT:
        return reply[1:].decode("utf-8", "surrogatepass")
    raise told_error(json.loads(reply[1:]))


def _pickled(value: object) -> bytes:
    failures: list[Exception] = []
    with boundary(failures.append):
        return pickle.dumps(value)
    raise ToolError(
        f"what it is called with cannot be sent to another process ({type(failures[0]).__name__}: {failures[0]}). A "
        "function with isolation=thread gets it as it is."
    )
