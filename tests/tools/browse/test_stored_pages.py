import asyncio

import pytest

from aepo_lightning.contracts.tool import ToolCall, ToolStatus
from aepo_lightning.contracts.web_page import WebPage
from aepo_lightning.errors import ConfigError, ToolError
from aepo_lightning.rollout.description import describe
from aepo_lightning.tools import Browse, Extractor, Fetcher, Page, PageFetcher, PlainText, StoredPages, ToolRuntime
from tests.support.tool_parts import make_context

PAGES = [
    WebPage(url="http://x.example/1", title="One", text="A caf\u00e9."),
    WebPage(url="http://x.example/2", title="Two", text="Hidden.", is_listed=False),
]


def browse(url, **settings):
    tool = Browse(fetcher=StoredPages(PAGES), extractor=PlainText(), **settings)
    runtime = ToolRuntime(tools=[tool])

    async def call():
        try:
            return await runtime.call(ToolCall(tool="browse", text=url), make_context())
        finally:
            await runtime.close()

    return asyncio.run(call())


def test_pages_of_memory_are_read_as_pages_of_the_web_are():
    assert isinstance(StoredPages(PAGES), Fetcher)
    assert isinstance(PageFetcher(), Fetcher)
    assert isinstance(PlainText(), Extractor)
    assert browse(" http://x.example/1 ").text == "A caf\u00e9."
    assert browse("http://x.example/2").text == "Hidden."
    assert browse("http://x.example/1", max_chars=3).text == "A c\n[the page goes on]"


@pytest.mark.parametrize("url", ["http://x.example/3", "x.example/1", "http://127.0.0.1/"])
def test_other_addresses_are_not_there(url):
    answered = browse(url)
    assert answered.status is ToolStatus.ERROR
    assert answered.text == "Error: Tool(browse) failed: the server answered with status 404."


def test_other_pages_are_another_version_for_caches_and_for_saved_trees():
    tools = [Browse(fetcher=StoredPages(pages), extractor=PlainText()) for pages in (PAGES, PAGES[:1], PAGES)]
    assert tools[0].spec.version == tools[2].spec.version != tools[1].spec.version != Browse().spec.version
    assert describe(tools[0]) == describe(tools[2]) != describe(tools[1])


def test_the_version_of_the_internet_is_that_of_its_settings():
    assert Browse(max_chars=10).spec.version == "(None, 10)"


def test_two_pages_of_one_address_are_refused():
    with pytest.raises(ConfigError, match="`pages` must have an address each, but got 3 pages with 2 addresses"):
        StoredPages([*PAGES, PAGES[0]])


def test_plain_text_reads_text_only():
    with pytest.raises(ToolError, match="pages of the kind pdf cannot be read"):
        asyncio.run(PlainText()(Page(url="x", kind="pdf", content=b"%PDF")))
