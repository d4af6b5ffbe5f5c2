"""BM25 over a few texts: ranks a reader can check, and queries that are no query language."""

import math

import pytest

from aepo_lightning.tools import SnippetIndex

SNIPPETS = [
    "Paris is the capital of France",
    "Berlin is the capital of Germany",
    "France borders Germany and Spain, and France has coasts",
    "Cats sleep",
]


def reference_bm25(query, snippets):
    """BM25 with k1 = 1.2, b = 0.75, words as written; (score, position) of each match."""
    documents = [snippet.lower().replace(",", "").split() for snippet in snippets]
    mean_length = sum(map(len, documents)) / len(documents)
    scores = []
    for position, words in enumerate(documents):
        score = 0.0
        for term in query.lower().split():
            num_with = sum(term in other for other in documents)
            weight = math.log(1 + (len(documents) - num_with + 0.5) / (num_with + 0.5))
            count = words.count(term)
            score += weight * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * len(words) / mean_length))
        if score > 0:
            scores.append((-score, position))
    return [snippets[position] for _, position in sorted(scores)]


@pytest.mark.parametrize("query", ["france", "capital germany", "the capital of france", "spain berlin", "sleep"])
def test_order_equals_the_reference(query):
    # Stemming changes none of the query words' matches here, so the plain reference applies.
    assert SnippetIndex(SNIPPETS).search(query, 10) == reference_bm25(query, SNIPPETS)


def test_words_match_by_their_stem():
    assert SnippetIndex(SNIPPETS).search("cat sleeping", 10) == ["Cats sleep"]


@pytest.mark.parametrize(
    "query",
    [
        '"cats',
        "cats AND",
        "(cats",
        "-cats",
        "cats:x",
        "cats^",
        "cats*",
        "+cats !",
        "[cats TO",
        "cats\\",
        "/cats/",
        "NOT cats",
    ],
)
def test_operators_in_a_query_are_text(query):
    assert SnippetIndex(SNIPPETS).search(query, 1) == ["Cats sleep"]


@pytest.mark.parametrize("query", ["", " ", "?!", '"', "zebra", "\x00", "\ud800"], ids=repr)
def test_queries_without_a_match_find_nothing(query):
    assert SnippetIndex(SNIPPETS).search(query, 10) == []


def test_a_very_long_query_is_answered():
    assert SnippetIndex(SNIPPETS).search("sleep " + "zebra " * 5000, 10) == ["Cats sleep"]


def test_equal_snippets_count_once_and_ties_keep_the_order_given():
    snippets = [f"{name} sings" for name in ("ann", "bob", "cid", "bob", "dee")] + ["rest"] * 3
    index = SnippetIndex(snippets)
    assert len(index) == 5
    assert index.search("sings", 10) == ["ann sings", "bob sings", "cid sings", "dee sings"]


def test_no_more_results_than_asked_for():
    assert len(SnippetIndex(SNIPPETS).search("is the and", 2)) == 2


def test_an_empty_index_finds_nothing():
    assert SnippetIndex([]).search("x", 10) == []
