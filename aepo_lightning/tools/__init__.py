"""What the policy may call while it answers.

runtime/     `ToolRuntime`: runs calls within their limits; failures become observations. Its parts: arguments,
             admission, attempts, outages, single flight, states of chains, watch of the loop, cache
search/      documents and pages in memory, a corpus on disk, the web and its providers
browse/      pages of the public internet, or of memory, as text, or what a model says about them
mcp/         tools of MCP servers, over sessions that stay open
python.py    `PythonTool`: model-written code behind the best wall there is
jail/        the pool behind it: bubblewrap, a sandbox server, or none if that is written out
functions/   `@tool`: a Python function as a tool, called in a process of its own
http_client.py  requests and JSON answers, every failure named

Every tool answers with text. Nothing here knows of engines, tokens or rewards. A name is imported when
it is first used.
"""

from typing import TYPE_CHECKING

from aepo_lightning.lazy_names import homes as _homes
from aepo_lightning.lazy_names import importer as _importer

if TYPE_CHECKING:
    from aepo_lightning.errors import ToolTimeoutError
    from aepo_lightning.tools.browse.extraction import Extractor, JailedExtractor
    from aepo_lightning.tools.browse.page_fetcher import Fetcher, Page, PageFetcher
    from aepo_lightning.tools.browse.stored_pages import PlainText, StoredPages
    from aepo_lightning.tools.browse.tool import Browse, PageSummary
    from aepo_lightning.tools.functions.tool import FunctionTool, function_tool, tool
    from aepo_lightning.tools.mcp.server import MCPServer
    from aepo_lightning.tools.mcp.tool import MCPTool, mcp_tools
    from aepo_lightning.tools.python import PythonTool
    from aepo_lightning.tools.runtime.cache import ToolCache
    from aepo_lightning.tools.runtime.runtime import ToolRuntime
    from aepo_lightning.tools.runtime.sqlite_cache import SQLiteCache, import_official_cache
    from aepo_lightning.tools.search.documents import DocumentSearch
    from aepo_lightning.tools.search.hits import SearchHit
    from aepo_lightning.tools.search.index import CorpusFields, CorpusIndex
    from aepo_lightning.tools.search.index_search import IndexSearch, SearchableIndex
    from aepo_lightning.tools.search.official_results import load_search_cache, split_snippets
    from aepo_lightning.tools.search.page_index import PageIndex
    from aepo_lightning.tools.search.providers import (
        Brave,
        BrightDataBing,
        Retriever,
        SearchProvider,
        SearXNG,
        Serper,
        Tavily,
    )
    from aepo_lightning.tools.search.snippets import SnippetIndex
    from aepo_lightning.tools.search.web import WebSearch

_PLACES = {
    "errors": "ToolTimeoutError",
    "tools.browse.extraction": "Extractor JailedExtractor",
    "tools.browse.page_fetcher": "Fetcher Page PageFetcher",
    "tools.browse.stored_pages": "PlainText StoredPages",
    "tools.browse.tool": "Browse PageSummary",
    "tools.functions.tool": "FunctionTool function_tool tool",
    "tools.mcp.server": "MCPServer",
    "tools.mcp.tool": "MCPTool mcp_tools",
    "tools.python": "PythonTool",
    "tools.runtime.cache": "ToolCache",
    "tools.runtime.runtime": "ToolRuntime",
    "tools.runtime.sqlite_cache": "SQLiteCache import_official_cache",
    "tools.search.documents": "DocumentSearch",
    "tools.search.hits": "SearchHit",
    "tools.search.index": "CorpusFields CorpusIndex",
    "tools.search.index_search": "IndexSearch SearchableIndex",
    "tools.search.page_index": "PageIndex",
    "tools.search.official_results": "load_search_cache split_snippets",
    "tools.search.providers": "Brave BrightDataBing Retriever SearchProvider SearXNG Serper Tavily",
    "tools.search.snippets": "SnippetIndex",
    "tools.search.web": "WebSearch",
}
_HOMES = _homes(_PLACES)
__getattr__ = _importer(__name__, "aepo_lightning", _HOMES, globals())


def __dir__() -> list[str]:
    """Return the public names."""
    return [*_HOMES]


__all__ = [
    "Brave",
    "BrightDataBing",
    "Browse",
    "CorpusFields",
    "CorpusIndex",
    "DocumentSearch",
    "Extractor",
    "Fetcher",
    "FunctionTool",
    "IndexSearch",
    "JailedExtractor",
    "MCPServer",
    "MCPTool",
    "Page",
    "PageFetcher",
    "PageIndex",
    "PageSummary",
    "PlainText",
    "PythonTool",
    "Retriever",
    "SQLiteCache",
    "SearXNG",
    "SearchHit",
    "SearchProvider",
    "SearchableIndex",
    "Serper",
    "SnippetIndex",
    "StoredPages",
    "Tavily",
    "ToolCache",
    "ToolRuntime",
    "ToolTimeoutError",
    "WebSearch",
    "function_tool",
    "import_official_cache",
    "load_search_cache",
    "mcp_tools",
    "split_snippets",
    "tool",
]
