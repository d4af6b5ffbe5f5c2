import pytest

from aepo_lightning.contracts.web_page import WebPage
from aepo_lightning.errors import ConfigError
from aepo_lightning.tools import IndexSearch, PageIndex, SearchableIndex


def page(number, title, text, **settings):
    return WebPage(url=f"http://x.example/{number}", title=title, text=text, **settings)


PAGES = [
    page(1, "Herons", "They wait at the river."),
    page(2, "Rivers", "Herons and herons and herons live there."),
    page(3, "Hidden", "Herons.", is_listed=False),
]


def urls(hits):
    return [hit.url for hit in hits]


def test_a_word_of_the_title_counts_more_and_what_is_not_listed_is_not_found():
    index = PageIndex(PAGES)
    assert isinstance(index, SearchableIndex)
    assert len(index) == 2
    assert urls(index.search("heron", 3)) == ["http://x.example/1", "http://x.example/2"]
    assert urls(index.search("heron", 1)) == ["http://x.example/1"]
    assert index.search("", 3) == index.search("?!", 3) == index.search("absent", 3) == []


def test_of_equal_pages_the_one_given_first_stands_first():
    pages = [page(number, "Same", "the same words") for number in range(20)]
    assert urls(PageIndex(pages).search("same", 20)) == [each.url for each in pages]
    assert urls(PageIndex(pages).search("same words", 3)) == [each.url for each in pages[:3]]


def test_results_show_the_beginning_of_a_page():
    (hit,) = PageIndex(PAGES, max_snippet_words=3).search("wait", 3)
    assert (hit.title, hit.snippet) == ("Herons", "They wait at ...")
    (hit,) = PageIndex(PAGES, max_snippet_words=5).search("wait", 3)
    assert hit.snippet == "They wait at the river."


def test_stop_words_count_where_there_are_no_others():
    pages = [page(1, "The Heron", "waits"), page(2, "The Bell", "rings")]
    assert urls(PageIndex(pages).search("the heron", 3)) == ["http://x.example/1"]
    assert len(PageIndex(pages).search("The", 3)) == 2


def test_words_of_the_query_language_have_no_meaning():
    index = PageIndex(PAGES)
    assert index.search("NOT heron AND (river)^5 title:x", 2) == index.search("heron river", 2)
    assert len(index.search("NOT heron", 2)) == 2


def test_other_pages_and_settings_are_another_version_of_the_tool():
    indices = [
        PageIndex(PAGES),
        PageIndex(PAGES, 5),
        PageIndex(PAGES[:1]),
        PageIndex([PAGES[0], page(2, "Rivers", "x")]),
    ]
    assert len({IndexSearch(index=index).spec.version for index in indices}) == 4
    assert PageIndex(PAGES).digest == PageIndex(PAGES).digest


@pytest.mark.parametrize(
    ("pages", "settings", "message"),
    [
        (PAGES, {"max_snippet_words": 0}, "`max_snippet_words` must be at least 1 or None, but got 0"),
        (PAGES[2:], {}, "`pages` must hold a page that is listed, but got 1 others"),
        ([], {}, "`pages` must hold a page that is listed, but got 0 others"),
    ],
)
def test_what_cannot_be_searched_is_refused(pages, settings, message):
    with pytest.raises(ConfigError, match=message):
        PageIndex(pages, **settings)
