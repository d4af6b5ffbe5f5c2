"""A pool of which no server is left waits for one. Time is skipped; the last tests ask real sockets. No vLLM needed."""

import asyncio
import logging
from itertools import pairwise

import pytest

from aepo_lightning.engines.vllm_server.answer import TokenAnswer
from aepo_lightning.engines.vllm_server.endpoint import Endpoint
from aepo_lightning.engines.vllm_server.http import EndpointError, Fault, RequestError, ServerClient, ServerSettings
from aepo_lightning.engines.vllm_server.pool import ServerPool
from aepo_lightning.engines.vllm_server.publication_files import UntouchedError
from aepo_lightning.errors import EngineError
from tests.support.skipped_time import run_skipping
from tests.support.vllm_parts import one, params, prompt
from tests.support.vllm_server_fake import FakeServer, serve, token_at
from tests.support.vllm_server_parts import server_engine

BUSY = EndpointError("answered with status 503", Fault.BUSY)


class Servers:
    """Several endpoints without any socket: what each does is a function of the time."""

    def __init__(self, admitting, answering=None, num=2, **settings):
        self.admitting, self.answering = admitting, answering or never
        self.looks, self.asked = [], []
        settings = ServerSettings(
            **{"ready_timeout_s": 0.0, "outage_timeout_s": 600.0, "health_interval_s": 1e6} | settings
        )
        endpoints = [
            Endpoint(ServerClient(f"http://server{number}", settings), number, asyncio.Semaphore(16))
            for number in range(num)
        ]
        self.pool = ServerPool(endpoints, settings, self._admit, self._admit)

    async def _admit(self, endpoint):
        now = asyncio.get_running_loop().time()
        self.looks.append(now)
        if (error := self.admitting(endpoint.index, now)) is not None:
            raise error

    async def _send(self, endpoint):
        now = asyncio.get_running_loop().time()
        self.asked.append(now)
        if (error := self.answering(endpoint.index, now)) is not None:
            raise error
        return ANSWER

    def ask(self, num=1, before=None):
        """Return when requests are answered, all asked at once after a first one was."""

        async def run():
            try:
                await self.pool.start()
                await asyncio.sleep(10.0)
                if before is not None:
                    await before()
                await asyncio.gather(*(self.pool.ask([1], self._send) for _ in range(num)))
                return asyncio.get_running_loop().time()
            finally:
                await self.pool.close()

        return run_skipping(run())


ANSWER = TokenAnswer(
    token_ids=[7],
    logprobs=[-0.5],
    entropies=[1.0],
    top_logprobs=[],
    num_cached_tokens=0,
    versions=frozenset(["default"]),
)


def never(*_):
    return None


def during(begin, end, error=BUSY):
    return lambda _, now: error if begin <= now < end else None


@pytest.mark.parametrize("fault", [Fault.BUSY, Fault.SILENT, Fault.INTERNAL, Fault.ANSWER, Fault.FINAL])
@pytest.mark.parametrize("seconds", [2.0, 3.0, 300.0])
def test_servers_that_were_there_are_waited_for_whatever_they_do_while_they_restart(fault, seconds):
    error = EndpointError("does not serve", fault)
    servers = Servers(during(5.0, 10.0 + seconds, error), during(5.0, 10.0 + seconds))
    answered_at = servers.ask(num=20)
    assert 10.0 + seconds <= answered_at <= 10.0 + 2 * seconds + 15.0
    assert len(servers.asked) < 20 * 8


def test_the_pauses_grow_and_all_requests_share_them():
    servers = Servers(during(5.0, 300.0), during(5.0, 300.0), num=1)
    servers.ask(num=50)
    looks = [when for when in servers.looks if when > 5.0]
    pauses = [after - before for before, after in pairwise(looks)]
    assert len(looks) < 40
    assert pauses[1] < pauses[4] < pauses[6]
    assert max(pauses) <= 15.0


def test_what_is_waited_for_is_said_by_name_and_so_is_its_return(caplog):
    with caplog.at_level(logging.WARNING):
        Servers(during(5.0, 200.0), during(5.0, 200.0)).ask()
    waits = [record.message for record in caplog.records if "Waiting up to" in record.message]
    assert "No vLLM server is left. Waiting up to 600 s for one." in waits[0]
    assert "http://server0: it answered with status 503" in waits[0]
    assert "http://server1: it answered with status 503" in waits[0]
    assert 2 <= len(waits) <= 6, "again every minute"
    assert "there is a vLLM server again: http://server0, http://server1." in caplog.text


