"""Folders that are written here load elsewhere, appear whole or not at all, and never replace what is not theirs."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.policy.hf_folder import MARK, FolderWriter
from aepo_lightning.policy.publishing.gather import base_weights, low_rank_updates, named_weights, trained_weights
from aepo_lightning.policy.source import PretrainedPolicy
from tests.support.adapters import LARGE, SMALL, adapted_network, merged_by_hand
from tests.support.builders import tiny_policy
from tests.support.extras import needs

BOTH = pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
IDS = torch.tensor([[5, 6, 7, 8, 9]])


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def same(weights, others):
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


def write(target, policy, weights=None, dtype=None, **options):
    weights = policy.build_model().named_parameters() if weights is None else weights
    FolderWriter(target=target, source=policy, **options).write_model(weights, dtype)


@BOTH
@pytest.mark.parametrize("shard_bytes", [1 << 30, 20_000], ids=["one_file", "several_files"])
def test_a_model_loads_in_transformers_with_the_same_bits(tmp_path, is_tied, shard_bytes):
    policy = tiny_policy(tie_word_embeddings=is_tied)
    write(tmp_path / "model", policy, shard_bytes=shard_bytes)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    expected = policy.build_model()
    assert same(dict(model.named_parameters()), dict(expected.named_parameters()))
    assert torch.equal(logits(model), logits(expected))
    files = sorted(path.name for path in (tmp_path / "model").glob("*.safetensors"))
    assert (len(files) == 1) == (shard_bytes == 1 << 30)
    if len(files) > 1:
        assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
        index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"].values()) == set(files)
        assert index["metadata"]["total_size"] == sum(p.numel() * 4 for p in expected.parameters())
        assert max(map(os.path.getsize, (tmp_path / "model").glob("*.safetensors"))) < 20_000 + 268 * 32 * 4 + 2000
    assert not list(tmp_path.glob("*.partial"))


def test_a_tied_weight_under_both_names_is_written_once(tmp_path):
    policy = tiny_policy(tie_word_embeddings=True)
    write(tmp_path / "model", policy, policy.build_model().state_dict().items())
    assert "lm_head.weight" not in load_file(tmp_path / "model" / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(logits(model), logits(policy.build_model()))


def test_configuration_tokenizer_and_generation_settings_are_there(tmp_path):
    policy = tiny_policy()
    model = policy.build_model()
    model.set_attn_implementation("eager")  # what a trainer does to the configuration is nobody else's business
    write(tmp_path / "model", policy, model.named_parameters(), dtype=torch.bfloat16)
    plain = json.loads((tmp_path / "model" / "config.json").read_text())
    assert plain["architectures"] == ["Qwen3ForCausalLM"]
    assert plain["dtype"] == "bfloat16"
    assert plain["use_cache"] is True
    assert not any("attn_implementation" in name for name in plain)
    assert policy.config.use_cache is False
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer("abc").input_ids == policy.tokenizer("abc").input_ids
    assert GenerationConfig.from_pretrained(tmp_path / "model").eos_token_id == policy.tokenizer.eos_token_id
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert loaded.dtype == torch.bfloat16
    assert same(dict(loaded.named_parameters()), {name: weight.bfloat16() for name, weight in model.named_parameters()})


def test_generation_settings_beside_the_first_weights_are_kept(tmp_path):
    write(tmp_path / "first", tiny_policy())
    GenerationConfig(temperature=0.6, top_p=0.95, do_sample=True).save_pretrained(tmp_path / "first")
    policy = PretrainedPolicy(name_or_path=str(tmp_path / "first"))
    write(tmp_path / "second", policy)
    assert GenerationConfig.from_pretrained(tmp_path / "second").top_p == 0.95
    assert torch.equal(logits(policy.build_model()), logits(tiny_policy().build_model()))


@BOTH
def test_a_merged_adapter_gives_the_logits_that_it_gave_beside_the_weights(tmp_path, is_tied):
    needs("peft", "lora")
    policy = tiny_policy(tie_word_embeddings=is_tied)
    network = adapted_network(policy)
    write(tmp_path / "model", policy, trained_weights(network))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert same(dict(model.named_parameters()), merged_by_hand(network))
    assert same(dict(model.named_parameters()), dict(named_weights(network)))
    # W x + B A x against (W + B A) x, both rounded in float32.
    torch.testing.assert_close(logits(model), logits(network.model), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("lora", [SMALL, LARGE], ids=["some layers", "all layers"])
def test_an_adapter_loads_in_peft_with_the_same_bits_and_logits(tmp_path, lora):
    peft = pytest.importorskip("peft", reason="needs the `lora` extra")
    policy = tiny_policy()
    network = adapted_network(policy, lora)
    write(tmp_path / "base", policy, base_weights(network))
    writer = FolderWriter(target=tmp_path / "adapter", source=policy)
    writer.write_adapter(lora, low_rank_updates(network), str(tmp_path / "base"))
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert torch.equal(logits(model), logits(network.model))
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (lora.rank, lora.alpha, 0.0)
    merged = model.merge_and_unload()
    for name, weight in merged_by_hand(network).items():
        # peft adds in another order.
        torch.testing.assert_close(merged.get_parameter(name).detach(), weight, atol=1e-6, rtol=1e-5)


def test_an_earlier_export_is_replaced_and_an_empty_folder_used(tmp_path):
    (tmp_path / "model").mkdir()
    for seed in (1, 2):
        policy = tiny_policy()
        policy.seed = seed
        write(tmp_path / "model", policy)
        assert (tmp_path / "model" / MARK).is_file()
        found = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "model").named_parameters())
        assert same(found, dict(policy.build_model().named_parameters()))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_is_not_an_export_is_replaced_only_where_that_is_allowed(tmp_path):
    target = tmp_path / "mine"
    target.mkdir()
    (target / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match=r"must be new or an earlier export, but .*mine .*`--overwrite`"):
        write(target, tiny_policy())
    with pytest.raises(ConfigError, match=r"thesis.txt has other content. Name another folder\."):
        write(target / "thesis.txt", tiny_policy(), overwrite=True)
    assert (target / "thesis.txt").read_text() == "years of work"
    write(target, tiny_policy(), overwrite=True)
    assert not (target / "thesis.txt").exists()


def broken_weights(policy, fault):
    weights = dict(policy.build_model().named_parameters())
    if fault == "missing":
        del weights["model.norm.weight"]
    elif fault == "unknown":
        weights["model.layers.7.mlp.up_proj.weight"] = torch.zeros(2, 2)
    elif fault == "shape":
        weights["model.norm.weight"] = torch.zeros(3)
    return weights.items()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing", r"1 are missing, 'model\.norm\.weight' among them"),
        ("unknown", r"has no weight named 'model\.layers\.7\.mlp\.up_proj\.weight'"),
        ("shape", r"'model\.norm\.weight' must have shape \(32,\), but got \(3,\)"),
    ],
    ids=lambda value: value if " " not in value else "",
)
def test_weights_of_another_model_are_refused_and_the_earlier_export_stays(tmp_path, fault, message):
    policy = tiny_policy()
    write(tmp_path / "model", policy)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "model").iterdir()}
    with pytest.raises(DataError, match=message):
        write(tmp_path / "model", policy, broken_weights(policy, fault))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "model").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_leaves_the_earlier_export_and_no_rubbish(tmp_path):
    policy = tiny_policy()
    write(tmp_path / "model", policy)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "model").iterdir()}

    def weights():
        yield from list(policy.build_model().named_parameters())[:5]
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match=r"No space left on device\. Make room .*nothing was overwritten"):
        write(tmp_path / "model", policy, weights(), shard_bytes=2000)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "model").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_below_a_file_is_an_error_with_a_way_out(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="must be a folder that can be written"):
        write(tmp_path / "file" / "model", tiny_policy())


def test_what_a_killed_export_left_is_cleared_away(tmp_path):
    (tmp_path / "model.partial").mkdir()
    (tmp_path / "model.partial" / "model-00099.safetensors").write_text("half")
    write(tmp_path / "model", tiny_policy())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert not list((tmp_path / "model").glob("*99*"))


def test_weights_need_not_outlive_the_next_one(tmp_path):
    policy = tiny_policy()

    def weights():
        for name, weight in policy.build_model().named_parameters():
            passing = weight.detach().clone()
            yield name, passing
            passing.fill_(float("nan"))  # as when a sharded unit is freed

    write(tmp_path / "model", policy, weights())
    found = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "model").named_parameters())
    assert same(found, dict(policy.build_model().named_parameters()))
