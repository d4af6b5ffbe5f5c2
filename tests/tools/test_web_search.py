"""Search over providers, against a local server that answers in their shapes, and in none."""

import asyncio

import pytest
from aiohttp import web

from aepo_lightning.errors import ConfigError
from aepo_lightning.protocols import Tool
from aepo_lightning.tool_spec import RetryPolicy, ToolLimits
from aepo_lightning.tools import (
    Brave,
    BrightDataBing,
    Retriever,
    SearchProvider,
    SearXNG,
    Serper,
    Tavily,
    ToolRuntime,
    WebSearch,
)
from aepo_lightning.types import ToolCall, ToolStatus
from tests.tools.loopback import serve
from tests.tools.parts import make_context

HITS = [("First", "https://a.example/1", "one\n two"), ("Second", "https://b.example/2", "three")]


def results(title, url, snippet):
    return [{title: t, url: u, snippet: s, "extra": 1} for t, u, s in HITS]


@pytest.fixture(scope="module")
def shared():
    with serve() as server:
        yield server


@pytest.fixture
def server(shared):
    shared.requests.clear()
    shared.answer, shared.behave = {}, None
    return shared


PROVIDERS = {
    "serper": (lambda url: Serper(api_key="k", url=url), {"organic": results("title", "link", "snippet")}),
    "tavily": (lambda url: Tavily(api_key="k", url=url), {"results": results("title", "url", "content")}),
    "brave": (lambda url: Brave(api_key="k", url=url), {"web": {"results": results("title", "url", "description")}}),
    "bing": (
        lambda url: BrightDataBing(api_key="k", zone="z", url=url),
        {"organic": results("title", "link", "description")},
    ),
    "searxng": (lambda url: SearXNG(url=url), {"results": results("title", "url", "content")}),
}
SENT = {
    "serper": ("POST", "X-API-KEY", "k", {"q": "who is it", "num": 10, "gl": "us", "hl": "en"}),
    "tavily": ("POST", "Authorization", "Bearer k", {"query": "who is it", "max_results": 10, "search_depth": "basic"}),
    "brave": ("GET", "X-Subscription-Token", "k", None),
    "bing": (
        "POST",
        "Authorization",
        "Bearer k",
        {
            "zone": "z",
            "url": "https://www.bing.com/search?q=who+is+it&mkt=en-US&count=10&brd_json=1",
            "format": "raw",
        },
    ),
    "searxng": ("GET", "Accept", "*/*", None),
}


def ask(tool, query="who  is it ", **settings):
    async def run():
        try:
            return await ToolRuntime(tools=[tool], **settings).call(ToolCall(tool="search", text=query), make_context())
        finally:
            await tool.close()

    return asyncio.run(run())


def once(**fields):
    return ToolLimits(retry=RetryPolicy(max_attempts=1), **fields)


@pytest.mark.parametrize("name", PROVIDERS)
def test_each_provider_is_asked_and_read_in_its_own_way(server, name):
    build, server.answer = PROVIDERS[name]
    provider = build(server.url)
    assert isinstance(provider, SearchProvider)
    assert isinstance(WebSearch(provider=provider), Tool)
    assert ask(WebSearch(provider=provider)).text == "Page 1: one two\nPage 2: three"
    structured = ask(WebSearch(provider=provider, style="structured")).text
    assert structured == "[1] First\nhttps://a.example/1\none two\n\n[2] Second\nhttps://b.example/2\nthree"
    method, path, headers, body = server.requests[0]
    assert (method, headers[SENT[name][1]], body) == (SENT[name][0], *SENT[name][2:])
    if method == "GET":
        assert "q=who+is+it" in path.replace("%20", "+")


def test_a_retrieval_server_is_asked_with_the_protocol_of_search_r1(server):
    documents = [
        {"document": {"contents": '"Paris"\nParis is a city.'}, "score": 1.5},
        {"document": {"contents": "bare"}},
    ]
    server.answer = {"result": [documents]}
    tool = WebSearch(provider=Retriever(url=f"{server.url}/"), style="structured", max_results=2)
    assert ask(tool).text == "[1] Paris\nParis is a city.\n\n[2]\nbare"
    assert server.requests[0][1] == "/retrieve"
    assert server.requests[0][3] == {"queries": ["who is it"], "topk": 2, "return_scores": True}


@pytest.mark.parametrize("name", PROVIDERS)
def test_nothing_found_is_said_and_is_not_a_failure(server, name):
    result = ask(WebSearch(provider=PROVIDERS[name][0](server.url)))
    assert (result.status, result.text) == (ToolStatus.EMPTY, "No search results found.")


def test_results_are_counted_and_cut(server):
    server.answer = {"organic": [{"snippet": "x" * 50}] * 30 + [{"snippet": " "}, {}]}
    text = ask(WebSearch(provider=Serper(api_key="k", url=server.url), max_results=3, max_snippet_chars=5)).text
    assert text == "Page 1: xxxxx\nPage 2: xxxxx\nPage 3: xxxxx"