def test_a_pool_ends_only_after_the_stated_time():
    servers = Servers(during(5.0, 1e9), during(5.0, 1e9), outage_timeout_s=120.0)
    with pytest.raises(EngineError, match=r"left after 120 s of waiting\.(.|\n)*server1: it answered"):
        servers.ask()
    assert 120.0 <= max(servers.looks) - 10.0 <= 121.0


def test_a_server_that_admits_and_then_is_always_busy_ends_a_request_after_the_stated_time():
    servers = Servers(never, during(5.0, 1e9), outage_timeout_s=120.0)
    with pytest.raises(EngineError, match=r"A request failed \d+ times"):
        servers.ask()
    assert 120.0 <= max(servers.asked) - 10.0 <= 140.0


@pytest.mark.parametrize("fault", [Fault.INTERNAL, Fault.ANSWER, Fault.SILENT])
def test_failures_that_a_request_may_be_the_cause_of_are_counted_over_more_than_two_seconds(fault):
    servers = Servers(never, during(5.0, 1e9, EndpointError("fails", fault)))
    with pytest.raises(EngineError, match="A request failed 4 times"):
        servers.ask()
    assert len(servers.asked) == 4
    assert max(servers.asked) - 10.0 >= 2.0


def test_a_request_that_is_refused_is_not_asked_again():
    servers = Servers(never, during(5.0, 1e9, RequestError("at fault")))
    with pytest.raises(RequestError, match="at fault"):
        servers.ask()
    assert len(servers.asked) == 1


def test_files_that_no_server_can_read_are_not_waited_for():
    error = UntouchedError("cannot read published weights")
    servers = Servers(during(5.0, 1e9, error))
    with pytest.raises(EngineError, match="No vLLM server is left after 0 s of waiting"):
        servers.ask(before=servers.pool.refresh)


def test_a_publication_waits_for_servers_that_restart():
    servers, over = Servers(during(5.0, 200.0)), []

    async def publish():
        await servers.pool.refresh()
        over.append(asyncio.get_running_loop().time())

    assert servers.ask(before=publish) == over[0]
    assert 200.0 <= over[0] <= 215.0


def test_a_rank_that_publishes_nothing_does_not_wait_for_servers_that_are_gone_for_good():
    gone = Servers(lambda number, _: BUSY if number else None)

    async def forget():
        gone.pool.forget()

    assert gone.ask(before=forget) == 10.0


def test_a_request_that_is_cancelled_leaves_the_wait_to_the_others():
    servers = Servers(during(5.0, 60.0), during(5.0, 60.0))

    async def run():
        await servers.pool.start()
        await asyncio.sleep(10.0)
        doomed, other = (asyncio.create_task(servers.pool.ask([1], servers._send)) for _ in range(2))
        await asyncio.sleep(20.0)
        doomed.cancel()
        result = await asyncio.gather(doomed, other, return_exceptions=True)
        await servers.pool.close()
        return result, len(asyncio.all_tasks())

    (cancelled, (answer, _)), num_tasks = run_skipping(run())
    assert isinstance(cancelled, asyncio.CancelledError)
    assert answer is ANSWER
    assert num_tasks == 1


@pytest.mark.parametrize("status", [429, 503])
def test_servers_that_are_overloaded_are_asked_again_however_few_retries_there_are(status):
    with serve(FakeServer(), FakeServer()) as two:
        for server in two:
            server.script = lambda _: status if sum(len(each.requests) for each in two) <= 2 else "ok"
        engine = server_engine(two[0].url, two[1].url, max_retries=0, outage_timeout_s=60.0)
        assert one(engine, prompt(9), params(3)).token_ids == [token_at(position) for position in range(9, 12)]
        engine.close()


def test_an_answer_without_end_is_cut_off_at_the_named_limit(caplog):
    with serve(FakeServer(), FakeServer()) as two:
        for server in two:
            server.script = lambda _: "flood" if sum(len(each.requests) for each in two) == 1 else "ok"
        engine = server_engine(two[0].url, two[1].url, max_answer_bytes=1 << 20)
        assert len(one(engine, prompt(9), params(3)).token_ids) == 3
        assert "answered /inference/v1/generate with more than 1048576 bytes (`max_answer_bytes`)" in caplog.text
        engine.close()
        assert max(server.num_flooded for server in two) < 64 << 20
