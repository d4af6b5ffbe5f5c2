"""Event loops: for work that a caller waits for, in a thread that outlives such calls, and work with a deadline.

A deadline holds whatever the work does: work that does not stop when told to is left behind.
"""

import asyncio
import inspect
import logging
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from aepo_lightning.errors import SignalExit, boundary

logger = logging.getLogger(__name__)

T = TypeVar("T")

_GRACE_S = 1.0
"""How long cancelled work may tidy up."""


class LoopThread:
    """Runs coroutines for callers in other loops or in none.

    Args:
        name: Of the thread.
        closed_error: Makes the error of those who call a thread that was closed.
    """

    def __init__(self, name: str, closed_error: Callable[[], Exception]) -> None:
        self._closed_error = closed_error
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()
        self._is_closed = False

    async def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Await `work` from another loop; cancelling the call cancels the work.

        Raises:
            Exception: That of `closed_error`, if the thread was closed, before or meanwhile; what `work` raises.
        """
        try:
            return await asyncio.wrap_future(self._submit(work))
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._is_closed and not (task and task.cancelling()):
                raise self._closed_error() from None
            raise

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for `work` from code that is not asynchronous."""
        return self._submit(work).result()

    def close(self, patience_s: float | None = None) -> None:
        """Cancel what runs and end the thread; calling it twice is allowed.

        Args:
            patience_s: How long to wait for work that does not stop when it is cancelled. None waits for ever.
        """
        if self._is_closed:
            return
        self._is_closed = True
        asyncio.run_coroutine_threadsafe(_cancel_others(patience_s), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(patience_s)
        if not self._thread.is_alive():
            self._loop.close()

    def _submit(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        if self._is_closed:
            work.close()
            raise self._closed_error()
        return asyncio.run_coroutine_threadsafe(work, self._loop)


async def _cancel_others(patience_s: float | None) -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        ended, _ = await asyncio.wait(others, timeout=patience_s)
        for task in ended:
            task.cancelled() or task.exception()  # nobody else asks
    await asyncio.get_running_loop().shutdown_asyncgens()


def run_in_event_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, also where an event loop is already running (a notebook): then in a thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _run_alone(work)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="aepo-rollout") as pool:
        return pool.submit(_run_alone, work).result()


def _run_alone(work: Coroutine[Any, Any, T]) -> T:
    results: list[T] = []

    async def keep() -> None:
        place = (asyncio.get_running_loop(), asyncio.current_task())
        _running.append(place)
        try:
            results.append(await work)
        finally:
            _running.remove(place)

    # `asyncio.run` spells out a task with its result when it puts the handler of SIGINT back.
    asyncio.run(keep())
    return results[0]


_running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[None] | None]] = []


def stop_event_loops() -> None:
    """Cancel what `run_in_event_loop` runs at present, from another thread; its callers get a `CancelledError`."""
    for loop, task in [*_running]:
        if task is not None:
            with suppress(RuntimeError):  # the loop was closed a moment ago
                loop.call_soon_threadsafe(task.cancel)


class CutOffError(TimeoutError):
    """The deadline has passed."""


async def cut_off(work: Coroutine[Any, Any, T], deadline_s: float | None, name: str) -> T:
    """Return what work returns, if it does so before its deadline.

    Args:
        work: Runs in a task of its own. Cancelling the caller cancels it.
        deadline_s: When to cancel it; None is never. If it has not ended a second later, nobody waits for it any more.
        name: Whose work it is, for the log.

    Raises:
        CutOffError: If the deadline has passed.
        Exception: What the work raised. Its own cancellation and attempts to end the process count as failures, too.
    """
    task = asyncio.ensure_future(_contain(work))
    is_in_time = False
    try:
        await asyncio.wait({task}, timeout=deadline_s)
        is_in_time = task.done()
    finally:
        if not task.done():
            await _stop(task, name)
        else:
            task.cancelled() or task.exception()  # nobody asks any more where the process is told to end
    if not is_in_time:
        raise CutOffError(f"it took longer than {deadline_s:g} s.")
    if task.cancelled():
        raise RuntimeError("it cancelled itself.")
    error = task.exception()
    if error is None or isinstance(error, Exception):
        return task.result()
    raise RuntimeError(f"it raised {error!r}.") from error


