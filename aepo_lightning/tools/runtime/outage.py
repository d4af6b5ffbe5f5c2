"""What a run does without a tool whose infrastructure stays away: it stops, or waits until the tool is back."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from aepo_lightning.contracts.tool import ToolResult, ToolStatus
from aepo_lightning.errors import ToolOutageError
from aepo_lightning.printable import printable

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
_LONGEST_GAP_S = 60.0
"""Most time between two calls that counts: nobody knows what the tool did while nobody asked."""
_ANSWERED = frozenset({ToolStatus.OK, ToolStatus.EMPTY, ToolStatus.ERROR})


@dataclass(slots=True)
class Outage:
    """Counts for how long a tool has been unavailable, by how its calls end.

    Args:
        name: Of the tool.
        max_unavailable_s: For so long calls are answered that the tool is unavailable.
        is_waited_out: Whether calls then wait, tried again after growing pauses, or the run stops.
    """

    name: str
    max_unavailable_s: float
    is_waited_out: bool
    _lasted_s: float = field(init=False, default=0.0)
    _noted_at: float | None = field(init=False, default=None)
    """When the last call ended unavailable, unless one has been answered since."""

    async def outlast(self, make_call: Callable[[], Awaitable[ToolResult]]) -> ToolResult:
        """Make a call; again for as long as the tool is away, if it has been away for too long.

        Args:
            make_call: Makes it.

        Raises:
            ToolOutageError: If it has been away for too long, and that is not waited out.
        """
        pause_s = _FIRST_PAUSE_S
        while True:
            result = await make_call()
            if not self._is_too_long(result.status):
                return result
            if not self.is_waited_out:
                raise ToolOutageError(
                    f"Tool({self.name}) must be available for a run to go on, but was not for {self._lasted_s:.0f} s: "
                    f"{result.text} Mend what stands behind it and continue with ckpt_path=last, or set `on_outage` of "
                    "the tool runtime to wait."
                )
            if pause_s == _FIRST_PAUSE_S:
                logger.warning(
                    "Tool(%s) is unavailable; a call waits until it is back: %s", self.name, printable(result.text)
                )
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _is_too_long(self, status: ToolStatus) -> bool:
        if status in _ANSWERED:
            self._lasted_s, self._noted_at = 0.0, None
        if status is not ToolStatus.UNAVAILABLE:
            return False
        now = asyncio.get_running_loop().time()
        if self._noted_at is not None:
            self._lasted_s += min(now - self._noted_at, _LONGEST_GAP_S)
        self._noted_at = now
        return self._lasted_s >= self.max_unavailable_s
