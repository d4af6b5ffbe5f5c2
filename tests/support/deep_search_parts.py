"""A small deep-search world with its tools."""

from functools import lru_cache

from aepo_lightning.tasks import DeepSearchTask, DeepSearchWorld, deep_search_pages
from aepo_lightning.tools import Browse, IndexSearch, PageIndex, PlainText, StoredPages
from tests.support.deep_search_reader import Library


def small_world(seed=0, **settings):
    return DeepSearchWorld(seed=seed, num_things=200, val_share=0.5, **settings)


@lru_cache(maxsize=4)
def tools_of(world):
    """Return search and browse as conf/tools/deep_search.yaml builds them."""
    pages = deep_search_pages(world)
    search = IndexSearch(index=PageIndex(pages, max_snippet_words=25), max_results=3, style="structured")
    return search, Browse(fetcher=StoredPages(pages), extractor=PlainText())


def task_with_tools(world, **settings):
    search, browse = tools_of(world)
    return DeepSearchTask(world=world, search=search, browse=browse, **settings)


def read_all(world):
    """Return what all pages of a world tell."""
    library = Library()
    for page in deep_search_pages(world):
        library.read(page.text)
    return library.settle()
