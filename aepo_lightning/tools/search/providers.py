"""Where search results come from: how each provider is asked, and what its answer means."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable
from urllib.parse import quote_plus

from aepo_lightning.errors import ConfigError, ToolUnavailableError
from aepo_lightning.tools.http_client import HttpRequest
from aepo_lightning.tools.search.hits import SearchHit


@runtime_checkable
class SearchProvider(Protocol):
    """Knows how to ask one kind of server."""

    def request(self, query: str, max_results: int) -> HttpRequest:
        """Return what to send."""
        ...

    def read(self, answer: Any) -> list[SearchHit]:
        """Return the results of an answer, best first.

        Raises:
            ToolUnavailableError: If the answer has another shape than this provider's.
        """
        ...


_SIGNS_OF_FAILURE = ("error", "errors", "error_code", "detail", "message")


def _entries(answer: Any, *path: str) -> list[Mapping[str, Any]]:
    """Return the list of objects below some keys. A provider that found nothing leaves the keys out."""
    if isinstance(answer, dict) and path[0] not in answer and any(answer.get(sign) for sign in _SIGNS_OF_FAILURE):
        # Its text may repeat the key, so it is not passed on.
        raise ToolUnavailableError("the search provider answered with an error instead of results.")
    for key in path:
        if not isinstance(answer, dict):
            raise ToolUnavailableError("the search provider answered in an unknown shape.")
        answer = answer.get(key, [] if key == path[-1] else {})
    if not isinstance(answer, list) or not all(isinstance(entry, dict) for entry in answer):
        raise ToolUnavailableError("the search provider answered in an unknown shape.")
    return answer


def _hit(entry: Mapping[str, Any], snippet: str, title: str = "title", url: str = "url") -> SearchHit:
    return SearchHit(
        snippet=str(entry.get(snippet) or ""), title=str(entry.get(title) or ""), url=str(entry.get(url) or "")
    )


def _check_key(key: str, name: str) -> None:
    if not key.strip():
        raise ConfigError(f"`api_key` of {name} must not be empty. Set the environment variable that the config reads.")
    if not (key.isascii() and key.isprintable()) or key != key.strip():
        raise ConfigError(
            f"`api_key` of {name} must be printable ASCII without white space around it. Look for a line break at its "
            "end, and set it again."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Serper:
    """Google results by serper.dev."""

    api_key: str = field(repr=False)
    country: str = "us"
    language: str = "en"
    url: str = "https://google.serper.dev/search"

    def __post_init__(self) -> None:
        """Refuse an empty key."""
        _check_key(self.api_key, "Serper")

    def request(self, query: str, max_results: int) -> HttpRequest:
        """Return what to send."""
        body = {"q": query, "num": max_results, "gl": self.country, "hl": self.language}
        return HttpRequest(url=self.url, method="POST", headers={"X-API-KEY": self.api_key}, body=body)

    def read(self, answer: Any) -> list[SearchHit]:
        """Return the organic results."""
        return [_hit(entry, "snippet", url="link") for entry in _entries(answer, "organic")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tavily:
    """Results by tavily.com."""

    api_key: str = field(repr=False)
    search_depth: str = "basic"
    url: str = "https://api.tavily.com/search"

    def __post_init__(self) -> None:
        """Refuse an empty key."""
        _check_key(self.api_key, "Tavily")

    def request(self, query: str, max_results: int) -> HttpRequest:
        """Return what to send. The provider takes at most 400 characters and 20 results."""
        body = {"query": query[:400], "max_results": min(max_results, 20), "search_depth": self.search_depth}
        return HttpRequest(url=self.url, method="POST", headers={"Authorization": f"Bearer {self.api_key}"}, body=body)

    def read(self, answer: Any) -> list[SearchHit]:
        """Return the results."""
        return [_hit(entry, "content") for entry in _entries(answer, "results")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Brave:
    """Results by the Brave search API."""

    api_key: str = field(repr=False)
    country: str = "us"
    url: str = "https://api.search.brave.com/res/v1/web/search"

    def __post_init__(self) -> None:
        """Refuse an empty key."""
        _check_key(self.api_key, "Brave")

    def request(self, query: str, max_results: int) -> HttpRequest:
        """Return what to send. The provider takes at most 400 characters, 50 words and 20 results."""
        params = {
            "q": " ".join(query.split()[:50])[:400],
            "count": str(min(max_results, 20)),
            "country": self.country,
            "text_decorations": "false",  # no `<strong>` around the words of the query
        }
        headers = {"X-Subscription-Token": self.api_key, "Accept": "application/json"}
        return HttpRequest(url=self.url, headers=headers, params=params)

    def read(self, answer: Any) -> list[SearchHit]:
        """Return the web results."""
        return [_hit(entry, "description") for entry in _entries(answer, "web", "results")]


@dataclass(frozen=True, slots=True, kw_only=True)
class BrightDataBing:
    """Bing results through Bright Data, the provider of the released code."""

    api_key: str = field(repr=False)
    zone: str
    market: str = "en-US"
    url: str = "https://api.brightdata.com/request"

    def __post_init__(self) -> None:
        """Refuse an empty key."""
        _check_key(self.api_key, "BrightDataBing")

    def request(self, query: str, max_results: int) -> HttpRequest:
        """Return what to send."""
        page = f"https://www.bing.com/search?q={quote_plus(query)}&mkt={self.market}&count={max_results}&brd_json=1"
        body = {"zone": self.zone, "url": page, "format": "raw"}
        return HttpRequest(url=self.url, method="POST", headers={"Authorization": f"Bearer {self.api_key}"}, body=body)

    def read(self, answer: Any) -> list[SearchHit]:
        """Return the organic results."""
        return [_hit(entry, "description", url="link") for entry in _entries(answer, "organic")]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearXNG:
    """Results by a SearXNG server of one's own, with JSON among its formats."""

    url: str
    """Of the server, such as http://127.0.0.1:8888."""
    language: str = "en"

    def request(self, query: str, max_results: int) -> HttpRequest:
        """Return what to send. The server decides how many results a page has."""
        del max_results
        params = {"q": query, "format": "json", "language": self.language}
        return HttpRequest(url=f"{self.url.rstrip('/')}/search", params=params)

    def read(self, answer: Any) -> list[SearchHit]:
        """Return the results. None at all while an engine did not answer is a failure, not an answer."""
        found = _entries(answer, "results")
        if not found and answer.get("unresponsive_engines"):
            raise ToolUnavailableError("the engines behind the search server did not answer.")
        return [_hit(entry, "content") for entry in found]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retriever:
    """Passages by a retrieval server with the protocol of Search-R1 (`POST /retrieve`)."""

    url: str
    """Of the server, such as http://127.0.0.1:8000."""

    def request(self, query: str, max_results: int) -> HttpRequest:
        """Return what to send."""
        body = {"queries": [query], "topk": max_results, "return_scores": True}
        return HttpRequest(url=f"{self.url.rstrip('/')}/retrieve", method="POST", body=body)

    def read(self, answer: Any) -> list[SearchHit]:
        """Return the passages of the one query. The first line of a passage is its title."""
        found = answer.get("result") if isinstance(answer, dict) else None
        if not isinstance(found, list) or len(found) != 1:
            raise ToolUnavailableError("the search provider answered in an unknown shape.")
        hits = []
        for entry in _entries({"passages": found[0]}, "passages"):
            document = entry.get("document", entry)
            contents = document.get("contents", "") if isinstance(document, dict) else str(document)
            title, _, text = str(contents).partition("\n")
            hits.append(SearchHit(snippet=text.strip() or title, title=title.strip('" ') if text else ""))
        return hits
