"""Event loops: one for work that a caller waits for, and one in a thread that outlives such calls."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


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


ResultT = TypeVar("ResultT")


def run_in_event_loop(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Run a coroutine to its end, also where an event loop is already running (a notebook): then in a thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _run_alone(work)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="aepo-rollout") as pool:
        return pool.submit(_run_alone, work).result()


def _run_alone(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    results: list[ResultT] = []

    async def keep() -> None:
        results.append(await work)

    # `asyncio.run` spells out a task with its result when it puts the handler of SIGINT back.
    asyncio.run(keep())
    return results[0]
