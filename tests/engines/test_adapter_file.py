"""An adapter on its way to servers: a small file beside the files of the base, merged by whoever reads them."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from aepo_lightning.contracts.engine import AdapterEngine
from aepo_lightning.engines.adapters import merged_with_file, packed_updates
from aepo_lightning.errors import EngineError
from aepo_lightning.policy.publishing.gather import base_weights, low_rank_updates
from aepo_lightning.policy.publishing.publish import publish
from tests.support.adapters import adapted_network, merged_by_hand, teach
from tests.support.extras import needs
from tests.support.vllm_parts import make_engine, one, params, prompt, vllm_policy
from tests.support.vllm_server_fake import FakeServer, serve
from tests.support.vllm_server_parts import server_engine

pytestmark = pytest.mark.filterwarnings("ignore:::vllm", "ignore::DeprecationWarning", "ignore::FutureWarning")
needs("peft", "lora")


def same(weights, others):
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


def size_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def test_weights_with_a_file_are_the_merged_weights(tmp_path):
    network = adapted_network()
    save_file(dict(packed_updates(low_rank_updates(network))), tmp_path / "adapter.safetensors")
    weights = {name: weight.clone() for name, weight in base_weights(network)}
    found = dict(merged_with_file(weights, tmp_path / "adapter.safetensors", torch.device("cpu")))
    assert same(found, merged_by_hand(network))
    assert not same(found, weights)


@pytest.mark.parametrize("chunk_bytes", [1 << 30, 10_000], ids=["one_file", "several_files"])
def test_servers_get_the_base_once_and_merge_every_adapter(tmp_path, chunk_bytes):
    policy = vllm_policy()
    network = adapted_network(policy)
    with serve(FakeServer(), FakeServer()) as servers:
        engine = server_engine(
            *(server.url for server in servers), policy=policy, chunk_bytes=chunk_bytes, weights_dir=str(tmp_path)
        )
        assert isinstance(engine, AdapterEngine)
        publish(network, engine, 1)
        (base,) = {path.parent for path in tmp_path.rglob("*.safetensors")} - {adapter_folder(tmp_path)}
        before = {path: path.stat().st_mtime_ns for path in base.iterdir()}
        assert all(same(server.weights, merged_by_hand(network)) for server in servers)
        for step in (2, 3):
            teach(network, seed=step)
            publish(network, engine, step)
            assert all(same(server.weights, merged_by_hand(network)) for server in servers)
            assert all(server.version.endswith(f"-v{step}") for server in servers)
        assert {path: path.stat().st_mtime_ns for path in base.iterdir()} == before, "the base was written again"
        assert size_of(adapter_folder(tmp_path)) < size_of(base) / 10
        servers[0].version, servers[0].weights = "default", {}  # restarted
        servers[1].is_healthy = False
        servers[1].script = lambda _: 500
        assert len(one(engine, prompt(5), params(3)).token_ids) == 3
        assert same(servers[0].weights, merged_by_hand(network))
        engine.close()
    assert list(tmp_path.iterdir()) == []


def adapter_folder(root):
    """The folder that holds scales: no weights have them."""
    (found,) = {path.parent for path in root.rglob("*.safetensors") if any(map(is_scale, load_file(path)))}
    return found


def is_scale(name):
    return name.endswith(".scale")


def test_whole_weights_take_the_place_of_base_and_adapter(tmp_path):
    policy = vllm_policy()
    network = adapted_network(policy)
    with serve(FakeServer()) as server:
        engine = server_engine(server.url, policy=policy, weights_dir=str(tmp_path))
        publish(network, engine, 1)
        assert engine.base
        engine.load_weights(policy.build_model().named_parameters(), 2)
        assert same(server.weights, dict(policy.build_model().named_parameters()))
        assert engine.base == ""
        assert len(list(tmp_path.iterdir())) == 1
        engine.close()


def test_an_adapter_without_its_base_or_with_other_weights_is_refused(tmp_path):
    policy = vllm_policy()
    network = adapted_network(policy)
    with serve(FakeServer()) as server:
        engine = server_engine(server.url, policy=policy, weights_dir=str(tmp_path))
        with pytest.raises(EngineError, match="Publish them with `load_base` first"):
            engine.load_adapter(low_rank_updates(network), 1)
        publish(network, engine, 1)
        with pytest.raises(EngineError, match=r"'model\.layers\.0\.mlp\.down_proj\.weight' differs"):
            engine.load_adapter(list(low_rank_updates(network))[3:], 1)
        with pytest.raises(EngineError, match="The last publication of weights failed"):
            one(engine)
        publish(network, engine, 2)
        assert same(server.weights, merged_by_hand(network))
        engine.close()


def test_a_server_that_cannot_read_the_adapter_is_told_apart_from_one_that_broke(tmp_path):
    policy = vllm_policy()
    with serve(FakeServer()) as server:
        engine = server_engine(server.url, policy=policy, weights_dir=str(tmp_path))
        server.can_read = False
        with pytest.raises(EngineError, match="Set `weights_dir` to a folder that the trainer and all servers share"):
            publish(adapted_network(policy), engine, 1)
        engine.close()


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
@pytest.mark.slow
def test_a_real_worker_merges_what_it_reads(tmp_path, is_tied):
    needs("vllm", "vllm")
    policy = vllm_policy(tie_word_embeddings=is_tied)
    network = adapted_network(policy)
    engine = make_engine(
        policy,
        worker_extension_cls="aepo_lightning.engines.vllm_server.extension.Extension",
        weight_transfer_config={"backend": "aepo_file"},
    )
    engine.load_weights(merged_by_hand(network).items(), 0)
    expected = one(engine, prompt(40))
    weights = [(name, weight.clone()) for name, weight in base_weights(network)]
    for number in range(2):  # layers are split over two files
        save_file(dict(weights[number::2]), tmp_path / f"{number}.safetensors")
    save_file(dict(packed_updates(low_rank_updates(network))), tmp_path / "adapter.safetensors")
    engine.load_weights(weights, 0)
    assert one(engine, prompt(40)) != expected
    native = engine._core._llm
    native.init_weight_transfer_engine({"init_info": {}})
    native.start_weight_update()
    for number in range(2):
        info = {"path": str(tmp_path / f"{number}.safetensors"), "adapter": str(tmp_path / "adapter.safetensors")}
        native.update_weights({"update_info": info})
    native.finish_weight_update("new")
    native.reset_prefix_cache()
    assert one(engine, prompt(40)) == expected
    engine.close()
