"""BM25 over short texts, in memory and without threads at query time."""

from collections.abc import Iterable
from typing import Any
from unicodedata import category

import tantivy

_FIELD = "snippet"
_POSITION = "position"
# A policy may write thousands of words into one query; the tool answers inside the event loop and must stay short.
_MAX_QUERY_WORDS = 100


class SnippetIndex:
    """Ranks a fixed list of snippets by BM25 with English stemming.

    Args:
        snippets: The texts. Equal ones are kept once.
    """

    def __init__(self, snippets: Iterable[str]) -> None:
        self._snippets = list(dict.fromkeys(snippets))
        self._index = self._build()

    def __len__(self) -> int:
        """Return the number of different snippets."""
        return len(self._snippets)

    def search(self, query: str, max_results: int) -> list[str]:
        """Return the best snippets that share at least one word with a query.

        Args:
            query: Free text. Only its letters and digits count, and of these its first 100 words.
            max_results: Upper bound on the number of snippets.

        Returns:
            Snippets by falling score; of equal scores the one given first stands first. Empty if nothing matches.
        """
        words = plain_words(query)
        if not words:
            return []
        parsed, _ = self._index.parse_query_lenient(" ".join(words), [_FIELD])
        searcher = self._index.searcher()
        hits = searcher.search(parsed, limit=max_results, count=False).hits
        ranked = sorted((-score, searcher.doc(address)[_POSITION][0]) for score, address in hits)
        return [self._snippets[position] for _, position in ranked]

    def _build(self) -> Any:
        builder = tantivy.SchemaBuilder()
        builder.add_text_field(_FIELD, tokenizer_name="en_stem")
        builder.add_unsigned_field(_POSITION, stored=True)
        index = tantivy.Index(builder.build())
        # One writer thread: the order of the documents, hence of ties, is then the order given.
        writer = index.writer(num_threads=1)
        for position, snippet in enumerate(self._snippets):
            document = tantivy.Document()
            document.add_text(_FIELD, snippet)
            document.add_unsigned(_POSITION, position)
            writer.add_document(document)
        writer.commit()
        writer.wait_merging_threads()
        index.reload()
        return index


def plain_words(query: str) -> list[str]:
    """Return the words of a query without anything that the query language gives a meaning to.

    That is punctuation, and AND, OR, NOT, IN and TO in upper case.
    """
    # Marks, such as the vowel signs of Hindi, belong to their word.
    plain = "".join(each if each.isalnum() or category(each).startswith("M") else " " for each in query.lower())
    return plain.split()[:_MAX_QUERY_WORDS]
