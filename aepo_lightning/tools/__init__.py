"""What the policy may call while it answers.

runtime/     `ToolRuntime`: runs calls within their limits; failures become observations. Its parts: arguments,
             admission, circuit breaker, attempts, deadline, single flight, states of chains, cache of answers
search/      documents in memory, a corpus on disk, the web and its providers
browse/      pages of the public internet as text, or what a model says about them
mcp/         tools of MCP servers, over sessions that stay open
python.py    `PythonTool`: model-written code behind the best wall there is
jail/        the pool behind it: bubblewrap, a sandbox server, or none if that is written out
function.py  `@tool`: a Python function as a tool
http_client.py  requests and JSON answers, every failure named

Every tool answers with text. Nothing here knows of engines, tokens or rewards.
"""

from aepo_lightning.errors import ToolTimeoutError
from aepo_lightning.tools.browse.extraction import Extractor, JailedExtractor
from aepo_lightning.tools.browse.page_fetcher import Page, PageFetcher
from aepo_lightning.tools.browse.tool import Browse, PageSummary
from aepo_lightning.tools.function import FunctionTool, function_tool, tool
from aepo_lightning.tools.mcp.server import MCPServer
from aepo_lightning.tools.mcp.tool import MCPTool, mcp_tools
from aepo_lightning.tools.python import PythonTool
from aepo_lightning.tools.runtime.cache import ToolCache
from aepo_lightning.tools.runtime.runtime import ToolRuntime
from aepo_lightning.tools.runtime.sqlite_cache import SQLiteCache, import_official_cache
from aepo_lightning.tools.search.documents import DocumentSearch
from aepo_lightning.tools.search.index import CorpusFields, CorpusIndex, IndexSearch
from aepo_lightning.tools.search.official_results import load_search_cache, split_snippets
from aepo_lightning.tools.search.providers import (
    Brave,
    BrightDataBing,
    Retriever,
    SearchHit,
    SearchProvider,
    SearXNG,
    Serper,
    Tavily,
)
from aepo_lightning.tools.search.snippets import SnippetIndex
from aepo_lightning.tools.search.web import WebSearch

__all__ = [
    "Brave",
    "BrightDataBing",
    "Browse",
    "CorpusFields",
    "CorpusIndex",
    "DocumentSearch",
    "Extractor",
    "FunctionTool",
    "IndexSearch",
    "JailedExtractor",
    "MCPServer",
    "MCPTool",
    "Page",
    "PageFetcher",
    "PageSummary",
    "PythonTool",
    "Retriever",
    "SQLiteCache",
    "SearXNG",
    "SearchHit",
    "SearchProvider",
    "Serper",
    "SnippetIndex",
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
