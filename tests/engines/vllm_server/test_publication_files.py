"""Publishing to scripted servers: what they get, who is up to date, who may be behind. No vLLM needed."""

import asyncio
import gc
import logging
from pathlib import Path

import pytest
import torch
from aiohttp import web

from aepo_lightning.engines.vllm_server.launch import main, server_command, server_environment
from aepo_lightning.engines.vllm_server.publication_files import PublicationFiles
from aepo_lightning.engines.vllm_server.routes import PrefixRoutes
from aepo_lightning.errors import EngineError
from tests.support.vllm_parts import one, params, prompt, vllm_policy
from tests.support.vllm_server_fake import UPDATE_STEPS, FakeServer, serve
from tests.support.vllm_server_parts import free_port, server_engine, until


@pytest.fixture
def two():
    with serve(FakeServer(), FakeServer()) as servers:
        yield servers


@pytest.fixture
def alone():
    with serve(FakeServer()) as server:
        yield server


@pytest.fixture(scope="module")
def weights():
    return [dict(vllm_policy(seed=seed).build_model().named_parameters()) for seed in range(3)]


def publish(engine, weights, version=0):
    engine.load_weights(weights.items(), version)


def served(server):
    return len(server.requests)


def same(weights, others):
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.mark.parametrize("chunk_bytes", [1 << 30, 10_000], ids=["one_file", "several_files"])
def test_every_endpoint_gets_all_weights_in_the_order_that_vllm_asks_for(two, weights, chunk_bytes, tmp_path):
    engine = server_engine(*(server.url for server in two), chunk_bytes=chunk_bytes, weights_dir=str(tmp_path))
    publish(engine, weights[1], 5)
    assert engine.weights_version == 5
    for server in two:
        assert same(server.weights, weights[1])
        steps = [path for path in server.paths if path in UPDATE_STEPS]
        assert list(dict.fromkeys(steps)) == UPDATE_STEPS
        assert (steps.count("/update_weights") > 1) == (chunk_bytes == 10_000)
        assert server.version.endswith("-v5")
    (folder,) = tmp_path.iterdir()
    publish(engine, weights[2], 6)
    assert same(two[0].weights, weights[2])
    assert [server.paths.count("/v1/models") for server in two] == [1, 1]  # looked at once, not with every update
    assert not folder.exists()
    engine.close()
    assert list(tmp_path.iterdir()) == []


def test_tokens_come_from_servers_with_the_newest_weights(two, weights):
    engine = server_engine(*(server.url for server in two))
    one(engine)
    publish(engine, weights[0], 1)
    one(engine)
    two[0].version = two[1].version = "somebody else's"
    one(engine, prompt(9))  # found out by the answer, repaired, asked again
    assert any(server.version.endswith("-v1") for server in two)
    engine.close()


def test_a_server_that_was_restarted_gets_the_newest_weights_before_its_next_request(alone, weights):
    engine = server_engine(alone.url)
    publish(engine, weights[1])
    alone.version, alone.weights = "default", {}
    assert len(one(engine, prompt(5), params(3)).token_ids) == 3
    assert same(alone.weights, weights[1])
    engine.close()


def test_a_server_that_was_restarted_between_requests_is_noticed_and_gets_the_newest_weights(alone, weights):
    engine = server_engine(alone.url, health_interval_s=0.02)
    publish(engine, weights[1])
    alone.version, alone.weights = "default", {}
    until(lambda: same(alone.weights, weights[1]) and engine._pool.endpoints[0].is_usable)
    engine.close()


def test_an_endpoint_that_was_down_gets_the_newest_weights_when_it_comes_back(two, weights):
    engine = server_engine(*(server.url for server in two))
    two[1].is_healthy = False
    publish(engine, weights[1])
    for number in range(4):
        one(engine, prompt(5, number))
    assert [served(server) for server in two] == [4, 0]
    two[1].is_healthy, two[0].is_healthy = True, False
    two[0].script = lambda _: 500
    one(engine)
    assert served(two[1]) == 1
    assert same(two[1].weights, weights[1])
    engine.close()


