"""Search over pages in memory, which is built in a moment and needs no folder."""

from collections.abc import Sequence
from typing import Any

import tantivy

from aepo_lightning.contracts.web_page import WebPage, pages_digest
from aepo_lightning.errors import ConfigError
from aepo_lightning.tools.search.hits import SearchHit
from aepo_lightning.tools.search.snippets import plain_words

_TITLE, _TEXT, _POSITION = "title", "text", "position"
_TITLE_BOOST = 3.0
_STOP_WORDS = frozenset(
    (
        *("a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is", "it", "no", "not"),
        *("of", "on", "or", "such", "that", "the", "their", "then", "there", "these", "they", "this", "to", "was"),
        *("will", "with"),
    )
)
"""Those that Lucene's English analyser leaves out."""


class PageIndex:
    """Ranks pages by BM25 with English stemming; a word in the title counts three times as much as one in the text."""

    def __init__(self, pages: Sequence[WebPage], max_snippet_words: int | None = None) -> None:
        """Index pages.

        Args:
            pages: Those that are not listed are left out.
            max_snippet_words: Results show so many words from the beginning of a page. None shows all.

        Raises:
            ConfigError: If the number is not positive, or no page is listed.
        """
        if max_snippet_words is not None and max_snippet_words < 1:
            raise ConfigError(f"`max_snippet_words` must be at least 1 or None, but got {max_snippet_words}. Raise it.")
        self._pages = [page for page in pages if page.is_listed]
        if not self._pages:
            raise ConfigError(f"`pages` must hold a page that is listed, but got {len(pages)} others. Add one.")
        self._max_snippet_words = max_snippet_words
        self.digest = f"{max_snippet_words}/{pages_digest(self._pages)}"
        """Names pages and setting: others have another one."""
        self._index = self._build()

    def __len__(self) -> int:
        """Return the number of listed pages."""
        return len(self._pages)

    def search(self, query: str, max_results: int) -> list[SearchHit]:
        """Return the pages that share at least one word with a query, best first.

        Args:
            query: Free text. Only its letters and digits count, and of these its first 100 words. Stop words such as
                `the` count where there are no others.
            max_results: Upper bound on the number of pages.

        Returns:
            Pages by falling score; of equal scores the one given first stands first.
        """
        words = plain_words(query)
        words = [word for word in words if word not in _STOP_WORDS] or words
        if not words:
            return []
        parsed, _ = self._index.parse_query_lenient(
            " ".join(words), [_TEXT, _TITLE], field_boosts={_TITLE: _TITLE_BOOST}
        )
        searcher = self._index.searcher()
        hits = searcher.search(parsed, max_results, count=False).hits
        ranked = sorted((-score, searcher.doc(address)[_POSITION][0]) for score, address in hits)
        return [self._hit(self._pages[position]) for _, position in ranked]

    def _hit(self, page: WebPage) -> SearchHit:
        words = page.text.split()
        is_cut = self._max_snippet_words is not None and len(words) > self._max_snippet_words
        snippet = " ".join(words[: self._max_snippet_words]) + " ..." if is_cut else page.text
        return SearchHit(snippet=snippet, title=page.title, url=page.url)

    def _build(self) -> Any:
        builder = tantivy.SchemaBuilder()
        builder.add_text_field(_TEXT, tokenizer_name="en_stem")
        builder.add_text_field(_TITLE, tokenizer_name="en_stem")
        builder.add_unsigned_field(_POSITION, stored=True)
        index = tantivy.Index(builder.build())
        # One writer thread: the order of the documents, hence of ties, is then the order given.
        writer = index.writer(num_threads=1)
        for position, page in enumerate(self._pages):
            document = tantivy.Document()
            document.add_text(_TEXT, page.text)
            document.add_text(_TITLE, page.title)
            document.add_unsigned(_POSITION, position)
            writer.add_document(document)
        writer.commit()
        writer.wait_merging_threads()
        index.reload()
        return index
