"""What the runtime does with a cache: whatever the cache does, calls are answered."""

import logging
from collections.abc import Mapping
from typing import Any

from aepo_lightning.contracts.tool import ToolContext, ToolLimits, ToolResult, ToolSpec, ToolStatus
from aepo_lightning.errors import boundary
from aepo_lightning.event_loop import call_in_thread, cut_off
from aepo_lightning.tools.runtime.arguments import call_key
from aepo_lightning.tools.runtime.cache import ToolCache
from aepo_lightning.tools.runtime.tidying import tidying_s

logger = logging.getLogger(__name__)

_FLUSH_S = 30.0


class KeptAnswers:
    """A cache, or none, whose failures are logged once and otherwise count as an answer that is not there.

    Args:
        cache: Where answers are kept.
    """

    def __init__(self, cache: ToolCache | None) -> None:
        self._cache = cache
        self._has_warned = False

    def keeps(self, limits: ToolLimits) -> bool:
        """Return whether any answer of a tool with these limits is kept."""
        return self._cache is not None and (limits.cache_ttl_s, limits.cache_empty_ttl_s) != (0, 0)

    def key(self, spec: ToolSpec, arguments: Mapping[str, Any], context: ToolContext) -> str | None:
        """Return the key of a call. None if it has none, such as for data of a question that no JSON can hold."""
        with boundary(self._note):
            return call_key(spec, arguments, context)
        return None

    def get(self, key: str) -> ToolResult | None:
        """Return the answer under a key."""
        with boundary(self._note):
            return None if self._cache is None else self._cache.get(key)
        return None

    def put(self, spec: ToolSpec, key: str, result: ToolResult) -> None:
        """Keep an answer if it is one and the tool's limits ask for it."""
        ttl = {ToolStatus.OK: spec.limits.cache_ttl_s, ToolStatus.EMPTY: spec.limits.cache_empty_ttl_s}
        if self._cache is not None and result.status in ttl and ttl[result.status] != 0:
            with boundary(self._note):
                self._cache.put(key, spec.name, result, ttl[result.status])

    async def flush(self) -> None:
        """Wait, for a while, until everything kept is where it would survive this process."""
        if self._cache is not None:
            with boundary(self._note):
                await cut_off(
                    call_in_thread(self._cache.flush, "aepo-tool-cache-flush"), tidying_s(_FLUSH_S), "the cache"
                )

    def _note(self, error: Exception) -> None:
        if not self._has_warned:
            logger.warning("Answers of tools cannot be kept or found, so tools are asked again: %r", error)
        self._has_warned = True
