"""Search: 500 requests at a time against a server of its own, and BM25 over 100,000 documents.

The other side of the client opens a connection for each request, as code that makes a session for each call does. The
other side of the index is SQLite's full-text index over the same documents.
"""

import asyncio
import json
import os
import signal
import socket
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import aiohttp
from aiohttp import web

from aepo_lightning.contracts.tool import ToolCall, ToolStatus
from aepo_lightning.tools import CorpusIndex, IndexSearch, Serper, ToolRuntime, WebSearch
from benchmarks.support.parts import Part
from benchmarks.support.tools_parts import CONTEXT, Words, percentile_ms

AT_ONCE = 500
NUM_TURNS = 3
LATENCY_S = 0.05
WORDS_PER_DOCUMENT = 100
WORDS_PER_QUERY = 5
NUM_FTS_QUERIES = 60
_HITS = [{"title": f"t{n}", "link": f"http://x/{n}", "snippet": "a snippet of some words " * 6} for n in range(10)]


def measure(num_requests: int = 9_000, num_documents: int = 100_000, num_queries: int = 5_000) -> Part:
    """Measure client and index.

    Args:
        num_requests: To the server, by each side.
        num_documents: In the corpus.
        num_queries: To the index.
    """
    with _server() as url:
        client = asyncio.run(_client_figures(url, num_requests))
    index = _index_figures(num_documents, num_queries)
    goals = {
        "search_requests_per_s": (client["requests_per_s"], ">=", 1_000.0),
        "search_failed": (client["failed"], "<=", 0.0),
        "bm25_queries_per_s": (index["queries_per_s"], ">=", 2_000.0),
    }
    return Part(figures={"client": client, "index": index}, goals=goals)


@contextmanager
def _server() -> Iterator[str]:
    """Answer as Serper does, after `LATENCY_S`, from a process of its own; `/count` says how often it was asked."""
    receiver, sender = get_context("fork").Pipe(duplex=False)
    process = get_context("fork").Process(target=_serve, args=(sender,))
    process.start()
    try:
        yield f"http://127.0.0.1:{receiver.recv()}"
    finally:
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()


def _serve(sender: Connection) -> None:
    num_asked = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal num_asked
        num_asked += 1
        await request.json()
        await asyncio.sleep(LATENCY_S)
        return web.json_response({"organic": _HITS})

    async def count(_: web.Request) -> web.Response:
        return web.json_response(num_asked)

    listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
    app = web.Application()
    app.add_routes([web.post("/search", answer), web.get("/count", count)])
    sender.send(listening.getsockname()[1])
    web.run_app(app, sock=listening, print=None, access_log=None)


@dataclass
class _Run:
    seconds: float = 0.0
    cpu_s: float = 0.0
    latencies: list[float] = field(default_factory=list)
    num_failed: int = 0
    rates: list[float] = field(default_factory=list)
    """Of the turns that were added."""

    def add(self, turn: "_Run") -> None:
        """Put another turn's calls to this one's."""
        self.cpu_s, self.num_failed = self.cpu_s + turn.cpu_s, self.num_failed + turn.num_failed
        self.latencies += turn.latencies
        self.rates.append(len(turn.latencies) / turn.seconds)


