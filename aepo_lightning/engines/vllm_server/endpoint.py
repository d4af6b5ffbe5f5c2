"""One server as the pool knows it, and what went wrong with one request on its way through several."""

import asyncio
from dataclasses import dataclass, field

from aepo_lightning.engines.vllm_server.http import EndpointError, Fault, ServerClient, ServerSettings

FIRST_PAUSE_S = 0.1
"""Before the second attempt of a request, and before the second look at servers none of which is left."""
LONGEST_PAUSE_S = 15.0
LOOK_GROWTH = 2
"""How much longer each further pause is."""
_RETRY_GROWTH = 4


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
    was_usable: bool = False
    """Whether it has ever been."""
    may_return: bool = True
    """Whether there is reason to wait for it."""
    is_final: bool = False
    """Whether even a server that still starts would not help."""
    version: str = ""
    """Name of its weights."""
    num_in_flight: int = 0
    num_served: int = 0
    last_error: str = "it was not checked yet"


class Failures:
    """What went wrong with one request so far."""

    def __init__(self, settings: ServerSettings) -> None:
        """Start with none.

        Args:
            settings: How many are too many.
        """
        self._settings = settings
        self.endpoints: list[Endpoint] = []
        """Those that failed, the newest last."""
        self._num_counted = self._num_busy = 0
        self._busy_since = 0.0

    @property
    def number(self) -> int:
        """How many attempts failed."""
        return len(self.endpoints)

    @property
    def pause_s(self) -> float:
        """How long to wait before the next attempt."""
        growth = float(LOOK_GROWTH**self._num_busy if self._num_busy else _RETRY_GROWTH ** (self._num_counted - 1))
        return min(FIRST_PAUSE_S * growth, LONGEST_PAUSE_S)

    def add(self, endpoint: Endpoint, error: EndpointError, now: float) -> None:
        """Note an attempt that failed, at a time in seconds."""
        self.endpoints.append(endpoint)
        if error.fault is not Fault.BUSY:
            self._num_counted += 1
            self._num_busy = 0
            return
        self._num_busy += 1
        if self._num_busy == 1:
            self._busy_since = now

    def are_too_many(self, now: float) -> bool:
        """Whether the request is given up."""
        limit = self._settings.max_retries
        is_over = now - self._busy_since > self._settings.outage_timeout_s
        return self._num_counted > limit or (self._num_busy > limit and is_over)