@pytest.mark.parametrize(("max_staleness", "num_publications"), [(0, 1), (1, 2), (2, 3)], ids=str)
def test_an_endpoint_that_cannot_read_the_files_is_used_while_it_is_not_too_far_behind(
    two, weights, max_staleness, num_publications, caplog
):
    engine = server_engine(*(server.url for server in two), max_staleness=max_staleness)
    publish(engine, weights[0])
    two[1].can_read = False
    for number in range(num_publications):
        assert all(endpoint.is_usable for endpoint in engine._pool.endpoints)
        with caplog.at_level(logging.WARNING):
            publish(engine, weights[1], number)
    assert [endpoint.is_usable for endpoint in engine._pool.endpoints] == [True, False]
    assert ("keeps older weights: it cannot read published weights" in caplog.text) == (max_staleness > 0)
    assert "Set `weights_dir` to a folder that the trainer and all servers share" in caplog.text
    engine.close()


def test_an_update_that_broke_off_is_closed_and_begun_anew(alone, weights):
    engine = server_engine(alone.url)
    alone.can_start = False
    publish(engine, weights[1])
    assert same(alone.weights, weights[1])
    engine.close()


def test_a_publication_that_no_endpoint_took_is_an_error_and_stops_generation_until_one_succeeds(alone, weights):
    engine = server_engine(alone.url)
    one(engine)
    alone.is_healthy = False
    with pytest.raises(EngineError, match=r"No vLLM server is left(.|\n)*/health with status 503"):
        publish(engine, weights[1])
    with pytest.raises(EngineError, match=r"The last publication of weights failed\. Publish weights first"):
        one(engine)
    alone.is_healthy = True
    publish(engine, weights[1])
    assert len(one(engine).token_ids) == 6
    engine.close()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda w: {"model.extra": w["lm_head.weight"]} | w, "has no weight named 'model.extra'"),
        (lambda w: {n: t for n, t in w.items() if n != "lm_head.weight"}, "1 are missing"),
        (lambda w: w | {"model.embed_tokens.weight": w["lm_head.weight"][:1]}, "must have shape"),
    ],
    ids=["unknown", "missing", "shape"],
)
def test_wrong_weights_are_refused_before_a_server_hears_of_them(alone, weights, change, match):
    engine = server_engine(alone.url)
    taken = []
    wrong = change(weights[0])
    with pytest.raises(EngineError, match=match):
        engine.load_weights((taken.append(name) or (name, tensor) for name, tensor in wrong.items()), 0)
    assert taken == list(wrong)  # iterated to the end: other ranks take part in gathering
    assert "/pause" not in alone.paths
    engine.close()


def test_a_folder_that_cannot_be_written_is_an_error(alone, weights, tmp_path):
    (tmp_path / "file").write_text("")
    engine = server_engine(alone.url, weights_dir=str(tmp_path / "file"))
    with pytest.raises(EngineError, match=r"Weights could not be written below .*point `weights_dir` to another"):
        publish(engine, weights[0])
    engine.close()


def test_a_server_with_the_weights_of_another_run_is_refused_until_some_are_published(alone, weights):
    alone.version = "other-run-v9"
    engine = server_engine(alone.url, ready_timeout_s=1000.0)
    with pytest.raises(EngineError, match=r"has the weights \['other-run-v9'\], but must have one of \['default'\]"):
        one(engine)
    publish(engine, weights[0])
    assert len(one(engine).token_ids) == 6
    engine.close()


def test_weights_must_not_change_and_servers_must_not_sleep_while_requests_run(alone, weights):
    alone.script = lambda _: "wait"
    engine = server_engine(alone.url, sleep_level=1)

    async def run():
        task = asyncio.create_task(engine.generate(prompt(5), params(3)))
        while not alone.requests:
            await asyncio.sleep(0.005)
        with pytest.raises(EngineError, match="Weights must not change while requests run"):
            publish(engine, weights[0])
        with pytest.raises(EngineError, match="must not sleep while requests run"):
            engine.sleep()
        alone.open.set()
        return await task

    assert len(asyncio.run(run()).token_ids) == 3
    engine.close()


