import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from aepo_lightning.policy.tiled_mlp import tile_gated_mlps


def make_model(model_type="qwen3", **options):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 2, "vocab_size": 30}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    config = AutoConfig.for_model(model_type, **sizes, **heads, pad_token_id=0, **options)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def loss_and_gradients(model):
    model.zero_grad()
    ids = torch.arange(24).view(2, 12)
    loss = model(input_ids=ids, use_cache=False).logits.log_softmax(-1)[..., 3].mean()
    loss.backward()
    used = [(name, each) for name, each in model.named_parameters() if each.grad is not None]
    return loss.detach(), {name: parameter.grad.clone() for name, parameter in used}


@pytest.mark.parametrize("model_type", ["qwen3", "llama"])
def test_loss_and_gradients_stay_the_same(model_type):
    model = make_model(model_type)
    loss, gradients = loss_and_gradients(model)
    assert tile_gated_mlps(model).num_found == 2
    tiled_loss, tiled_gradients = loss_and_gradients(model)
    torch.testing.assert_close(tiled_loss, loss)
    torch.testing.assert_close(tiled_gradients, gradients)


def test_parameters_keep_their_names():
    model = make_model()
    names = list(model.state_dict())
    tile_gated_mlps(model)
    assert list(model.state_dict()) == names


@pytest.mark.parametrize(
    "options", [{"hidden_act": "gelu"}, {"model_type": "llama", "mlp_bias": True}], ids=["gelu", "biases"]
)
def test_other_mlps_are_left_alone(options):
    model = make_model(**options)
    assert tile_gated_mlps(model).num_found == 0


MULTIPLIERS = {
    "mlp_multipliers": [0.5, 3.0],
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_d_ssm": 32,
    "mamba_d_state": 8,
}


def test_mlps_of_the_same_parts_that_multiply_in_between_are_left_alone():
    model = make_model("falcon_h1", **MULTIPLIERS)
    loss, gradients = loss_and_gradients(model)
    assert tile_gated_mlps(model).num_found == 0
    tiled_loss, tiled_gradients = loss_and_gradients(model)
    assert torch.equal(tiled_loss, loss)
    torch.testing.assert_close(tiled_gradients, gradients)


def test_autocast_takes_the_plain_way():
    model = make_model()
    tile_gated_mlps(model)
    hidden = torch.randn(1, 3, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.model.layers[0].mlp(hidden).dtype == torch.bfloat16


def test_the_last_layer_may_skip_positions_and_the_others_do_not_notice():
    model = make_model()
    tiled = tile_gated_mlps(model)
    ids, is_needed = torch.arange(24).view(2, 12), torch.rand(2, 12) < 0.5
    whole = model(input_ids=ids, use_cache=False).logits
    with tiled.last_layer_at(is_needed):
        part = model(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(part[is_needed], whole[is_needed])
    assert not torch.allclose(part[~is_needed], whole[~is_needed])
    torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, whole)
