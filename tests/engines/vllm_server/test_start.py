"""How the server pool starts: what it waits for, which servers and settings it refuses. No vLLM needed."""

import asyncio
import logging
import socket

import pytest
from aiohttp import web

from aepo_lightning.engines.vllm_server.engine import VLLMServerEngine
from aepo_lightning.engines.vllm_server.launch import check_address
from aepo_lightning.errors import ConfigError, EngineError
from tests.support.vllm_parts import one, params, prompt, vllm_policy
from tests.support.vllm_server_fake import FakeServer, serve
from tests.support.vllm_server_parts import server_engine


@pytest.fixture
def two():
    with serve(FakeServer(), FakeServer()) as servers:
        yield servers


@pytest.fixture
def alone():
    with serve(FakeServer()) as server:
        yield server


def test_servers_that_are_still_starting_are_waited_for(two):
    for server in two:
        server.is_healthy = False
    engine = server_engine(two[0].url, two[1].url, ready_timeout_s=20.0, health_interval_s=0.02)

    async def run():
        task = asyncio.create_task(engine.generate(prompt(9), params(3)))
        while min(server.paths.count("/health") for server in two) < 3:
            await asyncio.sleep(0.005)
        for server in two:
            server.is_healthy = True
        return await task

    assert len(asyncio.run(run()).token_ids) == 3
    assert [endpoint.is_usable for endpoint in engine._pool.endpoints] == [True, True]
    engine.close()


def test_a_server_with_a_shorter_context_is_refused_at_once(alone):
    alone.max_model_len = 100
    engine = server_engine(alone.url, ready_timeout_s=1000.0)
    with pytest.raises(
        EngineError, match=r"sequences of 100 tokens, fewer than .* of 160\. Start it with `--max-model"
    ):
        one(engine)
    engine.close()


def test_a_server_without_the_routes_is_refused_with_the_command_that_has_them(alone):
    alone._weight_info = lambda _: web.Response(status=404)
    engine = server_engine(alone.url, ready_timeout_s=1000.0)
    with pytest.raises(EngineError, match=r"/weight_info with status 404.*vllm_server\.launch"):
        one(engine)
    engine.close()


@pytest.mark.parametrize("models", [[], {"data": []}, {"data": [{}]}], ids=str)
def test_an_address_of_something_else_is_refused_at_once(alone, models):
    alone._models = lambda _: models
    engine = server_engine(alone.url, ready_timeout_s=1000.0)
    with pytest.raises(EngineError, match=r"it is not a server that this engine knows: .*vllm_server\.launch"):
        one(engine)
    engine.close()


def test_a_server_that_cannot_take_our_sampler_leaves_estimates_and_a_warning(alone, caplog):
    alone.can_install = False
    engine = server_engine(alone.url)
    assert engine.entropy_source == "exact"
    with caplog.at_level(logging.WARNING):
        generation = one(engine, prompt(9), params(2, seed=3))
    assert engine.entropy_source == "top_20"
    assert "does not report entropies (it answered /collective_rpc with status 500" in caplog.text
    # 0.5 exp(-0.5) + 2 exp(-2) + 3 exp(-3) + ...
    assert generation.entropies == pytest.approx([0.8561] * 2, abs=1e-4)
    assert generation.top_logprobs == []
    sampling = alone.requests[0]["sampling_params"]
    assert "extra_args" not in sampling
    assert sampling["logprobs"] == 20
    one(engine, prompt(10), params(2, seed=3))
    assert alone.requests[1]["sampling_params"]["seed"] != sampling["seed"]
    engine.close()


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"endpoints": []}, "`endpoints` must be distinct addresses, at least one"),
        ({"endpoints": ["http://a", "http://a"]}, "`endpoints` must be distinct addresses"),
        ({"endpoints": ["node:8000"]}, "`endpoints` must be addresses such as 'http://node:8000', but got 'node:8000'"),
        ({"max_model_len": 1}, "`max_model_len` must be at least 2"),
        ({"max_num_seqs": 0}, "`max_num_seqs` at least 1"),
        ({"max_staleness": -1}, "`max_staleness` at least 0"),
        ({"max_retries": -1}, "`max_retries` must not be negative, but got -1"),
        ({"request_timeout_s": 0.0}, "`request_timeout_s` must be positive, but got 0.0"),
        ({"outage_timeout_s": -1.0}, "`outage_timeout_s` must not be negative, but got -1.0"),
        ({"max_answer_bytes": 0}, "`max_answer_bytes` must be positive, but got 0"),
        ({"sleep_level": 3}, "`sleep_level` must be 0, 1 or 2, but got 3"),
    ],
    ids=str,
)
def test_settings_without_meaning_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        VLLMServerEngine(vllm_policy(), **({"endpoints": ["http://a"], "max_model_len": 160} | settings))


def test_an_unknown_setting_is_refused():
    with pytest.raises(TypeError, match="request_timeout_ms"):
        server_engine("http://a", request_timeout_ms=5)


def test_a_port_that_is_taken_is_named_before_a_server_loads_anything():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        for arguments in (["--host", "127.0.0.1", "--port", str(port)], ["--host=127.0.0.1", f"--port={port}"]):
            with pytest.raises(ConfigError, match=rf"must be a free address .* but got 127\.0\.0\.1 and {port}"):
                check_address(arguments)
    check_address(["--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)])
    with pytest.raises(ConfigError, match="must be a free address"):
        check_address(["--port", "70000"])
