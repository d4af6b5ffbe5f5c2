"""What the policy may call while it answers.

    runtime.py        `ToolRuntime`: runs calls with deadlines and limits; failures become observations
    timeout.py        `ToolTimeoutError`: a tool that stopped itself at its own deadline
    search.py         `CorpusSearch`: exact look-up, then BM25, over texts in memory
    snippets.py       `SnippetIndex`: BM25 over short texts
    search_cache.py   reads the official JSON of stored search results
    python.py         `PythonTool`: model-written code in a fresh interpreter with resource limits (not a sandbox)
    child_process.py  `ChildProcess`: one process with capped output that leaves nothing behind
    python_child.py   what runs inside that interpreter

Every tool answers with text. Nothing here knows of engines, tokens or rewards.
"""

from aepo_lightning.tools.child_process import ChildProcess
from aepo_lightning.tools.python import PythonTool
from aepo_lightning.tools.runtime import ToolRuntime
from aepo_lightning.tools.search import CorpusSearch
from aepo_lightning.tools.search_cache import load_search_cache, split_snippets
from aepo_lightning.tools.snippets import SnippetIndex
from aepo_lightning.tools.timeout import ToolTimeoutError

__all__ = [
    "ChildProcess",
    "CorpusSearch",
    "PythonTool",
    "SnippetIndex",
    "ToolRuntime",
    "ToolTimeoutError",
    "load_search_cache",
    "split_snippets",
]
