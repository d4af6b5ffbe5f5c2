"""Stored search results: reading, splitting, and what is wrong with a bad file."""

import re

import pytest

from aepo_lightning.errors import DataError
from aepo_lightning.tools import load_search_cache, split_snippets
from tests.support.paths import DATA_DIR

OFFICIAL = DATA_DIR / "search_cache.json"


def test_queries_and_results_are_read_as_they_are(tmp_path):
    path = tmp_path / "cache.json"
    path.write_text('{"who?": "Page 1: Ann\\nPage 2: B\\u00e9a", "none": "No search results found."}', encoding="utf-8")
    assert load_search_cache(path) == {"who?": "Page 1: Ann\nPage 2: Béa", "none": "No search results found."}
    assert load_search_cache(str(path)) == load_search_cache(path)


@pytest.mark.parametrize(
    "content, message",
    [
        pytest.param(b"{", "must be UTF-8 JSON", id="cut-off"),
        pytest.param(b"", "must be UTF-8 JSON", id="empty"),
        pytest.param(b'{"a": "\xff"}', "must be UTF-8 JSON", id="not-utf-8"),
        pytest.param(b'["a"]', "must hold one JSON object .* but got list", id="list"),
        pytest.param(b'{"a": "x", "b q": null}', "result of key 'b q' must be text, but got NoneType", id="null"),
        pytest.param(b'{"a": ["x"]}', "result of key 'a' must be text, but got list", id="list-of-pages"),
    ],
)
def test_a_bad_file_is_named_with_its_key(tmp_path, content, message):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{re.escape(str(path))}.*{message}"):
        load_search_cache(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"must be a readable file, but got .*gone\.json"):
        load_search_cache(tmp_path / "gone.json")


@pytest.mark.parametrize(
    "result, snippets",
    [
        pytest.param("Page 1: a b\nPage 2: c", ["a b", "c"], id="pages"),
        pytest.param("Page 1: a\n b\nPage 10: c\n", ["a b", "c"], id="line-break-inside"),
        pytest.param("Page 1: see Page 2: there", ["see Page 2: there"], id="label-inside-a-line"),
        pytest.param("Page 1: \nPage 2: c", ["c"], id="blank-page"),
        pytest.param("just text", ["just text"], id="no-labels"),
        pytest.param(" \n", [], id="blank"),
    ],
)
def test_results_split_at_their_labels(result, snippets):
    assert split_snippets(result) == snippets


@pytest.mark.skipif(not OFFICIAL.is_file(), reason="search_cache.json is not there; set AEPO_DATA_DIR to its folder")
def test_the_official_file_is_read_whole():
    cache = load_search_cache(OFFICIAL)
    assert len(cache) == 1000
    # Counted apart from this code: 8,373 `Page i: ` labels, and 4 results without any.
    assert sum(len(split_snippets(result)) for result in cache.values()) == 8373 + 4