async def _client_figures(url: str, num_requests: int) -> dict[str, float]:
    runtime = ToolRuntime(
        tools=[WebSearch(provider=Serper(api_key="key", url=f"{url}/search"))],
        max_result_chars=1 << 16,
        max_concurrent_calls=AT_ONCE,
    )
    await _ask(runtime, [f"warm {n}" for n in range(AT_ONCE)])
    ours, theirs = _Run(), _Run()
    for part in range(NUM_TURNS):  # in turn, so that a drift of the machine hits both
        ours.add(await _ask(runtime, [f"query {part} {n}" for n in range(num_requests // NUM_TURNS)]))
        theirs.add(await _connect_each_time(f"{url}/search", num_requests // NUM_TURNS))
    before = await _count(url)
    shared = await _ask(runtime, [f"shared {n % 50}" for n in range(AT_ONCE)])
    num_asked = await _count(url) - before
    await runtime.close()
    rate, their_rate = statistics.median(ours.rates), statistics.median(theirs.rates)
    return {
        "requests_per_s": round(rate),
        "p50_ms": percentile_ms(ours.latencies, 0.5),
        "p99_ms": percentile_ms(ours.latencies, 0.99),
        "request_cpu_us": round(1e6 * ours.cpu_s / len(ours.latencies)),
        "failed": ours.num_failed + shared.num_failed + theirs.num_failed,
        "connecting_requests_per_s": round(their_rate),
        "connecting_p99_ms": percentile_ms(theirs.latencies, 0.99),
        "connecting_request_cpu_us": round(1e6 * theirs.cpu_s / len(theirs.latencies)),
        "ratio": round(rate / their_rate, 2),
        "equal_queries_asked_at_once": AT_ONCE,
        "equal_queries_sent": num_asked,
    }


async def _ask(runtime: ToolRuntime, queries: Sequence[str]) -> _Run:
    run, pending = _Run(), iter(queries)

    async def caller() -> None:
        for query in pending:
            asked = time.perf_counter()
            result = await runtime.call(ToolCall(tool="search", text=query), CONTEXT)
            run.latencies.append(time.perf_counter() - asked)
            run.num_failed += result.status is not ToolStatus.OK

    started, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(caller() for _ in range(AT_ONCE)))
    run.seconds, run.cpu_s = time.perf_counter() - started, time.process_time() - cpu
    return run


async def _connect_each_time(url: str, num_requests: int) -> _Run:
    run, pending = _Run(), iter(range(num_requests))

    async def caller() -> None:
        for number in pending:
            asked = time.perf_counter()
            async with aiohttp.ClientSession() as session, session.post(url, json={"q": f"query {number}"}) as response:
                run.num_failed += len((await response.json())["organic"]) != len(_HITS)
            run.latencies.append(time.perf_counter() - asked)

    started, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(caller() for _ in range(AT_ONCE)))
    run.seconds, run.cpu_s = time.perf_counter() - started, time.process_time() - cpu
    return run


async def _count(url: str) -> int:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/count") as response:
        return int(await response.json())


def _index_figures(num_documents: int, num_queries: int) -> dict[str, float]:
    words = Words()
    documents = [words.text(WORDS_PER_DOCUMENT) for _ in range(num_documents)]
    queries = [words.text(WORDS_PER_QUERY) for _ in range(num_queries)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "corpus.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in documents))
        started = time.perf_counter()
        index = CorpusIndex([folder / "corpus.jsonl"], folder / "index", show_progress=False)
        build_s = time.perf_counter() - started
        started = time.perf_counter()
        CorpusIndex([folder / "corpus.jsonl"], folder / "index", show_progress=False)
        reopen_s = time.perf_counter() - started
        disk = sum(file.stat().st_size for file in (folder / "index").rglob("*"))
    latencies, cpu_s = asyncio.run(_query(IndexSearch(index=index), queries))
    fts_build_s, fts_rate = _fts(documents, queries[:NUM_FTS_QUERIES])
    rate = len(latencies) / sum(latencies)
    return {
        "documents": num_documents,
        "build_s": round(build_s, 2),
        "reopen_s": round(reopen_s, 3),
        "disk_mb": round(disk / 1e6, 1),
        "queries_per_s": round(rate),
        "query_cpu_us": round(1e6 * cpu_s / num_queries),
        "p99_ms": percentile_ms(latencies, 0.99),
        "fts5_build_s": round(fts_build_s, 2),
        "fts5_queries_per_s": round(fts_rate, 1),
        "ratio": round(rate / fts_rate, 1),
    }


async def _query(tool: IndexSearch, queries: Sequence[str]) -> tuple[list[float], float]:
    latencies, cpu = [], time.process_time()
    for query in queries:
        asked = time.perf_counter()
        answer = await tool({"query": query}, CONTEXT)
        latencies.append(time.perf_counter() - asked)
        assert answer.startswith("Page 1: "), "every query has a result"
    return latencies, time.process_time() - cpu


def _fts(documents: Sequence[str], queries: Sequence[str]) -> tuple[float, float]:
    connection = sqlite3.connect(":memory:")
    started = time.perf_counter()
    connection.execute("CREATE VIRTUAL TABLE documents USING fts5(text, tokenize = 'porter')")
    connection.executemany("INSERT INTO documents VALUES (?)", ((text,) for text in documents))
    built = time.perf_counter()
    statement = "SELECT text FROM documents WHERE documents MATCH ? ORDER BY rank LIMIT 5"
    for query in queries:
        connection.execute(statement, (" OR ".join(f'"{word}"' for word in query.split()),)).fetchall()
    rate = len(queries) / (time.perf_counter() - built)
    connection.close()
    return built - started, rate
