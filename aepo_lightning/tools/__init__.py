"""What the policy may call while it answers.

    runtime.py        `ToolRuntime`: runs calls within their limits; failures become observations
    arguments.py      arguments against the schema, and the key under which equal calls are the same
    admission.py      slots, queue, rate
    circuit_breaker.py  leaves a provider alone that fails too often
    attempts.py       deadline and attempts of one call
    single_flight.py  equal calls at the same time, made once
    states.py         what stateful tools remember of each chain, copied or replayed at branches
    cache.py          the contract of a cache of answers
    sqlite_cache.py   `SQLiteCache`: answers in one file, shared by processes
    function_tool.py  `@tool`: a Python function as a tool
    mcp.py, mcp_server.py  tools of MCP servers, over sessions that stay open
    timeout.py        `ToolTimeoutError`: a tool that stopped itself at its own deadline
    search.py         `CorpusSearch`: exact look-up, then BM25, over texts in memory
    web_search.py     `WebSearch`: the search tool over a provider
    search_providers.py  Serper, Tavily, Brave, Bing through Bright Data, SearXNG, a retrieval server
    http_client.py    requests and JSON answers, every failure named
    snippets.py       `SnippetIndex`: BM25 over short texts
    corpus_search.py  `CorpusIndex` and `IndexSearch`: offline BM25 over JSONL and parquet files
    search_cache.py   reads the official JSON of stored search results
    browse.py         `Browse`: a page as text, or what a model says about it
    page_fetcher.py, addresses.py  pages of the public internet, and nothing else
    extraction.py     the text of pages, worked out in the jail
    python.py         `PythonTool`: model-written code behind the best wall there is
    jail/             the pool behind it: bubblewrap, a sandbox server, or none if that is written out
    child_process.py, python_child.py  code without a wall: one process that leaves nothing behind

Every tool answers with text. Nothing here knows of engines, tokens or rewards.
"""

from aepo_lightning.errors import ToolTimeoutError
from aepo_lightning.tools.browse.extraction import Extractor, JailedExtractor
from aepo_lightning.tools.browse.page_fetcher import Page, PageFetcher
from aepo_lightning.tools.browse.tool import Browse, PageSummary
from aepo_lightning.tools.function import FunctionTool, tool
from aepo_lightning.tools.jail.child_process import ChildProcess
from aepo_lightning.tools.mcp.server import MCPServer
from aepo_lightning.tools.mcp.tool import MCPTool, mcp_tools
from aepo_lightning.tools.python import PythonTool
from aepo_lightning.tools.runtime.cache import CachedAnswer, ToolCache
from aepo_lightning.tools.runtime.runtime import ToolRuntime
from aepo_lightning.tools.runtime.sqlite_cache import SQLiteCache, import_official_cache
from aepo_lightning.tools.search.documents import CorpusSearch
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
    "CachedAnswer",
    "ChildProcess",
    "CorpusFields",
    "CorpusIndex",
    "CorpusSearch",
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
    "import_official_cache",
    "load_search_cache",
    "mcp_tools",
    "split_snippets",
    "tool",
]
