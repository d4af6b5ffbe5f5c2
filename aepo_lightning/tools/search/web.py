"""The search tool over a provider."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from aepo_lightning.contracts.tool import AnyLimits, RetryPolicy, ToolContext, ToolLimits, ToolSpec
from aepo_lightning.errors import ConfigError, ToolUnavailableError
from aepo_lightning.tools.http_client import JsonClient
from aepo_lightning.tools.search.documents import QUERY_SCHEMA
from aepo_lightning.tools.search.hits import write_hits
from aepo_lightning.tools.search.providers import SearchProvider

_DEFAULT_LIMITS = ToolLimits(
    deadline_s=30.0,
    retry=RetryPolicy(max_attempts=3),
    breaker_failures=10,
    is_single_flight=True,
    cache_ttl_s=None,
    cache_empty_ttl_s=600.0,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSearch:
    """Answer queries with the results of a provider.

    Attributes:
        provider: Whom to ask.
        name: The tag of the tool.
        max_results: Most results of one answer.
        max_snippet_chars: Longer snippets are cut.
        style: `paper` is one `Page i: snippet` per line, as the released code writes results; `structured` has titles
            and addresses too.
        not_found: The answer when nothing was found.
        request_timeout_s: For one attempt.
        limits: What a call may cost. Default: 30 s with three attempts, equal queries at the same time asked once,
            answers kept for ever and empty ones for ten minutes where the runtime has a cache.

    Raises:
        ConfigError: If a number is not positive or the style is unknown.
    """

    provider: SearchProvider
    name: str = "search"
    max_results: int = 10
    max_snippet_chars: int = 1000
    style: Literal["paper", "structured"] = "paper"
    not_found: str = "No search results found."
    request_timeout_s: float = 20.0
    limits: AnyLimits = _DEFAULT_LIMITS
    _client: JsonClient = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse settings without meaning."""
        for name in ("max_results", "max_snippet_chars", "request_timeout_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"`{name}` must be positive, but got {getattr(self, name)}.")
        if self.style not in ("paper", "structured"):
            raise ConfigError(f"`style` must be 'paper' or 'structured', but got {self.style!r}.")
        object.__setattr__(self, "_client", JsonClient(timeout_s=self.request_timeout_s))

    @property
    def spec(self) -> ToolSpec:
        """Name and schema: one query. Another provider or style is another version for the cache."""
        settings = (
            type(self.provider).__name__,
            repr(self.provider),
            self.max_results,
            self.max_snippet_chars,
            self.style,
        )
        return ToolSpec(
            name=self.name,
            description="Search the web and read the best snippets.",
            parameters=QUERY_SCHEMA,
            text_parameter="query",
            version=repr(settings),
            empty_answer=self.not_found,
            limits=ToolLimits.of(self.limits),
            provider=repr(self.provider),
        )

    async def __call__(self, arguments: Mapping[str, Any], context: ToolContext) -> str:
        """Answer one query.

        Args:
            arguments: The `query`.
            context: Not used: every question gets the same answer.

        Raises:
            ToolUnavailableError: If the provider failed.
            ToolError: If the provider did not take the query.
        """
        del context
        # Half a surrogate pair, which JSON can write, fits into no address.
        query = " ".join(str(arguments["query"]).encode("utf-8", "replace").decode().split())
        if not query:
            return ""
        answer = await self._client.send(self.provider.request(query, self.max_results))
        try:
            hits = self.provider.read(answer)
        except (KeyError, TypeError, AttributeError) as error:
            raise ToolUnavailableError("the search provider answered in an unknown shape.") from error
        hits = [hit for hit in hits if hit.snippet.strip()][: self.max_results]
        return write_hits(hits, self.style, self.max_snippet_chars)

    async def close(self) -> None:
        """Close the connections of the running event loop."""
        await self._client.close()
