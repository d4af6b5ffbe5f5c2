"""The search tool over an index on this machine."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from aepo_lightning.contracts.tool import AnyLimits, ToolContext, ToolLimits, ToolSpec
from aepo_lightning.errors import ConfigError
from aepo_lightning.tools.search.documents import QUERY_SCHEMA
from aepo_lightning.tools.search.hits import SearchHit, write_hits


@runtime_checkable
class SearchableIndex(Protocol):
    """What can be searched on this machine: a `CorpusIndex`, or a `PageIndex` of pages in memory."""

    digest: str
    """Names the content and the settings: an index that answers in another way has another one."""

    def search(self, query: str, max_results: int) -> list[SearchHit]:
        """Return the best results for a query, best first."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSearch:
    """Answer queries from an index on this machine, inline in the event loop: a query takes less than a millisecond.

    Attributes:
        index: What to search.
        name: The tag of the tool.
        max_results: Most results of one answer.
        max_snippet_chars: Longer texts are cut.
        style: As of `WebSearch`.
        not_found: The answer when nothing was found.
        limits: What a call may cost.
    """

    index: SearchableIndex
    name: str = "search"
    max_results: int = 5
    max_snippet_chars: int = 1000
    style: Literal["paper", "structured"] = "paper"
    not_found: str = "No search results found."
    limits: AnyLimits = field(default_factory=ToolLimits)

    def __post_init__(self) -> None:
        """Refuse settings without meaning."""
        for name in ("max_results", "max_snippet_chars"):
            if getattr(self, name) < 1:
                raise ConfigError(f"`{name}` must be at least 1, but got {getattr(self, name)}. Raise it.")
        if self.style not in ("paper", "structured"):
            raise ConfigError(f"`style` must be 'paper' or 'structured', but got {self.style!r}.")

    @property
    def spec(self) -> ToolSpec:
        """Name and schema: one query. Another corpus or style is another version for the cache."""
        return ToolSpec(
            name=self.name,
            description="Search the corpus and read the best passages.",
            parameters=QUERY_SCHEMA,
            text_parameter="query",
            empty_answer=self.not_found,
            version=repr((self.index.digest, self.max_results, self.max_snippet_chars, self.style)),
            limits=ToolLimits.of(self.limits),
        )

    async def __call__(self, arguments: Mapping[str, Any], context: ToolContext) -> str:
        """Answer one query.

        Args:
            arguments: The `query`.
            context: Not used.
        """
        del context
        hits = self.index.search(str(arguments["query"]), self.max_results)
        return write_hits(hits, self.style, self.max_snippet_chars)
