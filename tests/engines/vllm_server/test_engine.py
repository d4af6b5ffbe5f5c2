"""The pool with a real vLLM server on loopback: what only a real one can show. The last test kills it."""

import asyncio
import json
import urllib.error
import urllib.request
from dataclasses import replace

import pytest

from aepo_lightning.contracts.generation import FinishReason
from aepo_lightning.errors import EngineError
from tests.support.extras import needs
from tests.support.vllm_parts import (
    BLOCK,
    CLOSE,
    assert_exact,
    biased,
    generate,
    make_engine,
    one,
    params,
    prompt,
    vllm_policy,
)
from tests.support.vllm_server_parts import free_port, server_engine, shared_server

pytestmark = pytest.mark.filterwarnings("ignore:::vllm", "ignore::DeprecationWarning", "ignore::FutureWarning")
needs("vllm", "vllm")


@pytest.fixture(scope="module")
def server(request, tmp_path_factory):
    return shared_server(request, tmp_path_factory.mktemp("server"))


@pytest.fixture(scope="module")
def shared(server):
    engine = server_engine(server[0])
    yield engine
    engine.close()


@pytest.fixture
def engine(shared):
    publish(shared, vllm_policy())
    return shared


def publish(engine, policy, version=0):
    engine.load_weights(policy.build_model().named_parameters(), version)


def num_running(url):
    with urllib.request.urlopen(f"{url}/metrics", timeout=20) as reply:
        lines = reply.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("vllm:num_requests_running"))


def test_tokens_and_scores_equal_those_of_the_engine_in_this_process(engine):
    requests = [(prompt(n, n), params(12, seed=n, temperature=0.7, top_p=0.8, top_k=30)) for n in (1, 9, 33, 50)]
    requests.append((prompt(12), params(12, seed=5, repetition_penalty=1.5)))
    other = make_engine()
    for ours, theirs in zip(generate(engine, requests), generate(other, requests), strict=True):
        assert ours.token_ids == theirs.token_ids
        assert ours.logprobs == pytest.approx(theirs.logprobs, **CLOSE)
        assert ours.entropies == pytest.approx(theirs.entropies, **CLOSE)
    other.close()


@pytest.mark.parametrize("num_top", [1, 5, 10_000], ids=str)
def test_top_logprobs_are_the_largest_and_leave_entropies_exact(engine, num_top):
    requests = [(prompt(4), params(8, num_top_logprobs=num_top)), (prompt(6), params(8))]
    asked, other = generate(engine, requests)
    assert other.top_logprobs == []
    model = vllm_policy().build_model()
    assert_exact(model, prompt(4), asked)
    assert_exact(model, prompt(6), other)
    for sampled, listed in zip(asked.logprobs, asked.top_logprobs, strict=True):
        assert sampled in listed
        assert listed[:num_top] == sorted(listed[:num_top], reverse=True)
        assert len(listed) in (min(num_top, 268), num_top + 1)


def test_a_branch_finds_the_prefix_of_its_trunk_in_the_cache(engine):
    trunk = one(engine, prompt(BLOCK + 20), params(30, num_probe_tokens=5))
    assert trunk.num_cached_tokens == 0
    branch = one(engine, prompt(BLOCK + 20) + trunk.token_ids, params(5, seed=1))
    assert branch.num_cached_tokens >= 2 * BLOCK
    publish(engine, vllm_policy())
    assert one(engine, prompt(BLOCK + 20)).num_cached_tokens == 0


def test_a_stop_string_that_ends_in_another_token_every_time_is_found_behind_a_probe(engine):
    policy = biased("ab<search>q</search>")
    publish(engine, policy)
    for num_probe_tokens in (1, 2, 3, 4, 5):
        each = params(40, stop=("q</search>",), temperature=0.0, num_probe_tokens=num_probe_tokens)
        probes = []
        generation = one(engine, policy.ids[:1], each, probes.append)
        assert policy.tokenizer.decode(generation.token_ids) == "b<search>q</search>"
        assert generation.finish_reason is FinishReason.STOP
        assert [probe.token_ids for probe in probes] == [generation.token_ids[: min(num_probe_tokens, 4)]]


def test_a_cancelled_request_ends_on_the_server(server, engine):
    async def run():
        doomed = [asyncio.create_task(engine.generate(prompt(5, n), params(150))) for n in range(8)]
        while not num_running(server[0]):
            await asyncio.sleep(0.01)
        for task in doomed:
            task.cancel()
        await asyncio.gather(*doomed, return_exceptions=True)
        while num_running(server[0]):  # the metrics lag; a request that ran on would take seconds
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(run(), 60))
    assert len(one(engine).token_ids) == 6


def test_the_server_refuses_a_request_that_it_cannot_serve_and_stays_in_the_pool(engine):
    style = engine._admission.style
    engine._admission.style = replace(style, vocab_size=10_000)  # its own check would be first
    with pytest.raises(EngineError, match=r"The server refused the request with status 400"):
        one(engine, [9_000])
    engine._admission.style = style
    assert len(one(engine).token_ids) == 6


def test_an_update_that_broke_off_is_repaired_by_the_next(server, engine, tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"not a file of weights")
    for path, body in (
        ("/start_weight_update", {}),
        ("/update_weights", {"update_info": {"path": str(tmp_path / "bad.safetensors")}}),
    ):
        request = urllib.request.Request(
            server[0] + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            urllib.request.urlopen(request).close()
        except urllib.error.HTTPError as error:
            assert path == "/update_weights"
            error.close()
    publish(engine, vllm_policy(seed=1), 2)
    assert_exact(vllm_policy(seed=1).build_model(), prompt(9), one(engine, prompt(9)))


def test_one_engine_does_not_use_what_another_published(server, engine):
    other = server_engine(server[0])
    publish(other, vllm_policy(seed=1))
    third = server_engine(server[0])
    with pytest.raises(EngineError, match=r"has the weights"):
        one(third)
    third.close()
    assert_exact(vllm_policy().build_model(), prompt(9), one(engine, prompt(9)))  # puts its own back
    other.close()


def test_a_dead_endpoint_beside_a_living_one_costs_nothing_but_a_warning(server, caplog):
    dead = f"http://127.0.0.1:{free_port()}"
    engine = server_engine(dead, server[0])
    publish(engine, vllm_policy())
    assert f"{dead} is not in the pool: it broke the connection" in caplog.text
    assert len(one(engine).token_ids) == 6
    engine.close()


def test_killing_the_only_server_in_mid_batch_is_an_error_that_says_what_to_do(server, engine):
    url, kill = server

    async def run():
        # So many that a machine on which this process waits long has not answered all of them before the kill.
        tasks = [asyncio.create_task(engine.generate(prompt(5, n), params(150))) for n in range(64)]
        while engine._pool.endpoints[0].num_in_flight < 8:
            await asyncio.sleep(0.001)
        kill()
        return await asyncio.gather(*tasks, return_exceptions=True)

    errors = [each for each in asyncio.run(run()) if isinstance(each, BaseException)]
    assert errors
    assert all(isinstance(error, EngineError) for error in errors)
    assert f"{url}: it broke the connection" in str(errors[0])
    assert "restart those that ended" in str(errors[0])
    with pytest.raises(EngineError, match=r"No vLLM server is left"):
        publish(engine, vllm_policy())
