"""Search over providers, against a local server that answers in their shapes, and in none."""

import asyncio
import gzip
import logging
import resource
import zlib
from dataclasses import replace

import pytest
from aiohttp import web

from aepo_lightning.contracts.tool import RetryPolicy, Tool, ToolCall, ToolLimits, ToolStatus
from aepo_lightning.errors import ConfigError
from aepo_lightning.tools import (
    Brave,
    BrightDataBing,
    Retriever,
    SearchProvider,
    SearXNG,
    Serper,
    SQLiteCache,
    Tavily,
    ToolRuntime,
    WebSearch,
)
from tests.support.tool_parts import make_context

HITS = [("First", "https://a.example/1", "one\n two"), ("Second", "https://b.example/2", "three")]


def results(title, url, snippet):
    return [{title: t, url: u, snippet: s, "extra": 1} for t, u, s in HITS]


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


async def nested(_):
    return web.Response(text='{"organic": ' + "[" * 200_000, content_type="application/json")


async def gzip_bomb(_):
    body = gzip.compress(b'{"organic": "' + b"x" * (64 << 20) + b'"}')
    return web.Response(body=body, headers={"Content-Encoding": "gzip", "Content-Type": "application/json"})


async def false_gzip(_):
    return web.Response(body=b"{}", headers={"Content-Encoding": "gzip", "Content-Type": "application/json"})


async def other_charset(_):
    return web.Response(body='{"organic": [{"snippet": "é"}]}'.encode("latin-1"), content_type="application/json")


async def drip(request):
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    for _ in range(200):
        await response.write(b" ")
        await asyncio.sleep(0.05)
    return response


def says(**answer):
    async def behave(_):
        return web.json_response(answer)

    return behave


async def slow(_):
    await asyncio.sleep(60)


def status(code, **headers):
    async def behave(_):
        return web.Response(status=code, text="no", headers=headers)

    return behave


def _bomb():
    packer, piece = zlib.compressobj(1, zlib.DEFLATED, 31), b"x" * (1 << 20)
    for _ in range(512):
        yield packer.compress(piece)
    yield packer.flush()


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
    "drip": (drip, "did not answer in time"),
    "nested": (nested, "not JSON"),
    "gzip-bomb": (gzip_bomb, "answered with more than"),
    "false-gzip": (false_gzip, "could not be reached"),
    "other-charset": (other_charset, "not JSON"),
    "error-object": (says(error={"code": "k"}, type="ErrorResponse"), "answered with an error instead of results"),
    "message": (says(message="Not enough credits", statusCode=400), "answered with an error instead of results"),
    "detail": (says(detail={"error": "no"}), "answered with an error instead of results"),
    "404": (status(404), "failed (status 404)"),
    "405": (status(405), "failed (status 405)"),
    "432": (status(432), "refused the request (status 432)"),
    "307": (status(307, Location="http://127.0.0.1:9/"), "sent the request elsewhere (status 307)"),
    "500": (status(500), "failed (status 500)"),
    "429": (status(429), "is asked too often"),
    "401": (status(401), "refused the request (status 401)"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_every_failure_of_a_provider_is_named_and_counts_as_its_own(server, name):
    server.behave, text = FAILURES[name]
    # Only what is to be cut off has a short time.
    limit = 1.0 if "in time" in text else 25.0
    tool = WebSearch(provider=Serper(api_key="k", url=server.url), limits=once(), request_timeout_s=limit)
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


def test_a_bomb_is_not_unpacked_whole(server):
    server.behave = gzip_bomb
    tool = WebSearch(provider=Serper(api_key="k", url=server.url), limits=once())
    ask(tool)
    bomb = b"".join(_bomb())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    async def huge_bomb(_):
        return web.Response(body=bomb, headers={"Content-Encoding": "gzip", "Content-Type": "application/json"})

    server.behave = huge_bomb
    assert "answered with more than" in ask(tool).text
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 128 << 10  # KiB; unpacked it has 512 MiB


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize(
    "query", ["\ud800 lone", "\x00\x07", "a" * 20_000, "x " * 3000, "<b>&?#%/+", "日本 🎉 é"], ids=ascii
)
def test_no_query_breaks_a_provider(server, name, query):
    build, server.answer = PROVIDERS[name]
    result = ask(WebSearch(provider=build(server.url), limits=once()), query)
    # A server may find the address too long, and says so.
    assert result.status is ToolStatus.OK or (name == "searxng" and result.status is ToolStatus.ERROR)


@pytest.mark.parametrize("key", ["", " ", "key\n", " key", "k\u00e9y", "k\tey"], ids=ascii)
@pytest.mark.parametrize("build", [Serper, Tavily, Brave, lambda api_key: BrightDataBing(api_key=api_key, zone="z")])
def test_a_key_that_no_header_takes_is_refused_and_not_shown(build, key):
    with pytest.raises(ConfigError, match=r"`api_key` of .* must") as caught:
        build(api_key=key)
    assert not key.strip() or repr(key) not in str(caught.value)


def test_limits_of_providers_are_kept(server):
    brave = Brave(api_key="k").request("word " * 100, 50).params
    assert (len(brave["q"].split()), brave["count"], brave["text_decorations"]) == (50, "20", "false")
    tavily = Tavily(api_key="k").request("a" * 1000, 50).body
    assert (len(tavily["query"]), tavily["max_results"]) == (400, 20)


def test_nothing_found_by_engines_that_did_not_answer_is_a_failure(server):
    server.answer = {"results": [], "unresponsive_engines": [["google", "too many requests"]]}
    result = ask(WebSearch(provider=SearXNG(url=server.url), limits=once()))
    assert (result.status, "did not answer" in result.text) == (ToolStatus.UNAVAILABLE, True)
    server.answer["results"] = [{"content": "there"}]
    assert ask(WebSearch(provider=SearXNG(url=server.url), limits=once())).text == "Page 1: there"


@pytest.mark.parametrize("failure", ["401", "429", "html", "half", "error-object", "400"])
@pytest.mark.parametrize("name", ["serper", "tavily", "brave", "bing"])
def test_keys_are_shown_nowhere(server, name, failure, caplog, tmp_path):
    caplog.set_level(logging.DEBUG)
    server.behave = status(400) if failure == "400" else FAILURES[failure][0]
    provider = replace(PROVIDERS[name][0](server.url), api_key="sk-secret-0123")
    tool = WebSearch(provider=provider, limits=once(cache_ttl_s=None, cache_empty_ttl_s=9.0))
    cache = SQLiteCache(tmp_path / "cache.sqlite")
    texts = [ask(tool, cache=cache).text]
    server.behave, server.answer = None, PROVIDERS[name][1]
    texts.append(ask(tool, cache=cache).text)
    cache.close()
    assert texts[1].startswith("Page 1")
    texts += [repr(tool), repr(provider), str(tool.spec), caplog.text]
    assert not any("sk-secret" in text for text in texts)
    assert not any(b"sk-secret" in file.read_bytes() for file in tmp_path.iterdir())


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


def test_a_provider_that_asks_for_more_time_than_there_is_is_not_waited_for(server):
    server.behave = status(429, **{"Retry-After": "3600"})
    limits = ToolLimits(deadline_s=20.0, retry=RetryPolicy(max_attempts=5))
    result = ask(WebSearch(provider=Serper(api_key="k", url=server.url), limits=limits))
    assert (result.status, len(server.requests)) == (ToolStatus.UNAVAILABLE, 1)
    assert result.duration_s < 10.0


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
