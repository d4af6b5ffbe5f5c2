"""Which server gets a request, what happens when one fails, and how it comes back."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from aepo_lightning.engines.vllm_server.answer import TokenAnswer
from aepo_lightning.engines.vllm_server.http import LAUNCH_ADVICE, EndpointError, ServerClient, ServerSettings
from aepo_lightning.engines.vllm_server.routes import PrefixRoutes
from aepo_lightning.errors import EngineError, boundary

logger = logging.getLogger(__name__)

_LOAD_FACTOR = 1.25
"""How far above the mean a prefix may load the endpoint that it belongs to."""
_LOAD_SLACK = 4
"""Requests that an endpoint may always have, however idle the others are."""
_BACKOFF_S = 0.05


@dataclass(slots=True, eq=False)
class Endpoint:
    """One server and what is known about it."""

    client: ServerClient
    index: int
    slots: asyncio.Semaphore
    """One for each request that the server may work on at once."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while the server is checked or its weights change."""
    down: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the server fell silent: what still waits for it goes elsewhere."""
    is_usable: bool = False
    is_known: bool = False
    """Whether the server was looked at since it last failed."""
    is_final: bool = False
    """Whether waiting for it is useless."""
    version: str = ""
    """Name of its weights."""
    num_in_flight: int = 0
    num_served: int = 0
    last_error: str = "it was not checked yet"


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
            EngineError: If no endpoint is left, or the request failed too often.
            RequestError: If the request itself was refused.
        """
        await self.start()
        failed: list[Endpoint] = []
        while len(failed) <= self._settings.max_retries:
            endpoint = await self._choose(tokens, failed, prefer)
            try:
                answer = await self._attempt(endpoint, send)
            except EndpointError as error:
                failed.append(endpoint)
                self.take_out(endpoint, error)
                await asyncio.sleep(_BACKOFF_S * 2 ** len(failed))
                continue
            if answer is not None:
                self.routes.record(tokens + answer.token_ids, endpoint.index)
                return answer, endpoint
        raise EngineError(f"A request failed {len(failed)} times. {self._report()}")

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
        """Admit every endpoint anew, because what is asked of them changed.

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
        await self._admit_all()
        self._check_all()

    def forget(self) -> None:
        """Look at every endpoint again before its next use."""
        self.routes.clear()
        self._is_started = False
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
        endpoint.is_final, endpoint.last_error = error.is_final, f"it {error}"
        if is_silent:
            endpoint.down.set()

    async def close(self) -> None:
        """End the health checks and close the connections."""
        for task in self._watchers:
            task.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        await asyncio.gather(*(endpoint.client.close() for endpoint in self.endpoints))

    async def _choose(self, tokens: list[int], failed: list[Endpoint], prefer: Endpoint | None) -> Endpoint:
        if not any(endpoint.is_usable for endpoint in self.endpoints):
            await self._admit_all()
            self._check_any()
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
            endpoint.is_usable, endpoint.is_final = True, False

    async def _admit_all(self) -> None:
        """Check every endpoint that is out; callers at the same time share one round of checks."""
        if self._round is None or self._round.done():
            self._round = asyncio.create_task(_together([self._admit(endpoint) for endpoint in self.endpoints]))
        await asyncio.shield(self._round)

    async def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self._settings.ready_timeout_s
        await self._admit_all()
        while time.monotonic() < deadline and any(not (e.is_usable or e.is_final) for e in self.endpoints):
            await asyncio.sleep(min(1.0, self._settings.health_interval_s))
            await self._admit_all()
        if not self._watchers:
            self._watchers = [asyncio.create_task(self._watch(endpoint)) for endpoint in self.endpoints]
        self._check_all()
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

    def _check_all(self) -> None:
        for endpoint in self.endpoints:
            if not endpoint.is_usable:
                logger.warning("%s is not in the pool: %s", endpoint.client.url, endpoint.last_error)
        self._check_any()

    def _check_any(self) -> None:
        if not any(endpoint.is_usable for endpoint in self.endpoints):
            raise EngineError(f"No vLLM server is left. {self._report()}")

    def _report(self) -> str:
        lines = [f"\n  {endpoint.client.url}: {endpoint.last_error}" for endpoint in self.endpoints]
        return (
            f"What each endpoint did last:{''.join(lines)}\nLook at the servers' logs and restart those that ended; "
            f"check the addresses in `endpoints`. {LAUNCH_ADVICE}"
        )


def _endpoint_error(problem: Exception) -> EndpointError:
    if isinstance(problem, EndpointError):
        return problem
    # What it answered has another form than that of the servers known here, or it refused a request for one token.
    return EndpointError(f"is not a server that this engine knows: {problem!r}. {LAUNCH_ADVICE}", is_final=True)


async def _unless(endpoint: Endpoint, task: "asyncio.Future[TokenAnswer]") -> TokenAnswer:
    """Await an answer unless its endpoint falls silent."""
    down = asyncio.create_task(endpoint.down.wait())
    either: set[asyncio.Future[Any]] = {task, down}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise EndpointError(endpoint.last_error.removeprefix("it "))
    finally:
        task.cancel()
        down.cancel()
        await asyncio.gather(task, down, return_exceptions=True)


async def _together(work: Sequence[Awaitable[None]]) -> None:
    await asyncio.gather(*work)
