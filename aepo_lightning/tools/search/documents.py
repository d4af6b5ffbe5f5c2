"""A search tool over texts in memory: needs no network and gives the same answer to the same query every time."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aepo_lightning.contracts.tool import AnyLimits, ToolContext, ToolLimits, ToolSpec
from aepo_lightning.errors import ConfigError
from aepo_lightning.tools.search.official_results import split_snippets
from aepo_lightning.tools.search.snippets import SnippetIndex

_MAX_SNIPPET_CHARS = 1000  # as the official search tool
_DESCRIPTION = "Search for a query and read the best snippets."
QUERY_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {"query": {"type": "string", "description": "What to search for."}},
    "required": ["query"],
}
"""Schema of tools that take one query."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentSearch:
    """Answer a query from the documents of the question or, if it has none, from a shared corpus.

    Documents of a question are found by exact query only. The shared corpus answers an exact query with the stored text
    as it is; any other query gets the best snippets by BM25, one `Page i: snippet` per line, each cut to 1,000
    characters. The call runs inline in the event loop, so the order in which chains proceed does not depend on threads.
    The index is built at the first query that needs it.

    Attributes:
        name: The tag of the tool.
        documents: The shared corpus: stored result by query. One in the `Page i: ` format counts as several snippets.
        max_results: Most snippets of one answer.
        not_found: The answer when nothing matches. Stored results with this text are no snippets.
        limits: What a call may cost.

    Raises:
        ConfigError: If `max_results` is not positive or `not_found` is blank.

    References:
        Result format and limits of the official search tool of arXiv:2510.14545; the BM25 fall-back is ours.
    """

    name: str = "search"
    documents: Mapping[str, str] | None = None
    max_results: int = 10
    not_found: str = "No search results found."
    limits: AnyLimits = field(default_factory=ToolLimits)
    _index: SnippetIndex | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        """Refuse settings that have no meaning."""
        if self.max_results < 1:
            raise ConfigError(f"`max_results` must be at least 1, but got {self.max_results}. Raise it.")
        if not self.not_found.strip():
            raise ConfigError(f"`not_found` must not be blank, but got {self.not_found!r}. The model reads this text.")

    @property
    def spec(self) -> ToolSpec:
        """Name and schema: one query."""
        return ToolSpec(
            name=self.name,
            description=_DESCRIPTION,
            parameters=QUERY_SCHEMA,
            text_parameter="query",
            is_question_bound=True,
            limits=ToolLimits.of(self.limits),
        )

    async def __call__(self, arguments: Mapping[str, Any], context: ToolContext) -> str:
        """Answer one query.

        Args:
            arguments: The `query`.
            context: Whose question is searched for.

        Returns:
            The stored text, lines of snippets, or `not_found`.
        """
        query = str(arguments["query"]).strip()
        if context.question.documents:
            return context.question.documents.get(query, self.not_found)
        if not self.documents:
            return self.not_found
        if query in self.documents:
            return self.documents[query]
        snippets = self._built_index(self.documents).search(query, self.max_results)
        lines = [f"Page {number}: {snippet}" for number, snippet in enumerate(snippets, start=1)]
        return "\n".join(lines) or self.not_found

    def _built_index(self, documents: Mapping[str, str]) -> SnippetIndex:
        if self._index is None:
            results = (result for result in documents.values() if result.strip() != self.not_found.strip())
            snippets = (snippet[:_MAX_SNIPPET_CHARS] for result in results for snippet in split_snippets(result))
            object.__setattr__(self, "_index", SnippetIndex(snippets))
        assert self._index is not None, "the index was just built"
        return self._index
