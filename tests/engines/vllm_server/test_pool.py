"""The server pool against scripted servers: routing, retries, silence, limits, ends. No vLLM needed."""

import asyncio

import pytest

from aepo_lightning.contracts.engine import Engine, EntropyReporting
from aepo_lightning.contracts.generation import FinishReason
from aepo_lightning.errors import EngineError
from tests.support.vllm_parts import generate, one, params, prompt
from tests.support.vllm_server_fake import ENTROPY, FakeServer, serve, token_at
from tests.support.vllm_server_parts import free_port, server_engine, until

FAILURES = [
    *(
        500,
        503,
        429,
        "close",
        "garbage",
        "other_json",
        "short",
        "overclaimed",
        "short_of_max",
        "no_tokens",
        "no_logprobs",
    ),
    *("few_logprobs", "not_a_number", "plain_rank", "outside", "aborted", "stale", "elsewhere", "deep_json"),
    *("a_nan_of_json", "a_float_token", "of_another_request", "no_versions"),
]


@pytest.fixture
def two():
    with serve(FakeServer(), FakeServer()) as servers:
        yield servers


@pytest.fixture
def engine(two):
    engine = server_engine(two[0].url, two[1].url)
    yield engine
    engine.close()


@pytest.fixture
def alone():
    with serve(FakeServer()) as server:
        yield server


def usable(engine):
    return [endpoint.is_usable for endpoint in engine._pool.endpoints]


def first_request(two, behaviour):
    """Make the first of all requests behave in some way, whichever endpoint it goes to."""
    for server in two:
        server.script = lambda _: behaviour if sum(len(each.requests) for each in two) == 1 else "ok"


def test_the_engine_satisfies_its_protocols(engine):
    assert isinstance(engine, Engine)
    assert isinstance(engine, EntropyReporting)
    assert engine.max_model_len == 160


def test_tokens_and_scores_come_from_the_server_and_the_seed_goes_to_it(alone):
    engine = server_engine(alone.url)
    generation = one(engine, prompt(40), params(4, seed=7, temperature=0.5, top_p=0.9, num_top_logprobs=2))
    assert generation.token_ids == [token_at(position) for position in range(40, 44)]
    assert generation.logprobs == [-0.5] * 4
    assert generation.entropies == [ENTROPY] * 4
    assert generation.top_logprobs == [[-0.5, -2.0]] * 4
    assert generation.num_cached_tokens == 32
    assert generation.finish_reason is FinishReason.LENGTH
    assert alone.requests[0]["token_ids"] == prompt(40)
    assert alone.requests[0]["sampling_params"]["extra_args"] == {"aepo_draw": [7, 0.5, 0.9, 0]}
    engine.close()


def test_a_probe_splits_a_generation_and_both_parts_go_to_the_same_endpoint(two, engine):
    probes = []
    whole = one(engine, prompt(9), params(10, num_probe_tokens=4), probes.append)
    assert [probe.token_ids for probe in probes] == [whole.token_ids[:4]]
    assert whole.token_ids == [token_at(position) for position in range(9, 19)]
    (asked,) = [server.requests for server in two if server.requests]
    assert [request["sampling_params"]["max_tokens"] for request in asked] == [4, 6]


@pytest.mark.parametrize("failure", FAILURES, ids=str)
def test_a_request_that_fails_is_answered_by_another_endpoint(two, engine, failure):
    first_request(two, failure)
    generation = one(engine, prompt(9), params(3))
    assert generation.token_ids == [token_at(position) for position in range(9, 12)]
    assert [len(server.requests) for server in two] == [1, 1]
    assert sorted(usable(engine)) == [False, True]


def test_what_was_reported_as_a_probe_stays_when_its_endpoint_dies(two, engine):
    for server in two:
        server.script = lambda _: "close" if sum(len(each.requests) for each in two) == 2 else "ok"
    probes = []
    whole = one(engine, prompt(9), params(10, num_probe_tokens=4), probes.append)
    assert [probe.token_ids for probe in probes] == [whole.token_ids[:4]]
    assert whole.token_ids == [token_at(position) for position in range(9, 19)]


def test_an_endpoint_that_failed_comes_back_when_it_is_healthy(two):
    engine = server_engine(two[0].url, two[1].url, health_interval_s=0.02)
    one(engine)
    two[0].is_healthy = False
    until(lambda: usable(engine) == [False, True])
    for number in range(4):
        one(engine, prompt(5, number))
    assert len(two[1].requests) >= 4
    two[0].is_healthy = True
    until(lambda: usable(engine) == [True, True])
    engine.close()


