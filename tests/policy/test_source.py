"""Policies: built from a configuration alike every time, and loaded from a folder as they were saved."""

import json

import pytest
import torch
from transformers import AutoConfig

from aepo_lightning.contracts.policy import PolicySource, StoredWeights
from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.policy import source
from aepo_lightning.policy.source import PretrainedPolicy, ScratchPolicy
from tests.support.builders import tiny_policy, word_tokenizer


def states_equal(left, right):
    left, right = left.state_dict(), right.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture
def folder(tmp_path):
    """A policy saved as Hugging Face does."""
    policy = tiny_policy(tokenizer=word_tokenizer())
    policy.build_model().save_pretrained(tmp_path)
    policy.tokenizer.save_pretrained(tmp_path)
    return policy, tmp_path


def test_both_policies_satisfy_the_protocol(folder):
    assert isinstance(tiny_policy(), PolicySource)
    assert isinstance(PretrainedPolicy(name_or_path=str(folder[1])), PolicySource)


def test_a_seed_gives_the_same_weights_every_time_and_another_seed_others():
    policy, other = tiny_policy(), tiny_policy()
    other.seed = 1
    assert states_equal(policy.build_model(), tiny_policy().build_model())
    assert states_equal(policy.build_model(), policy.build_model())
    assert not states_equal(policy.build_model(), other.build_model())


def test_models_do_not_share_weights():
    policy = tiny_policy()
    model, other = policy.build_model(), policy.build_model()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert other.lm_head.weight.abs().sum() > 0


def test_building_leaves_the_global_random_state_alone_and_does_not_depend_on_it():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    model = tiny_policy().build_model()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert states_equal(model, tiny_policy().build_model())


def test_the_configuration_follows_the_tokenizer():
    policy = tiny_policy(tokenizer=word_tokenizer())
    assert policy.config.vocab_size == len(policy.tokenizer) == policy.build_model().lm_head.weight.shape[0]
    assert policy.config.eos_token_id == policy.tokenizer.eos_token_id
    assert policy.config.pad_token_id == policy.tokenizer.pad_token_id
    assert not policy.config.use_cache


def test_weights_are_float32():
    assert {parameter.dtype for parameter in tiny_policy().build_model().parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("architecture", "match"),
    [
        ({"hidden_size": 8}, r"`architecture` must have a `model_type`, but got \['hidden_size'\]"),
        ({"model_type": "qwen3", "vocab_size": 7}, r"`architecture` must leave \['vocab_size'\] to the tokenizer"),
    ],
    ids=["no_type", "vocabulary"],
)
def test_an_architecture_that_cannot_work_is_refused(architecture, match):
    with pytest.raises(ConfigError, match=match):
        ScratchPolicy(tokenizer=word_tokenizer(), architecture=architecture)


def test_a_saved_policy_comes_back_as_it_was(folder):
    policy, path = folder
    loaded = PretrainedPolicy(name_or_path=str(path))
    assert states_equal(loaded.build_model(), policy.build_model())
    assert loaded.tokenizer.get_vocab() == policy.tokenizer.get_vocab()
    assert loaded.tokenizer.chat_template == policy.tokenizer.chat_template
    assert loaded.config.hidden_size == 32
    assert not loaded.config.use_cache
    assert not loaded.build_model().config.use_cache


def test_a_saved_policy_is_loaded_in_the_precision_asked_for(folder):
    model = PretrainedPolicy(name_or_path=str(folder[1]), dtype="bfloat16").build_model()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_a_saved_policy_says_where_its_weights_are_and_a_drawn_one_has_none(folder):
    policy, path = folder
    assert policy.find_weights() is None
    stored = PretrainedPolicy(name_or_path=str(path), dtype="bfloat16").find_weights()
    assert stored == StoredWeights(folder=path, dtype=torch.bfloat16)


@pytest.mark.parametrize("name", ["no/such/folder", "/no/such", "./no", "~/no/such/folder", ""])
def test_a_mistyped_folder_is_refused_at_once(name):
    with pytest.raises(ConfigError, match=r"`name_or_path` must be a folder or .* there is no such folder"):
        PretrainedPolicy(name)


def test_a_mistyped_path_that_could_be_a_name_on_the_hub_is_told_what_is_there(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no connection")

    monkeypatch.setattr(source, "why_offline", lambda _: "")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(AutoConfig, "from_pretrained", refuse)
    (tmp_path / "models").mkdir()
    (tmp_path / "weights.safetensors").touch()
    for name, hint in (
        ("models/qwen", "There is a folder models here, but no qwen in it"),
        ("weights.safetensors", "It is a file: name the folder that it lies in"),
        ("qwen", "no connection Correct it"),
    ):
        with pytest.raises(ConfigError, match=hint):
            _ = PretrainedPolicy(name).config


def test_a_folder_may_start_from_home(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder[1].parent))
    assert PretrainedPolicy(f"~/{folder[1].name}").config.hidden_size == 32


