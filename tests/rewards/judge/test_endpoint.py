"""A server that misbehaves in every way gets no verdict out of a judge, and is named for what it did."""

import asyncio
import gzip
import json
import logging
import threading
import time
from email.utils import formatdate

import pytest
from aiohttp import web

from aepo_lightning.errors import ConfigError
from aepo_lightning.rewards.judge import JudgeLimits, LLMJudge
from aepo_lightning.rewards.judge.endpoint import _retry_after
from tests.support.extras import needs
from tests.support.judges import QUICK, bodies, claim, completion, judge_at, judge_server, judged, verdict

needs("openai", "judge")
GOOD = completion(verdict("correct"))
TWICE = JudgeLimits(max_attempts=2, backoff_s=0.0)


def page(text="<html>correct</html>", status=200, content_type="text/html", **fields):
    async def answer(_):
        return web.Response(text=text, status=status, content_type=content_type, **fields)

    return answer


async def half_a_body(request):
    """Promise more than is sent, then hang up."""
    response = web.StreamResponse(headers={"Content-Length": "1000", "Content-Type": "application/json"})
    await response.prepare(request)
    await response.write(json.dumps(GOOD).encode()[:80])
    request.transport.close()
    return response


async def hangs_up(request):
    request.transport.abort()
    return web.Response()


async def drips(request):
    """Send white space for ever, so that the connection never rests."""
    response = web.StreamResponse()
    await response.prepare(request)
    while request.transport is not None and not request.transport.is_closing():
        await response.write(b" ")
        await asyncio.sleep(0.01)
    return response


async def floods(request):
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(200):
        if request.transport is None or request.transport.is_closing():
            break
        await response.write(b" " * 65536)
    return response


async def bombs(_):
    body = gzip.compress(b" " * (8 << 20), 1)
    return web.Response(body=body, headers={"Content-Encoding": "gzip"}, content_type="application/json")


ENDINGS = [
    (page(), "malformed"),
    (page("correct", content_type="text/plain"), "malformed"),
    (page(json.dumps(GOOD)[:-40], content_type="application/json"), "malformed"),
    (completion("x", choices=[]), "malformed"),
    ({"error": {"message": "upstream failed", "code": 502}}, "malformed"),
    (floods, "malformed"),
    (bombs, "malformed"),
    (half_a_body, "unreachable"),
    (hangs_up, "unreachable"),
    (page(status=429), "busy"),
    (page(status=500), "failed"),
    (page(status=503), "failed"),
    (page(status=400), "refused"),
    (page(status=401), "refused"),
    (page(status=404), "refused"),
    (page('{"error": {"code": "insufficient_quota"}}', 429), "refused"),
    (page(status=307, headers={"Location": "http://127.0.0.1:9/v1/chat/completions"}), "redirected"),
    (completion("not correct"), "unreadable"),
    (completion(f"The verdict is {verdict()}"), "unreadable"),
    (completion(f"<!DOCTYPE html><p>{verdict()}</p>"), "unreadable"),
    (completion(verdict()[:-9]), "unreadable"),
    (completion("x" * 900_000), "unreadable"),
    (completion(verdict(), finish="length"), "cut_off"),
    (completion(verdict("abstain")), "undecided"),
]


@pytest.mark.parametrize(
    ("answer", "kind"), ENDINGS, ids=[f"{index}-{kind}" for index, (_, kind) in enumerate(ENDINGS)]
)
def test_no_misbehaviour_is_a_score(answer, kind, caplog):
    with judge_server(answer) as server, caplog.at_level(logging.WARNING):
        judge = judge_at(server)
        (found,) = judged(judge)
    assert (found.outcome, found.score, found.is_correct) == ("abstained", 0.0, False)
    assert found.reason.startswith(f"{kind}: The judge m ")
    assert len(found.reason) < 700
    assert judge.counts.abstentions == {kind: 1}
    assert judge.counts.num_judged == 0
    assert kind in caplog.text, "an abstention is said"


def test_a_server_that_sends_for_ever_meets_the_deadline():
    limits = JudgeLimits(max_attempts=1, deadline_s=0.3)
    with judge_server(drips) as server:
        (found,) = judged(judge_at(server, limits=limits))
    assert found.reason.startswith("timeout: ")