def test_a_request_that_hangs_is_aborted_on_its_server_and_answered_by_another(two):
    first_request(two, "hang")
    engine = server_engine(two[0].url, two[1].url, request_timeout_s=5.0)
    assert one(engine, prompt(9), params(3)).token_ids == [token_at(position) for position in range(9, 12)]
    until(lambda: two[0].aborted or two[1].aborted)
    hung = two[0] if two[0].aborted else two[1]
    until(lambda: hung.aborted == [f"generate-tokens-{hung.requests[0]['request_id']}"])
    until(lambda: hung.num_running == 0)
    engine.close()


def test_what_waits_for_a_server_that_fell_silent_is_answered_by_another_long_before_its_deadline(two):
    first_request(two, "hang")
    engine = server_engine(two[0].url, two[1].url, health_interval_s=0.05, health_timeout_s=3.0)

    async def run():
        task = asyncio.create_task(engine.generate(prompt(9), params(3)))
        while not any(server.requests for server in two):
            await asyncio.sleep(0.005)
        (silent,) = [server for server in two if server.requests]
        silent.is_silent = True
        return await asyncio.wait_for(task, 60)

    assert asyncio.run(run()).token_ids == [token_at(position) for position in range(9, 12)]
    engine.close()


def test_cancelling_a_request_aborts_it_on_its_server_and_leaves_nothing_running(alone):
    alone.script = lambda body: "wait" if body["sampling_params"]["max_tokens"] == 50 else "ok"
    engine = server_engine(alone.url)

    async def run():
        doomed = [asyncio.create_task(engine.generate(prompt(9, n), params(50))) for n in range(20)]
        while len(alone.requests) < 16:  # four more wait for a slot
            await asyncio.sleep(0.005)
        for task in doomed:
            task.cancel()
        results = await asyncio.gather(*doomed, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)
        return len(asyncio.all_tasks())

    assert asyncio.run(run()) == 1  # the test itself
    # A request that waited may get the slot of one that was cancelled just before it is cancelled itself.
    until(lambda: alone.num_running == 0)
    until(lambda: {f"generate-tokens-{request['request_id']}" for request in alone.requests} <= {*alone.aborted})
    assert engine._pool.endpoints[0].num_in_flight == 0
    assert len(one(engine).token_ids) == 6
    engine.close()


def test_when_no_server_is_left_the_error_names_each_and_what_to_do():
    ports = free_port(), free_port()
    engine = server_engine(*(f"http://127.0.0.1:{port}" for port in ports))
    with pytest.raises(EngineError, match="No vLLM server is left") as caught:
        one(engine)
    for port in ports:
        assert f"http://127.0.0.1:{port}: it broke the connection of /health" in str(caught.value)
    assert "restart those that ended" in str(caught.value)
    assert "python -m aepo_lightning.engines.vllm_server.launch MODEL" in str(caught.value)
    engine.close()


def test_a_request_that_fails_everywhere_ends_after_the_retries(alone):
    alone.script = lambda _: 500
    engine = server_engine(alone.url, max_retries=2)
    with pytest.raises(EngineError, match=r"A request failed 3 times(.|\n)*with status 500: scripted"):
        one(engine)
    assert len(alone.requests) == 3
    engine.close()


def test_a_server_that_blames_the_request_is_believed(two, engine):
    for server in two:
        server.script = lambda _: 400
    with pytest.raises(EngineError, match=r"The server refused the request with status 400: scripted"):
        one(engine)
    assert sum(len(server.requests) for server in two) == 1
    assert usable(engine) == [True, True]


def test_an_endpoint_gets_at_most_max_num_seqs_requests_at_once(alone):
    alone.script = lambda _: "wait" if len(alone.requests) <= 3 else "ok"
    engine = server_engine(alone.url, max_num_seqs=3)

    async def run():
        tasks = [asyncio.create_task(engine.generate(prompt(9, n), params(2))) for n in range(12)]
        while len(alone.requests) < 3:
            await asyncio.sleep(0.005)
        alone.open.set()
        return await asyncio.gather(*tasks)

    assert len(asyncio.run(run())) == 12
    assert alone.max_running == 3
    engine.close()