async def _contain(work: Coroutine[Any, Any, T]) -> T:
    try:
        return await work
    except SignalExit:
        raise
    except SystemExit as error:  # the loop would pass it on, and the run would end
        raise RuntimeError("it tried to end the process.") from error


async def _stop(task: asyncio.Task[Any], name: str) -> None:
    task.cancel()
    try:
        await asyncio.wait({task}, timeout=_GRACE_S)
    finally:
        if task.done():
            task.cancelled() or task.exception()  # nobody else asks
        else:
            # The end of the event loop must not wait for it either, nor wonder.
            asyncio._unregister_task(task)
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            logger.warning("A call of %s goes on after it was cancelled; nobody waits for it any more.", name)


async def call_in_thread(function: Callable[[], T], name: str) -> T:
    """Return what a function returns that is called in a thread of its own: a pool fills up with those that hang.

    A thread cannot be stopped. Where the caller is cancelled, the function runs on until it returns, and the process
    may end before it does.

    Args:
        function: What to call. It finds the context variables of the caller.
        name: Of the thread.

    Raises:
        Exception: What the function raised. Whatever would end the thread or the caller instead is a RuntimeError.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def settle(failures: list[Exception], values: list[T]) -> None:
        if answer.cancelled():
            return
        if values:
            answer.set_result(values[0])
        else:
            answer.set_exception(failures[0])

    def work() -> None:
        failures: list[Exception] = []
        values: list[T] = []
        with boundary(failures.append):
            try:
                values.append(function())
            except SystemExit as error:  # ends a thread without a word
                raise RuntimeError("it tried to end the process.") from error
            except (KeyboardInterrupt, GeneratorExit, StopIteration, asyncio.CancelledError) as error:
                # No future takes a StopIteration; the others would end this thread, or cancel the caller.
                raise RuntimeError(f"it raised {type(error).__name__}.") from error
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, failures, values)

    threading.Thread(target=partial(copy_context().run, work), name=name, daemon=True).start()
    return await answer


async def call_function(function: Callable[[Any], Any], argument: Any, name: str) -> Any:
    """Return what a user's function returns, whichever kind it is.

    Args:
        function: Awaited here if it is a coroutine function, also one that is partly applied or the call of an object;
            called in a thread of its own otherwise. What the thread gives may be awaitable and is awaited here.
        argument: What it is called with.
        name: Of the thread.
    """
    if is_coroutine_function(function):
        return await function(argument)
    answer = await call_in_thread(partial(function, argument), name)
    return await answer if inspect.isawaitable(answer) else answer


def is_coroutine_function(function: Callable[..., Any]) -> bool:
    """Return whether a call gives a coroutine, of a function, of what is partly applied, and of an object."""
    inner: Any = function
    while isinstance(inner, partial):
        inner = inner.func
    return inspect.iscoroutinefunction(inner if inspect.isroutine(inner) else type(inner).__call__)


class Places:
    """So many may work at once; those that come later wait, in their order. Each event loop has its own places."""

    def __init__(self, limit: int | None) -> None:
        """Keep the limit.

        Args:
            limit: Places of an event loop. None is as many as are asked for.
        """
        self._limit = limit
        self._of_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[type["Places"], tuple[int | None]]:
        """Copy the limit alone: who waits, waits here."""
        return Places, (self._limit,)

    def take(self) -> AbstractAsyncContextManager[object]:
        """Return what `async with` waits in for a place, and gives it back at the end."""
        if self._limit is None:
            return nullcontext()
        return self._of_loops.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(self._limit))
