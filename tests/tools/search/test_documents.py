"""The search tool: which corpus answers, how, and without a thread."""

import asyncio
import threading

import pytest

from aepo_lightning.contracts.question import Question
from aepo_lightning.contracts.tool import Tool, ToolContext
from aepo_lightning.tools import DocumentSearch, load_search_cache
from tests.support.paths import DATA_DIR

OFFICIAL = DATA_DIR / "search_cache.json"
DOCUMENTS = {
    "capital of france": "Page 1: Paris is the capital of France\nPage 2: Paris lies on the Seine",
    "river of paris": "Page 1: Paris lies on the Seine\nPage 2: The Seine is long",
    "plain": "Lyon lies on the Rhone",
    "nothing": "No search results found.",
}


def ask(search, query, documents=None):
    question = Question(question_id="q", messages=(), answers=("x",), documents=documents or {})
    return asyncio.run(search({"query": query}, ToolContext(question=question, call_index=0)))


def test_a_question_with_documents_searches_only_them():
    search = DocumentSearch(documents=DOCUMENTS)
    own = {"clue 1": "go to\nclue 2"}
    assert ask(search, " clue 1 ", own) == "go to\nclue 2"
    assert ask(search, "clue", own) == "No search results found."
    assert ask(search, "capital of france", own) == "No search results found."


@pytest.mark.parametrize("query", DOCUMENTS)
def test_an_exact_query_gets_the_stored_text(query):
    assert ask(DocumentSearch(documents=DOCUMENTS), f"\n{query} ") == DOCUMENTS[query]


def test_another_query_gets_unique_numbered_snippets():
    # "seine": 2 of the 4 different snippets hold it; of equal count the shorter one ranks first.
    assert (
        ask(DocumentSearch(documents=DOCUMENTS), "Seine?")
        == "Page 1: The Seine is long\nPage 2: Paris lies on the Seine"
    )


def test_results_are_limited_in_number_and_length():
    documents = {f"q{i}": f"Page 1: word{i} common " + "x" * 2000 for i in range(12)}
    lines = ask(DocumentSearch(documents=documents), "common").split("\n")
    assert len(lines) == 10
    assert all(len(line.split(": ", 1)[1]) == 1000 for line in lines)
    assert ask(DocumentSearch(documents=documents, max_results=1), "common").count("\n") == 0


@pytest.mark.parametrize("query", ["zebra", "?!", "found", "results"])
def test_nothing_found_is_said_and_is_no_snippet(query):
    assert ask(DocumentSearch(documents=DOCUMENTS), query) == "No search results found."


@pytest.mark.parametrize("documents", [None, {}], ids=["none", "empty"])
def test_without_a_corpus_nothing_is_found(documents):
    assert ask(DocumentSearch(documents=documents, not_found="nothing"), "x") == "nothing"


def test_a_query_is_answered_without_yielding_or_threads():
    search = DocumentSearch(documents=DOCUMENTS)
    question = Question(question_id="q", messages=(), answers=("x",))
    ask(search, "seine")  # builds the index, which may start threads of its own
    before = threading.active_count()
    coroutine = search({"query": "seine"}, ToolContext(question=question, call_index=0))
    with pytest.raises(StopIteration, match="Seine"):
        coroutine.send(None)
    assert threading.active_count() == before


def test_it_is_a_tool():
    assert isinstance(DocumentSearch(name="lookup"), Tool)


@pytest.mark.parametrize(
    "settings, message",
    [({"max_results": 0}, "`max_results` must be at least 1"), ({"not_found": " "}, "`not_found` must not be blank")],
    ids=["no-results", "blank"],
)
def test_settings_without_meaning_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DocumentSearch(**settings)


@pytest.mark.skipif(not OFFICIAL.is_file(), reason="search_cache.json is not there; set AEPO_DATA_DIR to its folder")
def test_the_official_results_answer_exact_and_other_queries():
    cache = load_search_cache(OFFICIAL)
    search = DocumentSearch(documents=cache)
    exact = "Amy Smart film debut Campfire Tales"
    assert ask(search, exact) == cache[exact]
    lines = ask(search, "In which movie, (Campfire Tales?) did Amy Smart debut").split("\n")
    assert len(lines) == 10
    assert all("Campfire Tales" in line or "Amy Smart" in line for line in lines[:5])