def test_branches_go_where_their_trunk_went_and_other_questions_elsewhere(two, engine):
    trunks = [prompt(70, salt) for salt in range(8)]
    for trunk in trunks:
        one(engine, trunk, params(40))
    assert [len(server.requests) for server in two] == [4, 4]
    for trunk in trunks[::2] + trunks[1::2]:  # not the order in which taking turns would give the same
        (home,) = [server for server in two if any(r["token_ids"] == trunk for r in server.requests)]
        branch = trunk + [token_at(position) for position in range(70, 100)] + [3, 4, 5]
        one(engine, branch, params(4))
        assert home.requests[-1]["token_ids"] == branch


def test_a_request_that_failed_goes_elsewhere_even_if_its_endpoint_is_back_already_and_knows_its_prefix(two):
    engine = server_engine(two[0].url, two[1].url, health_interval_s=0.001)
    one(engine, prompt(70))
    (home,) = [server for server in two if server.requests]
    home.script = lambda _: 500
    one(engine, prompt(70))
    assert len(home.requests) == 2
    engine.close()


def test_the_second_part_of_a_generation_stays_however_loaded_its_endpoint_is(two, engine):
    one(engine)
    pool = engine._pool
    for loaded in pool.endpoints:
        loaded.num_in_flight += 100
        assert asyncio.run(pool._choose(prompt(70), [], loaded)) is loaded
        assert asyncio.run(pool._choose(prompt(70, 1), [], None)) is not loaded
        loaded.num_in_flight -= 100


def test_what_waits_for_a_slot_of_an_endpoint_that_fails_goes_elsewhere_without_asking_it(two):
    for server in two:
        server.script = lambda _: "wait_and_fail" if sum(len(each.requests) for each in two) == 1 else "ok"
    engine = server_engine(two[0].url, two[1].url, max_num_seqs=1)

    async def run():
        tasks = [asyncio.create_task(engine.generate(prompt(70), params(3, seed=n))) for n in range(3)]
        while (
            sum(endpoint.num_in_flight for endpoint in engine._pool.endpoints) < 3
            or not two[0].requests + two[1].requests
        ):
            await asyncio.sleep(0.005)
        (home,) = [server for server in two if server.requests]
        home.open.set()
        await asyncio.gather(*tasks)
        return home

    assert len(asyncio.run(run()).requests) == 1
    engine.close()


def test_a_flood_of_branches_does_not_leave_the_other_endpoint_idle(two, engine):
    for server in two:
        server.script = lambda _: "wait"

    async def run():
        tasks = [asyncio.create_task(engine.generate(prompt(70), params(2, seed=n))) for n in range(16)]
        while sum(len(server.requests) for server in two) < 16:
            await asyncio.sleep(0.005)
        for server in two:
            server.open.set()
        await asyncio.gather(*tasks)

    asyncio.run(run())
    assert min(len(server.requests) for server in two) >= 5


def test_requests_from_several_event_loops_share_the_connections(engine):
    first = one(engine)
    assert one(engine) == first
    assert len(generate(engine, [(prompt(5, n), params(2)) for n in range(20)])) == 20


@pytest.mark.parametrize(
    ("tokens", "match"),
    [
        ([], "must have between 1 and 159 tokens, but got 0"),
        ([3] * 160, "must have between 1 and 159 tokens, but got 160"),
        ([3, 268], r"must be in \[0, 268\), but got 3 to 268"),
    ],
    ids=["empty", "too_long", "out_of_vocabulary"],
)
def test_a_prompt_that_cannot_be_served_is_refused_before_it_is_sent(two, engine, tokens, match):
    with pytest.raises(EngineError, match=match):
        one(engine, tokens)
    assert not any(server.calls for server in two)


def test_closing_fails_what_still_runs_and_refuses_more(alone):
    alone.script = lambda _: "wait"
    engine = server_engine(alone.url)

    async def run():
        task = asyncio.create_task(engine.generate(prompt(5), params(3)))
        while not alone.requests:
            await asyncio.sleep(0.005)
        engine.close()
        return await asyncio.gather(task, return_exceptions=True)

    (error,) = asyncio.run(run())
    assert isinstance(error, EngineError)
    assert "The engine was closed" in str(error)
    engine.close()
    with pytest.raises(EngineError, match=r"The engine was closed\. Build a new one"):
        one(engine)
