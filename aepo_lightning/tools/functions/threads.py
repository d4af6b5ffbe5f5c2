"""Functions called in threads: nothing has to be sent anywhere, and nothing can stop them."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from aepo_lightning.event_loop import call_in_thread
from aepo_lightning.processes.child import to_text


async def text_from_thread(function: Callable[..., Any], arguments: Mapping[str, Any]) -> str:
    """Call a function in a thread of its own.

    Args:
        function: What to call. An awaitable that it returns is awaited in the event loop.
        arguments: By name.

    Returns:
        Its answer as text; None is no text.

    Raises:
        Exception: As `call_in_thread`.
    """
    answer = await call_in_thread(partial(_call, function, arguments), "aepo-tool")
    return answer if isinstance(answer, str) else to_text(await answer)


def _call(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    answer = function(**arguments)
    return answer if inspect.isawaitable(answer) else to_text(answer)
