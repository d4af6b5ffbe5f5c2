import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from aepo_lightning.app.plan.model_size import model_size, shard_numbers
from aepo_lightning.errors import ConfigError
from tests.support.paths import CONF
from tests.support.planning import LAYER, ROOT, SMALL, TOTAL

MODELS = CONF / "model"


def build_real_model(architecture, **changes):
    fields = {**architecture, **changes}
    config = AutoConfig.for_model(fields.pop("model_type"), use_cache=False, **fields)
    return AutoModelForCausalLM.from_config(config)


def saved_bytes(architecture, num_layers, num_tokens, is_checkpointed):
    """Measure what autograd keeps of one forward pass through the backbone in bf16, parameters excluded."""
    model = build_real_model(architecture, num_hidden_layers=num_layers).to(torch.bfloat16).train()
    if is_checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor keeps its address from being reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model.model(input_ids=torch.arange(num_tokens)[None] % 64, use_cache=False).last_hidden_state
    assert output.requires_grad
    return sum(num_bytes for num_bytes, _ in kept.values())


def test_counts_the_parameters_of_the_hand_worked_model():
    size = model_size(SMALL)
    assert (size.num_parameters, size.num_layer_parameters, size.num_root_parameters) == (TOTAL, LAYER, ROOT)
    assert size.num_embedding_parameters == 2 * 256 * 64


def test_counts_the_parameters_of_the_real_model():
    assert model_size(SMALL).num_parameters == sum(p.numel() for p in build_real_model(SMALL).parameters())


def test_tied_weights_count_once():
    size = model_size({**SMALL, "tie_word_embeddings": True})
    assert size.num_parameters == TOTAL - 256 * 64
    assert size.num_embedding_parameters == 256 * 64


@pytest.mark.parametrize(
    ("name", "expected"),
    [("qwen3_14b", 14.77e9), ("qwen3_8b", 8.19e9), ("llama3_8b", 8.03e9), ("qwen2_5_7b", 7.62e9)],
)
def test_configs_describe_the_published_models(name, expected):
    architecture = yaml.safe_load((MODELS / f"{name}.yaml").read_text())["architecture"]
    assert model_size(architecture).num_parameters == pytest.approx(expected, rel=0.005)


@pytest.mark.parametrize("model_type", ["qwen3", "qwen2", "llama"])
def test_saved_bytes_per_layer_are_what_autograd_keeps(model_type):
    architecture = {**SMALL, "model_type": model_type, "head_dim": 24 if model_type == "qwen3" else 16}
    measured = saved_bytes(architecture, 2, 128, False) - saved_bytes(architecture, 1, 128, False)
    assert measured == 128 * model_size(architecture).saved_bytes_per_token()


def test_checkpointed_layers_keep_their_input_only():
    measured = saved_bytes(SMALL, 2, 128, True) - saved_bytes(SMALL, 1, 128, True)
    assert measured == 128 * 2 * 64


def test_saved_bytes_of_the_hand_worked_model():
    size = model_size(SMALL)
    # norms 2 * (8*64 + 4) = 1032; attention 4*96 + 4*48 + 16 = 592; q and k norms 6*144 + 24 = 888; MLP 8*192 = 1536
    assert size.saved_bytes_per_token() == 4048
    # norms 2 * (12*64 + 4) = 1544; attention 8*144 + 16 = 1168; q and k norms 8*144 + 24 = 1176; MLP 16*192 = 3072
    assert size.saved_bytes_per_token(4) == 6960


def test_knows_the_linear_maps_of_a_layer():
    assert model_size(SMALL).linear_shapes == {
        "q_proj": (96, 64),
        "k_proj": (48, 64),
        "v_proj": (48, 64),
        "o_proj": (64, 96),
        "gate_proj": (192, 64),
        "up_proj": (192, 64),
        "down_proj": (64, 192),
    }


def test_the_first_rank_has_the_most_rows():
    # 10 rows over 4 ranks are 3, 3, 3, 1
    assert shard_numbers(((10, 7), (2,)), 4) == 3 * 7 + 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "nonesuch"}, r"`architecture\.model_type` must name a Hugging Face architecture"),
        ({"model_type": None}, r"`architecture\.model_type` must name a Hugging Face architecture"),
        ({"hidden_size": 0}, r"`architecture\.hidden_size` must be at least 1, but got 0"),
        ({"num_hidden_layers": -2}, r"`architecture\.num_hidden_layers` must be at least 1, but got -2"),
        ({"vocab_size": 0}, r"`architecture\.vocab_size` must be at least 1, but got 0"),
        ({"model_type": "t5"}, "must describe a causal language model, but t5 cannot be built"),
    ],
    ids=["unknown", "missing", "no_width", "negative_layers", "no_words", "encoder"],
)
def test_refuses_what_is_no_causal_language_model(changes, message):
    with pytest.raises(ConfigError, match=message):
        model_size({**SMALL, **changes})
