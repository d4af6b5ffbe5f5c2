import re

import pytest

from aepo_lightning.tasks import DeepSearchWorld, deep_search_pages
from aepo_lightning.tasks.deep_search.pages import first_sentences, write_pages
from aepo_lightning.tasks.deep_search.world import draw_world
from tests.support.deep_search_parts import small_world, tools_of

URL = re.compile(r"http://[\w.]+/\d+")
WORLD = small_world()


def linked(pages):
    return {url for page in pages for url in URL.findall(page.text)}


def test_pages_are_short():
    lengths = [len(page.text.split()) for page in deep_search_pages(WORLD)]
    assert min(lengths) >= 40
    assert max(lengths) <= 80


@pytest.mark.slow
def test_the_default_world_has_a_few_thousand_pages_with_an_address_each():
    pages = deep_search_pages(DeepSearchWorld())
    assert 2500 < len(pages) < 4000
    assert len({page.url for page in pages}) == len(pages)


def test_a_beginning_of_25_words_tells_what_the_first_sentence_tells_and_nothing_else():
    written = write_pages(WORLD)
    for number, url in written.record.items():
        page = written.by_url[url]
        words = page.text.split()
        assert len(first_sentences(page).split()) <= 25
        told_later = re.search(r"born in \d|year of birth|inhabitants|belongs to the|counts|http", " ".join(words[:25]))
        assert told_later is None, (number, page.text)


@pytest.mark.parametrize(
    "world", [WORLD, pytest.param(DeepSearchWorld(), marks=pytest.mark.slow)], ids=["small", "default"]
)
def test_a_search_for_a_name_shows_every_listed_page_about_it(world):
    written, search = write_pages(world), tools_of(world)[0]
    by_name = {}
    for thing in draw_world(world).things:
        by_name.setdefault(thing.name, []).extend(written.listed[thing.number])
    for name, urls in by_name.items():
        assert {hit.url for hit in search.index.search(name, 3)} >= set(urls), name


def test_some_pages_are_reached_by_links_only_and_some_links_lead_nowhere():
    pages = deep_search_pages(WORLD)
    by_url = {page.url: page for page in pages}
    hidden = {page.url for page in pages if not page.is_listed}
    dead = linked(pages) - set(by_url)
    assert len(hidden) > 80
    assert hidden <= linked(page for page in pages if page.is_listed)
    assert len(dead) > 20


def test_records_say_which_of_them_counts():
    written = write_pages(WORLD)
    replaced = [page for page in written.pages if "A later record replaces this one." in page.text]
    assert len(replaced) > 30
    for page in replaced:
        same = [each for each in written.pages if each.title == page.title and each.text.startswith("Record of ")]
        latest = max(same, key=lambda each: each.text.split()[2])
        assert latest is not page
        assert f"This record replaces that of {page.text.split()[2]}" in latest.text
    doubtful = [page for page in written.pages if page.text.startswith("Unconfirmed report.")]
    assert len(doubtful) > 30
    assert all("Where a record says otherwise, the record counts." in page.text for page in doubtful)


def test_old_and_doubtful_pages_contradict_the_record():
    written = write_pages(WORLD)
    for urls in written.listed.values():
        record = first_sentences(written.by_url[urls[0]]).partition(". ")[2]
        for page in (written.by_url[url] for url in urls[1:]):
            names = [
                set(re.findall(r"[A-Z]\w+|\d+", first)) for first in (record, first_sentences(page).partition(". ")[2])
            ]
            if not page.text.startswith("Copy"):
                assert names[0] - {"The"} != names[1] - {"The"}, page.text


def test_without_clutter_there_is_one_page_for_a_name_and_no_dead_link():
    pages = deep_search_pages(small_world(clutter=0.0))
    listed = [page.title for page in pages if page.is_listed]
    assert len(listed) == len(set(listed)) == 200
    assert linked(pages) <= {page.url for page in pages}
