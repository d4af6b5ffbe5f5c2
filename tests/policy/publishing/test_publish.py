"""Weights leave the trainer under their Hugging Face names, and an engine that has them is the trainer's policy."""

import asyncio

import pytest
import torch

from aepo_lightning.contracts.generation import SamplingParams
from aepo_lightning.engines import TransformersEngine
from aepo_lightning.errors import DataError, EngineError
from aepo_lightning.policy.network import PolicyNetwork
from aepo_lightning.policy.publishing.archive import WeightsArchive
from aepo_lightning.policy.publishing.gather import named_weights, trained_weights
from aepo_lightning.policy.publishing.publish import publish
from tests.support.adapters import adapted_network, teach
from tests.support.builders import tiny_policy
from tests.support.extras import needs
from tests.support.training import perturb

BOTH = pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])


@BOTH
def test_names_and_values_are_those_of_the_hugging_face_model(is_tied):
    policy = tiny_policy(tie_word_embeddings=is_tied)
    model = policy.build_model()
    found = dict(named_weights(PolicyNetwork(policy.build_model())))
    expected = dict(model.named_parameters())
    assert found.keys() == expected.keys()
    assert ("lm_head.weight" in found) == (not is_tied)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not any(weight.requires_grad for weight in found.values())


@BOTH
def test_a_saved_model_loads_what_was_named(is_tied):
    policy = tiny_policy(tie_word_embeddings=is_tied)
    network = PolicyNetwork(policy.build_model())
    perturb(network)
    other = policy.build_model()
    result = other.load_state_dict(dict(named_weights(network)), strict=False)
    assert result.missing_keys == (["lm_head.weight"] if is_tied else [])
    assert not result.unexpected_keys
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), network.model.parameters(), strict=True))


def sample(engine, prompt=(5, 6, 7)):
    return asyncio.run(engine.generate(list(prompt), SamplingParams(max_tokens=8, seed=3)))


@BOTH
def test_log_probs_of_the_engine_are_the_trainers_after_publishing(is_tied):
    policy = tiny_policy(tie_word_embeddings=is_tied)
    engine = TransformersEngine(policy, max_num_seqs=2, max_model_len=64)
    network = PolicyNetwork(policy.build_model())
    before = sample(engine)
    perturb(network)
    publish(network, engine, version=7)
    after = sample(engine)
    ids = torch.tensor([[5, 6, 7, *after.token_ids]])
    mask = torch.arange(ids.shape[1] - 1)[None] >= 2
    with torch.no_grad():
        scores = network(ids, mask)
    assert engine.weights_version == 7
    assert after.logprobs != before.logprobs
    # Two float32 computations of the same sums in another order.
    torch.testing.assert_close(scores.logprobs[mask], torch.tensor(after.logprobs), atol=5e-6, rtol=5e-6)
    torch.testing.assert_close(scores.entropies[mask], torch.tensor(after.entropies), atol=5e-6, rtol=5e-6)


def test_what_the_engine_holds_is_a_copy():
    policy = tiny_policy()
    engine = TransformersEngine(policy, max_num_seqs=2, max_model_len=64)
    network = PolicyNetwork(policy.build_model())
    publish(network, engine, version=1)
    before = sample(engine)
    perturb(network)
    assert sample(engine) == before


def test_an_engine_of_another_architecture_refuses():
    network = PolicyNetwork(tiny_policy(num_hidden_layers=3).build_model())
    engine = TransformersEngine(tiny_policy(), max_num_seqs=2, max_model_len=64)
    with pytest.raises(EngineError, match=r"no weight named 'model\.layers\.2\."):
        publish(network, engine, version=1)


def test_an_archive_keeps_the_newest_versions_whole(tmp_path):
    policy = tiny_policy()
    network = PolicyNetwork(policy.build_model())
    archive = WeightsArchive(tmp_path / "deep", keep=2)
    assert archive.versions() == []
    for version in (0, 4, 8):
        archive.save(network, version)
        last = {name: weight.clone() for name, weight in named_weights(network)}
        perturb(network)
    assert archive.versions() == [4, 8]
    found = archive.load(8)
    assert found.keys() == last.keys()
    assert all(torch.equal(found[name], last[name]) for name in last)
    assert [path.suffix for path in (tmp_path / "deep").iterdir()] == [".safetensors"] * 2


def test_an_archive_that_keeps_nothing_and_a_rank_that_does_not_write_leave_no_file(tmp_path):
    network = PolicyNetwork(tiny_policy().build_model())
    WeightsArchive(tmp_path / "a", keep=0).save(network, 0)
    WeightsArchive(tmp_path / "b").save(network, 0, is_writer=False)
    assert list(tmp_path.iterdir()) == []


def test_a_version_that_was_not_kept_is_named(tmp_path):
    with pytest.raises(DataError, match=r"00000007.safetensors must exist, but the versions kept are \[\]"):
        WeightsArchive(tmp_path).load(7)
    with pytest.raises(ValueError, match="`keep` must be -1"):
        WeightsArchive(tmp_path, keep=-2)


def test_an_archive_of_an_adapter_holds_the_bits_that_the_engine_generates_with(tmp_path):
    needs("peft", "lora")
    policy = tiny_policy()
    network = adapted_network(policy)
    archive, engine = WeightsArchive(tmp_path), TransformersEngine(policy, max_num_seqs=2, max_model_len=64)
    found = []
    for version in (1, 2):
        teach(network, seed=version)
        publish(network, engine, version)
        archive.save(network, version)
        found.append(sample(engine))
    assert found[0] != found[1]
    replaying = TransformersEngine(policy, max_num_seqs=2, max_model_len=64)
    for version, expected in zip((1, 2), found, strict=True):
        replaying.load_weights(archive.load(version).items(), version)
        assert sample(replaying) == expected


def test_weights_in_the_trained_precision_are_the_same_where_nothing_is_sharded():
    for network in (PolicyNetwork(tiny_policy().build_model()), adapted_network()):
        found, expected = dict(trained_weights(network)), dict(named_weights(network))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