def test_a_server_that_says_nothing_meets_the_limit_of_an_attempt():
    async def silent(_):
        await asyncio.sleep(60)

    with judge_server(silent) as server:
        (found,) = judged(judge_at(server, limits=JudgeLimits(max_attempts=1, timeout_s=0.2)))
    assert found.reason == "timeout: The judge m did not answer in time."


def test_nobody_at_the_address_is_no_verdict():
    with judge_server(GOOD) as server:
        pass
    (found,) = judged(judge_at(server))
    assert found.reason.startswith("unreachable: ")


@pytest.mark.parametrize(
    "first",
    [
        page(status=500),
        page(status=429, headers={"Retry-After": "0"}),
        page(),
        completion("x", choices=[]),
        half_a_body,
    ],
    ids=["500", "429", "html", "no choices", "half a body"],
)
def test_what_may_pass_is_asked_again(first):
    with judge_server(GOOD, first, GOOD) as server:
        judge = judge_at(server, limits=TWICE)
        found = judged(judge, *map(claim, "ab"))
    assert [each.is_correct for each in found] == [True, True]
    assert judge.counts.num_calls == len(server.requests) == 3


@pytest.mark.parametrize("answer", [page(status=401), page(status=404), completion("not correct")])
def test_what_cannot_pass_is_not_asked_again(answer):
    with judge_server(answer) as server:
        assert not judged(judge_at(server, limits=TWICE))[0].is_scored
        assert len(server.requests) == 1


def test_a_long_pause_that_a_server_asks_for_is_not_waited_for():
    with judge_server(page(status=429, headers={"Retry-After": "3600"})) as server:
        (found,) = judged(judge_at(server, limits=JudgeLimits(max_attempts=3)))
    assert found.reason == "busy: The judge m is asked too often and asks to wait 3600 s."
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({}, None),
        ({"Retry-After": "2.5"}, 2.5),
        ({"Retry-After": "-3"}, 0.0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After-Ms": "1500", "Retry-After": "9"}, 1.5),
        ({"Retry-After": formatdate(time.time() - 100, usegmt=True)}, 0.0),
    ],
)
def test_the_pause_that_a_server_asks_for_is_read(headers, wait_s):
    assert _retry_after(headers) == wait_s


def test_a_date_to_wait_for_is_read():
    assert 3000 < _retry_after({"Retry-After": formatdate(time.time() + 3600, usegmt=True)}) <= 3600


def test_a_request_asks_for_one_reply_by_schema_at_temperature_0():
    with judge_server(GOOD) as server:
        judged(judge_at(server, request={"seed": 7, "max_tokens": None}))
    (body,) = bodies(server)
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["reason", "verdict"]
    assert {key: body[key] for key in body.keys() - {"messages", "response_format"}} == {
        "model": "m",
        "temperature": 0,
        "seed": 7,
    }
    assert server.requests[0][1] == "/v1/chat/completions"


@pytest.mark.parametrize("status", [400, 422, 500, 501])
def test_a_server_that_takes_no_schema_is_asked_without_from_then_on(status, caplog):
    async def answer(request):
        has_schema = "response_format" in await request.json()
        return await page("unknown field", status)(request) if has_schema else web.json_response(GOOD)

    with judge_server(answer) as server, caplog.at_level(logging.WARNING):
        judge = judge_at(server)
        assert [found.is_correct for found in judged(judge, *map(claim, "ab"))] == [True, True]
        assert ["response_format" in body for body in bodies(server)] == [True, False, False]
    assert judge.counts.num_calls == 3
    assert caplog.text.count("is asked without") == 1


def test_a_request_that_is_wrong_either_way_says_why_and_the_schema_stays():
    with judge_server(page("maximum context length", 400), page("maximum context length", 400), GOOD) as server:
        refused, taken = judged(judge_at(server), *map(claim, "ab"))
        assert "maximum context length" in refused.reason
        assert taken.is_correct
        assert ["response_format" in body for body in bodies(server)] == [True, False, True]


def test_a_server_that_has_taken_the_schema_may_fail_without_losing_it():
    with judge_server(GOOD, page(status=500), GOOD) as server:
        found = judged(judge_at(server), *map(claim, "abc"))
        assert [each.is_scored for each in found] == [True, False, True]
        assert ["response_format" in body for body in bodies(server)] == [True, True, True]


