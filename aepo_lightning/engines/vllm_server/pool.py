"""Which server gets a request, what happens when one fails, and how it comes back."""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from aepo_lightning.engines.vllm_server.answer import TokenAnswer
from aepo_lightning.engines.vllm_server.endpoint import (
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    LOOK_GROWTH,
    Endpoint,
    Failures,
)
from aepo_lightning.engines.vllm_server.http import LAUNCH_ADVICE, EndpointError, Fault, ServerSettings
from aepo_lightning.engines.vllm_server.publication_files import UntouchedError
from aepo_lightning.engines.vllm_server.routes import PrefixRoutes
from aepo_lightning.errors import EngineError, boundary

logger = logging.getLogger(__name__)

_LOAD_FACTOR = 1.25
"""How far above the mean a prefix may load the endpoint that it belongs to."""
_LOAD_SLACK = 4
"""Requests that an endpoint may always have, however idle the others are."""
_REMIND_S = 60.0


class ServerPool:
    """Shares requests out among endpoints. All methods run in one event loop."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        settings: ServerSettings,
        admit: Callable[[Endpoint], Awaitable[None]],
        check: Callable[[Endpoint], Awaitable[None]],
    ) -> None:
        """Keep the endpoints; none is asked before the first request.

        Args:
            endpoints: At least one.
            settings: Retries and deadlines.
            admit: Brings an endpoint up to date, or raises `EndpointError`.
            check: Looks whether an endpoint that was admitted still is as it was, or raises `EndpointError`.
        """
        self.endpoints = list(endpoints)
        self.routes = PrefixRoutes()
        self._settings = settings
        self._admit_one = admit
        self._check = check
        self._is_started = False
        self._starting: asyncio.Task[None] | None = None
        self._round: asyncio.Task[None] | None = None
        self._outage: asyncio.Task[None] | None = None
        self._watchers: list[asyncio.Task[None]] = []
        self.is_watching = True
        """False keeps the health checks quiet, while the servers sleep."""

    async def ask(
        self,
        tokens: list[int],
        send: Callable[[Endpoint], Awaitable[TokenAnswer]],
        prefer: Endpoint | None = None,
    ) -> tuple[TokenAnswer, Endpoint]:
        """Have one endpoint answer, another one if it fails.

        Args:
            tokens: What the answer continues; decides which endpoint is best.
            send: Asks an endpoint.
            prefer: The endpoint that has the keys and values already.

        Raises:
            EngineError: If no endpoint is left and none comes back in time, or the request failed too often.
            RequestError: If the request itself was refused.
        """
        await self.start()
        failures = Failures(self._settings)
        while True:
            endpoint = await self._choose(tokens, failures.endpoints, prefer)
            try:
                answer = await self._attempt(endpoint, send)
            except EndpointError as error:
                self.take_out(endpoint, error)
                failures.add(endpoint, error, _now())
                if failures.are_too_many(_now()):
                    raise EngineError(f"A request failed {failures.number} times. {self._report()}") from error
                await asyncio.sleep(failures.pause_s)
                continue
            if answer is not None:
                self.routes.record(tokens + answer.token_ids, endpoint.index)
                return answer, endpoint

    async def start(self) -> None:
        """Wait until every server is ready or the patience for starting ones ends, once; then watch over them.

        Raises:
            EngineError: If none is usable.
        """
        if self._is_started:
            return
        if self._starting is None or self._starting.done():
            self._starting = asyncio.create_task(self._wait_until_ready())
        await asyncio.shield(self._starting)

    async def refresh(self) -> None:
        """Admit every endpoint anew, because what is asked of them changed; wait for one if none is left.

        Raises:
            EngineError: If none is usable afterwards.
        """
        self.routes.clear()
        for endpoint in self.endpoints:
            endpoint.is_usable = False
        self.is_watching = True
        if not self._is_started:
            await self.start()
            return
        await self._wait_for_one()
        self._warn_about_missing()

    def forget(self) -> None:
        """Look at every endpoint again before its next use."""
        self.routes.clear()
        self.is_watching = True
        for endpoint in self.endpoints:
            endpoint.is_usable = False

    def take_out(self, endpoint: Endpoint, error: EndpointError, *, is_silent: bool = False) -> None:
        """Give an endpoint nothing more until it is admitted again.

        Args:
            endpoint: The one that failed.
            error: What it did.
            is_silent: Whether requests that wait for it should go elsewhere.
        """
        if endpoint.is_usable:
            logger.warning("%s was taken out of the pool: it %s", endpoint.client.url, error)
        endpoint.is_usable = endpoint.is_known = False
        is_known_good = endpoint.was_usable and not isinstance(error, UntouchedError)
        endpoint.may_return = error.may_pass or is_known_good
        endpoint.is_final, endpoint.last_error = error.fault is Fault.FINAL, f"it {error}"
        if is_silent:
            endpoint.down.set()

    async def close(self) -> None:
        """End the health checks and close the connections."""
        tasks = [*self._watchers, *([self._outage] if self._outage else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(endpoint.client.close() for endpoint in self.endpoints))

    async def _choose(self, tokens: list[int], failed: list[Endpoint], prefer: Endpoint | None) -> Endpoint:
        while not self._has_any():
            await self._wait_for_one()
        usable = [endpoint for endpoint in self.endpoints if endpoint.is_usable]
        usable = [endpoint for endpoint in usable if endpoint not in failed] or usable
        if prefer in usable:
            return prefer
        mean = (sum(endpoint.num_in_flight for endpoint in usable) + 1) / len(usable)
        limit = max(_LOAD_SLACK, math.ceil(_LOAD_FACTOR * mean))
        known = self.routes.find(tokens)
        for endpoint in usable:
            if endpoint.index == known and endpoint.num_in_flight < limit:
                return endpoint
        chosen = min(usable, key=lambda endpoint: (endpoint.num_in_flight, endpoint.num_served))
        # At once, not with the answer: chains of one question begin together and should stay together.
        self.routes.record(tokens, chosen.index)
        return chosen

    async def _attempt(
        self, endpoint: Endpoint, send: Callable[[Endpoint], Awaitable[TokenAnswer]]
    ) -> TokenAnswer | None:
        """Return the answer, or None if the endpoint was taken out while the request waited for a slot."""
        endpoint.num_in_flight += 1
        try:
            async with endpoint.slots:
                if not endpoint.is_usable:
                    return None
                endpoint.num_served += 1
                return await _unless(endpoint, asyncio.ensure_future(send(endpoint)))
        finally:
            endpoint.num_in_flight -= 1

    async def _admit(self, endpoint: Endpoint) -> None:
        async with endpoint.lock:
            if endpoint.is_usable:
                return
            problems: list[Exception] = []
            with boundary(problems.append):
                await self._admit_one(endpoint)
            for problem in problems:
                self.take_out(endpoint, _endpoint_error(problem), is_silent=True)
                return
            endpoint.down = asyncio.Event()
            endpoint.is_usable = endpoint.was_usable = True
            endpoint.is_final = False

    async def _admit_all(self) -> None:
        """Check every endpoint that is out; callers at the same time share one round of checks."""
        if self._round is None or self._round.done():
            self._round = asyncio.create_task(_together([self._admit(endpoint) for endpoint in self.endpoints]))
        await asyncio.shield(self._round)

    async def _wait_until_ready(self) -> None:
        deadline = _now() + self._settings.ready_timeout_s
        await self._admit_all()
        while _now() < deadline and any(not (e.is_usable or e.is_final) for e in self.endpoints):
            await asyncio.sleep(min(1.0, self._settings.health_interval_s))
            await self._admit_all()
        if not self._watchers:
            self._watchers = [asyncio.create_task(self._watch(endpoint)) for endpoint in self.endpoints]
        self._warn_about_missing()
        self._check_any()
        self._is_started = True

    async def _watch(self, endpoint: Endpoint) -> None:
        while True:
            await asyncio.sleep(self._settings.health_interval_s)
            if not self.is_watching:
                continue
            if not endpoint.is_usable:
                await self._admit(endpoint)
                continue
            problems: list[Exception] = []
            with boundary(problems.append):
                await self._check(endpoint)
            for problem in problems:
                self.take_out(endpoint, _endpoint_error(problem), is_silent=True)

    async def _wait_for_one(self) -> None:
        """Return when an endpoint is usable; callers at the same time wait together.

        Raises:
            EngineError: If none comes back in time, or there is no reason to wait.
        """
        if self._outage is None or self._outage.done():
            self._outage = asyncio.create_task(self._look_for_one())
            self._outage.add_done_callback(_forget_error)
        await asyncio.shield(self._outage)

    async def _look_for_one(self) -> None:
        began, limit_s, reminded = _now(), self._settings.outage_timeout_s, -math.inf
        pause_s = FIRST_PAUSE_S
        await self._admit_all()
        while not self._has_any():
            left = began + limit_s - _now()
            if left <= 0 or not any(endpoint.may_return for endpoint in self.endpoints):
                raise EngineError(f"No vLLM server is left after {_now() - began:.0f} s of waiting. {self._report()}")
            if _now() - reminded >= _REMIND_S:
                reminded = _now()
                logger.warning("No vLLM server is left. Waiting up to %.0f s for one. %s", left, self._lines())
            await asyncio.sleep(min(pause_s, left))
            pause_s = min(pause_s * LOOK_GROWTH, LONGEST_PAUSE_S)
            if not self._has_any():  # the health checks may have found one
                await self._admit_all()
        if reminded >= began:
            back = ", ".join(endpoint.client.url for endpoint in self.endpoints if endpoint.is_usable)
            logger.warning("After %.1f s there is a vLLM server again: %s.", _now() - began, back)

    def _has_any(self) -> bool:
        return any(endpoint.is_usable for endpoint in self.endpoints)

    def _warn_about_missing(self) -> None:
        for endpoint in self.endpoints:
            if not endpoint.is_usable:
                logger.warning("%s is not in the pool: %s", endpoint.client.url, endpoint.last_error)

    def _check_any(self) -> None:
        if not self._has_any():
            raise EngineError(f"No vLLM server is left. {self._report()}")

    def _lines(self) -> str:
        lines = [f"\n  {endpoint.client.url}: {endpoint.last_error}" for endpoint in self.endpoints]
        return f"What each endpoint did last:{''.join(lines)}"

    def _report(self) -> str:
        return (
            f"{self._lines()}\nLook at the servers' logs and restart those that ended; "
            f"check the addresses in `endpoints`. {LAUNCH_ADVICE}"
        )


def _now() -> float:
    return asyncio.get_running_loop().time()


def _endpoint_error(problem: Exception) -> EndpointError:
    if isinstance(problem, EndpointError):
        return problem
    # What it answered has another form than that of the servers known here, or it refused a request for one token.
    return EndpointError(f"is not a server that this engine knows: {problem!r:.200}. {LAUNCH_ADVICE}", Fault.FINAL)


async def _unless(endpoint: Endpoint, task: "asyncio.Future[TokenAnswer]") -> TokenAnswer:
    """Await an answer unless its endpoint falls silent."""
    down = asyncio.create_task(endpoint.down.wait())
    either: set[asyncio.Future[Any]] = {task, down}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise EndpointError(endpoint.last_error.removeprefix("it "), Fault.SILENT)
    finally:
        task.cancel()
        down.cancel()
        await asyncio.gather(task, down, return_exceptions=True)


def _forget_error(task: "asyncio.Task[None]") -> None:
    if not task.cancelled():
        task.exception()  # whoever waits for it has it too, if anybody still does


async def _together(work: Sequence[Awaitable[None]]) -> None:
    await asyncio.gather(*work)