async def html(_):
    return web.Response(text="<html>Log in to this network</html>", content_type="text/html")


async def nothing(request):
    request.transport.abort()
    return web.Response()


async def half(request):
    response = web.StreamResponse(headers={"Content-Length": "1000", "Content-Type": "application/json"})
    await response.prepare(request)
    await response.write(b'{"organic": [')
    request.transport.abort()
    return response


async def cut_json(_):
    return web.Response(text='{"organic": [', content_type="application/json")


async def huge(request):
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(100):
        await response.write(b"x" * (1 << 17))
    return response


async def redirect(_):
    raise web.HTTPFound("http://169.254.169.254/latest/meta-data")


async def other_shape(_):
    return web.json_response({"organic": {"a": 1}})


async def a_list(_):
    return web.json_response([1, 2])


async def a_list_of_texts(_):
    return web.json_response({"organic": ["x"]})


async def slow(_):
    await asyncio.sleep(5)


def status(code, **headers):
    async def behave(_):
        return web.Response(status=code, text="no", headers=headers)

    return behave


FAILURES = {
    "html": (html, "answered with something that is not JSON"),
    "nothing": (nothing, "could not be reached"),
    "half": (half, "could not be reached"),
    "cut-json": (cut_json, "not JSON"),
    "huge": (huge, "answered with more than"),
    "redirect": (redirect, "sent the request elsewhere (status 302)"),
    "other-shape": (other_shape, "in an unknown shape"),
    "list": (a_list, "in an unknown shape"),
    "list-of-texts": (a_list_of_texts, "in an unknown shape"),
    "slow": (slow, "did not answer in time"),
    "500": (status(500), "failed (status 500)"),
    "429": (status(429), "is asked too often"),
    "401": (status(401), "refused the request (status 401)"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_every_failure_of_a_provider_is_named_and_counts_as_its_own(server, name):
    server.behave, text = FAILURES[name]
    tool = WebSearch(provider=Serper(api_key="k", url=server.url), limits=once(), request_timeout_s=1.0)
    result = ask(tool)
    assert result.status is ToolStatus.UNAVAILABLE
    assert text in result.text
    assert len(result.text) < 200


def test_a_server_that_is_not_there_is_named(server):
    tool = WebSearch(provider=Serper(api_key="secret-key", url="http://127.0.0.1:9/x"), limits=once())
    result = ask(tool)
    assert result.status is ToolStatus.UNAVAILABLE
    assert "127.0.0.1 could not be reached" in result.text
    assert "secret-key" not in result.text + repr(tool) + tool.spec.version


def test_a_query_that_the_provider_does_not_take_is_not_tried_again(server):
    server.behave = status(400)
    result = ask(WebSearch(provider=Serper(api_key="k", url=server.url)))
    assert (result.status, len(server.requests)) == (ToolStatus.ERROR, 1)


@pytest.mark.parametrize("wait", ["0", None, "soon", "-3", "Wed, 21 Oct 2015 07:28:00 GMT"], ids=str)
def test_a_busy_provider_is_asked_again(server, wait):
    server.answer = {"organic": [{"snippet": "there"}]}

    async def once_busy(_):
        server.behave = None
        return web.Response(status=429, headers={} if wait is None else {"Retry-After": wait})

    server.behave = once_busy
    limits = ToolLimits(retry=RetryPolicy(max_attempts=2, backoff_s=0.0))
    result = ask(WebSearch(provider=Serper(api_key="k", url=server.url), limits=limits))
    assert (result.text, result.num_attempts) == ("Page 1: there", 2)


def test_a_provider_that_asks_for_more_time_than_there_is_ends_at_the_deadline(server):
    server.behave = status(429, **{"Retry-After": "3600"})
    limits = ToolLimits(deadline_s=0.3, retry=RetryPolicy(max_attempts=5))
    result = ask(WebSearch(provider=Serper(api_key="k", url=server.url), limits=limits))
    assert (result.status, len(server.requests)) == (ToolStatus.TIMEOUT, 1)


def test_one_tool_serves_several_event_loops(server):
    server.answer = {"organic": [{"snippet": "there"}]}
    tool = WebSearch(provider=Serper(api_key="k", url=server.url))
    runtime = ToolRuntime(tools=[tool])

    async def run():
        result = await runtime.call(ToolCall(tool="search", text="q"), make_context())
        await runtime.close()
        return result.text

    assert [asyncio.run(run()) for _ in range(3)] == ["Page 1: there"] * 3


@pytest.mark.parametrize("build", [Serper, Tavily, Brave, lambda api_key: BrightDataBing(api_key=api_key, zone="z")])
def test_an_empty_key_is_refused_at_once(build):
    with pytest.raises(ConfigError, match=r"`api_key` of .* must not be empty"):
        build(api_key=" ")


@pytest.mark.parametrize(
    "settings", [{"max_results": 0}, {"max_snippet_chars": 0}, {"request_timeout_s": 0.0}], ids=str
)
def test_settings_without_meaning_are_refused(settings):
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}` must"):
        WebSearch(provider=SearXNG(url="http://x"), **settings)