def test_a_schema_that_was_taken_for_another_claim_meanwhile_stays(caplog):
    is_taken = threading.Event()

    async def once_it_is_taken(_):
        while not is_taken.is_set():
            await asyncio.sleep(0.01)
        return web.json_response(GOOD)

    async def run(judge, server):
        first = asyncio.ensure_future(judge(claim("a")))
        while len(server.requests) < 2:
            await asyncio.sleep(0.01)
        second = await judge(claim("b"))
        is_taken.set()
        return [await first, second, await judge(claim("c"))]

    with judge_server(page(status=500), once_it_is_taken, GOOD) as server, caplog.at_level(logging.WARNING):
        assert all(found.is_correct for found in asyncio.run(run(judge_at(server), server)))
        assert ["response_format" in body for body in bodies(server)] == [True, False, True, True]
    assert not caplog.records


SECRET = "sk-very-secret-0123456789"


@pytest.mark.parametrize(
    "answer",
    [
        page(f"bad key {SECRET}", 400),
        page(f"bad key {SECRET}", 401),
        completion(f"{SECRET} correct"),
        completion(verdict(reason=SECRET)),
    ],
    ids=["400", "401", "reply", "reason"],
)
def test_the_key_is_sent_and_shown_nowhere(answer, monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    with judge_server(answer) as server, caplog.at_level(logging.DEBUG):
        judge = judge_at(server, api_key_env="JUDGE_KEY", cache_path=tmp_path / "v.sqlite")
        (found,) = judged(judge)
    assert server.requests[0][2]["Authorization"] == f"Bearer {SECRET}"
    shown = [found.reason, caplog.text, repr(judge), str(vars(judge)), str(judge.counts)]
    shown += [path.read_bytes().decode("latin-1") for path in tmp_path.iterdir()]
    assert not any(SECRET in each for each in shown)


def test_nothing_of_the_environment_is_sent(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with judge_server(GOOD) as server:
        assert judged(judge_at(server))[0].is_correct
    assert SECRET not in str(server.requests)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"base_url": "127.0.0.1:8000"}, "`base_url` .* must be an http address"),
        ({"base_url": "ftp://host/v1"}, "`base_url`"),
        ({"base_url": "http://host/v1?key=s3cret"}, "without a query, but got 'http://host/v1'"),
        ({"base_url": "http://me:s3cret@host/v1"}, "must hold no user or password"),
        ({"api_key_env": "sk-s3cret"}, "must be the name of an environment variable in capitals, but got another"),
        ({"api_key_env": "NOT_SET_ANYWHERE"}, "NOT_SET_ANYWHERE must hold the key of the judge, but is empty"),
        ({"api_key_env": "BROKEN_KEY"}, "BROKEN_KEY must hold printable ASCII"),
        ({"request": {"temperature": 0.7}}, "`temperature` of a judge must be 0, but got 0.7"),
        ({"request": {"model": "other", "n": 3}}, "must not set model, n"),
        ({"template": "mine"}, "`template` of a judge must be one of paper, hle, browsecomp, simpleqa"),
    ],
)
def test_settings_that_cannot_work_are_refused_without_showing_secrets(settings, match, monkeypatch):
    monkeypatch.setenv("BROKEN_KEY", "s3cret\n")
    with pytest.raises(ConfigError, match=match) as caught:
        LLMJudge(**({"base_url": "http://host/v1", "model": "m", "limits": QUICK} | settings))
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "limits",
    [
        {"max_concurrent_calls": 0},
        {"deadline_s": 0.0},
        {"timeout_s": float("inf")},
        {"backoff_s": -1.0},
        {"max_tokens": 0},
        {"breaker_failures": -1},
        {"breaker_reset_s": 0.0},
    ],
)
def test_limits_without_meaning_are_refused(limits):
    with pytest.raises(ConfigError, match=f"`{next(iter(limits))}` of a judge must be"):
        JudgeLimits(**limits)


def test_a_judge_without_the_client_says_what_to_install(monkeypatch):
    monkeypatch.setattr("aepo_lightning.rewards.judge.endpoint.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'aepo-lightning\[judge\]'"):
        LLMJudge("http://host/v1", "m")


def test_a_client_that_cannot_be_imported_is_no_verdict_on_an_answer(monkeypatch):
    def broken(name):
        raise ImportError(f"{name} is broken")

    monkeypatch.setattr("aepo_lightning.rewards.judge.endpoint.import_module", broken)
    with pytest.raises(ConfigError, match="openai, which cannot be imported: openai is broken"):
        judged(LLMJudge("http://127.0.0.1:9/v1", "m", limits=QUICK))
