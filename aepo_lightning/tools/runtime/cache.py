"""Answers that are kept: the contract of a cache."""

from typing import Protocol, runtime_checkable

from aepo_lightning.contracts.tool import ToolResult


@runtime_checkable
class ToolCache(Protocol):
    """Keeps status and text of answers under the digest of their call."""

    def get(self, key: str) -> ToolResult | None:
        """Return the answer under a key, or None if there is none or its time is up."""
        ...

    def put(self, key: str, tool: str, answer: ToolResult, ttl_s: float | None) -> None:
        """Keep an answer.

        Args:
            key: Digest of the call.
            tool: Name of the tool, for figures and for forgetting all of its answers.
            answer: What it said.
            ttl_s: How long to keep it. None is for ever.
        """
        ...

    def flush(self) -> None:
        """Return when everything kept so far is where it would survive this process."""
        ...

    def close(self) -> None:
        """Write what has not been written. Calling it twice is allowed."""
        ...