PARTS = {
    "tokenizer": lambda policy: policy.tokenizer,
    "config": lambda policy: policy.config,
    "model": lambda policy: policy.build_model(),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_model_that_cannot_be_downloaded_is_refused_with_what_to_do(part, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"but got 'a/b': .*`hf download a/b --local-dir FOLDER` elsewhere"):
        PARTS[part](PretrainedPolicy("a/b"))


def test_weights_that_cannot_be_downloaded_are_refused_with_what_to_do(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"but got 'a/b': .*`hf download a/b"):
        PretrainedPolicy("a/b").find_weights()


@pytest.mark.parametrize(
    ("pattern", "part", "named"),
    [
        ("config.json", "config", r"must hold a configuration, but has no file config\.json"),
        ("config.json", "model", r"must hold a configuration, but has no file config\.json"),
        ("tokenizer*", "tokenizer", r"must hold a tokenizer, but has no file tokenizer\*"),
        ("model*", "model", r"must be a model that can be read, but is not: .*no file named"),
    ],
)
def test_a_folder_that_lacks_a_part_is_named_with_it(folder, pattern, part, named):
    for path in folder[1].glob(pattern):
        path.unlink()
    with pytest.raises(DataError, match=named):
        PARTS[part](PretrainedPolicy(str(folder[1])))


@pytest.mark.parametrize(
    ("file", "change", "part", "named"),
    [
        ("config.json", {"hidden_size": "x"}, "config", "TypeError: Field 'hidden_size'"),
        ("config.json", {"num_attention_heads": 0}, "model", "ZeroDivisionError"),
        ("config.json", {"dtype": "float99"}, "config", "float99"),
        ("config.json", {"auto_map": 5}, "config", "TypeError"),
        ("config.json", {"vocab_size": 5}, "model", "RuntimeError: You set `ignore_mismatched_sizes`"),
        ("tokenizer.json", {"version": "1.0", "added_tokens": None, "model": None}, "tokenizer", "Error"),
    ],
    ids=["type", "zero", "dtype", "auto_map", "shape", "tokenizer"],
)
def test_a_part_with_values_that_nobody_can_read_is_one_message(folder, file, change, part, named):
    path = folder[1] / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=rf"must be a model that can be read, but is not: .*{named}") as caught:
        PARTS[part](PretrainedPolicy(str(folder[1])))
    assert "\n" not in str(caught.value)


def test_settings_of_a_generation_that_are_a_list_are_one_message(folder):
    (folder[1] / "generation_config.json").write_text("[]")
    with pytest.raises(DataError, match=r"generation_config\.json must be JSON, but: TypeError"):
        _ = PretrainedPolicy(str(folder[1])).generation_config


def test_a_machine_that_is_too_small_is_no_fault_of_the_model(folder, monkeypatch):
    def fail(*_, **__):
        raise MemoryError("no room")

    monkeypatch.setattr(AutoConfig, "from_pretrained", fail)
    with pytest.raises(MemoryError, match="no room"):
        _ = PretrainedPolicy(str(folder[1])).config


def test_an_architecture_that_transformers_does_not_know_is_named(folder):
    (folder[1] / "config.json").write_text('{"model_type": "zzz"}')
    with pytest.raises(DataError, match=r"must be a model that can be read, but is not: .*`zzz`"):
        PretrainedPolicy(str(folder[1])).config  # noqa: B018


@pytest.mark.parametrize("dtype", ["float31", "nn", ""])
def test_a_precision_that_torch_does_not_know_is_refused(dtype):
    with pytest.raises(ConfigError, match=f"`dtype` must name a torch dtype, but got '{dtype}'"):
        PretrainedPolicy(name_or_path="somewhere", dtype=dtype)


def test_a_tokenizer_without_padding_pads_with_the_end_of_sequence(folder):
    policy, path = folder
    policy.tokenizer.pad_token = None
    policy.tokenizer.save_pretrained(path)
    tokenizer = PretrainedPolicy(name_or_path=str(path)).tokenizer
    assert tokenizer.pad_token == tokenizer.eos_token == "<eos>"


def test_code_that_a_folder_brings_is_refused_with_what_to_set_and_nobody_is_asked(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("builtins.input", lambda words: asked.append(words) or "n")
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own_kind", "auto_map": own}))
    (tmp_path / "own.py").write_text("raise SystemExit('it ran')")
    settings = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    policy = PretrainedPolicy(str(tmp_path))
    for part in (lambda: policy.config, lambda: policy.tokenizer, policy.build_model):
        with pytest.raises(ConfigError, match=r"set `model\.trust_remote_code=true`") as error:
            part()
        assert "\n" not in str(error.value)
    assert not asked