def test_servers_sleep_only_if_asked_to_and_wake_with_the_next_weights(two, weights):
    for level in (0, 1):
        engine = server_engine(*(server.url for server in two), sleep_level=level)
        publish(engine, weights[0])
        engine.sleep()
        assert [server.paths.count("/sleep") for server in two] == [level, level]
        if level:
            with pytest.raises(EngineError, match=r"The engine sleeps\. Publish weights first"):
                one(engine)
        publish(engine, weights[1])
        assert all(("/wake_up" in server.paths) == (level > 0) for server in two)
        assert len(one(engine).token_ids) == 6
        engine.close()


def test_a_server_that_fails_to_sleep_stays_awake_and_is_named(two, weights, caplog):
    engine = server_engine(*(server.url for server in two), sleep_level=1)
    publish(engine, weights[0])
    two[0]._sleep = lambda _: web.Response(status=503)
    engine.sleep()
    assert f"{two[0].url} was taken out of the pool: it answered /sleep?level=1&mode=wait with" in caplog.text
    assert "/sleep" in two[1].paths
    publish(engine, weights[1])
    assert len(one(engine).token_ids) == 6
    two[1]._sleep = lambda _: web.Response(status=404)
    with pytest.raises(
        EngineError, match=rf"able to sleep for `sleep_level=1`, but {two[1].url} answered .*`sleep_level=0`"
    ):
        engine.sleep()
    engine.close()


def test_files_are_closed_at_the_size_asked_for(tmp_path):
    files = PublicationFiles(str(tmp_path), chunk_bytes=80)
    publication = files.write([(str(i), torch.full((10,), float(i))) for i in range(5)], "name")
    assert [Path(path).name for path in publication.paths] == [f"{i:05d}.safetensors" for i in range(3)]
    files.clear()
    files.clear()
    assert list(tmp_path.iterdir()) == []


def test_files_do_not_outlive_what_wrote_them(tmp_path):
    files = PublicationFiles(str(tmp_path), chunk_bytes=80)
    files.write([("name", torch.zeros(3))], "name")
    assert len(list(tmp_path.iterdir())) == 1
    del files
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_follows_the_longest_known_prefix_if_that_is_most_of_it():
    routes = PrefixRoutes(block_size=4)
    routes.record([*range(8), 90, 91], 0)
    routes.record([*range(4), *range(50, 62)], 1)
    assert routes.find([*range(8), 1]) == 0
    assert routes.find([*range(4), *range(50, 58)]) == 1
    assert routes.find([*range(8), 90, 91]) == 0  # all of it, though it ends within a block
    assert routes.find([*range(4), *range(70, 90)]) is None  # the shared system prompt is not enough
    assert routes.find([9, 9, 9, 9, 9]) is None
    routes.clear()
    assert routes.find([*range(8), 1]) is None


def test_routes_forget_the_least_recently_used_prefix():
    routes = PrefixRoutes(block_size=1, max_entries=3)
    routes.record([1, 2, 3], 0)
    routes.record([7], 1)
    assert len(routes) == 3
    assert routes.find([7]) == 1
    assert routes.find([1, 2]) == 0  # by its second token; the first one's entry is gone


def test_the_launch_command_sets_what_the_pool_needs_and_users_have_the_last_word(monkeypatch):
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    command = server_command("folder", ["--port", "9", "--block-size", "64"], is_cpu=True)
    assert command[1:5] == ["-m", "vllm.entrypoints.openai.api_server", "--model", "folder"]
    assert "--enable-scale-out" in command
    assert command[-4:] == ["--port", "9", "--block-size", "64"]
    assert "--kv-cache-memory-bytes" not in server_command("folder")
    assert server_environment()["VLLM_SERVER_DEV_MODE"] == "1"
    assert server_environment()["VLLM_USE_V2_MODEL_RUNNER"] == "1"


@pytest.mark.parametrize("arguments", [[], ["--port", "8000"]], ids=str)
def test_a_server_is_not_started_without_a_model(monkeypatch, arguments):
    monkeypatch.setattr("sys.argv", ["launch", *arguments])
    with pytest.raises(SystemExit, match=r"usage: python -m aepo_lightning.engines.vllm_server.launch MODEL"):
        main()


def test_an_address_where_nothing_listens_is_named_when_weights_are_published(weights):
    url = f"http://127.0.0.1:{free_port()}"
    engine = server_engine(url)
    with pytest.raises(EngineError, match=f"{url}: it broke the connection of /health"):
        publish(engine, weights[0])
    engine.close()
