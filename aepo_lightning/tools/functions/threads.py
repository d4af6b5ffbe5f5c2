"""Functions called in threads: nothing has to be sent anywhere, and nothing can stop them."""

import asyncio
import inspect
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Any

from aepo_lightning.errors import boundary


async def call_in_thread(function: Callable[..., Any], arguments: Mapping[str, Any]) -> str:
    """Call a function in a thread of its own: a pool would fill up with those that hang and wait for them.

    Args:
        function: What to call. It finds the context variables of the caller. An awaitable that it returns is awaited
            in the event loop.
        arguments: By name.

    Returns:
        Its answer as text; None is no text.

    Raises:
        Exception: Whatever the function raises. What would end a thread without a word is a RuntimeError.
    """
    answer = await _in_thread(partial(copy_context().run, _call, function, arguments))
    if isinstance(answer, str):
        return answer
    return to_text(await answer)


def to_text(answer: Any) -> str:
    """Return an answer as text; None is no text."""
    return "" if answer is None else answer if isinstance(answer, str) else str(answer)


def _call(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    try:
        answer = function(**arguments)
        return answer if inspect.isawaitable(answer) else to_text(answer)
    except SystemExit as error:
        raise RuntimeError("the function tried to end the process.") from error
    except (KeyboardInterrupt, GeneratorExit, StopIteration, asyncio.CancelledError) as error:
        raise RuntimeError(f"the function raised {type(error).__name__}.") from error


async def _in_thread(function: Callable[[], Any]) -> Any:
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Any] = loop.create_future()

    def settle(failure: list[Exception], value: Any) -> None:
        if answer.cancelled():
            return
        if failure:
            answer.set_exception(failure[0])
        else:
            answer.set_result(value)

    def work() -> None:
        failure: list[Exception] = []
        value: Any = None
        with boundary(failure.append):
            value = function()
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, failure, value)

    threading.Thread(target=work, name="aepo-tool", daemon=True).start()
    return await answer
