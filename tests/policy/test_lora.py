"""A low-rank adapter changes nothing at first, is all that learns, and leaves the trainer under plain names."""

import pytest
import torch

from aepo_lightning.errors import ConfigError
from aepo_lightning.ops.low_rank import merge_low_rank
from aepo_lightning.policy.lora import LoRA, adapted_layers, factors, is_adapter, plain_name, without_adapter
from tests.support.adapters import SMALL, adapted_network, teach
from tests.support.builders import tiny_policy
from tests.support.extras import needs

needs("peft", "lora")

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11]])
MASK = torch.ones(1, 6, dtype=torch.bool)


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def test_an_adapter_starts_as_the_policy_itself_and_moves_it_once_it_has_learnt():
    policy = tiny_policy()
    model = policy.build_model()
    SMALL.inject(model)
    assert torch.equal(logits(model), logits(policy.build_model()))
    assert (logits(adapted_network(policy).model) - logits(policy.build_model())).abs().max() > 0.1


def test_logits_of_an_adapted_model_are_scaled_as_its_own_are():
    network = adapted_network(tiny_policy(model_type="cohere", logit_scale=0.3))
    log_p = logits(network.model)[:, :-1].log_softmax(-1)
    expected = log_p.gather(-1, IDS[:, 1:, None])[..., 0]
    torch.testing.assert_close(network(IDS, MASK).logprobs, expected, atol=1e-5, rtol=1e-5)


def test_only_adapters_learn():
    network = adapted_network()
    trained = {name for name, parameter in network.model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in network.model.named_parameters() if is_adapter(name)}
    assert len(trained) == 2 * 2 * 3  # A and B of three layers in two decoder layers
    network(IDS, MASK).logprobs.sum().backward()
    for name, parameter in network.model.named_parameters():
        assert (parameter.grad is not None) == (name in trained)


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
def test_gradient_checkpointing_below_frozen_embeddings_gives_the_same_gradients(is_tied):
    policy = tiny_policy(tie_word_embeddings=is_tied)
    found = []
    for checkpointing in (False, True):
        network = adapted_network(policy, gradient_checkpointing=checkpointing).train()
        network(IDS, MASK).logprobs.sum().backward()
        found.append([matrix.grad for layer in adapted_layers(network.model).values() for matrix in factors(layer)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert all(gradient.abs().sum() > 0 for gradient in found[0])


def test_first_numbers_depend_on_seed_and_name_only_and_leave_the_global_generator_alone():
    def matrices(lora):
        model = tiny_policy().build_model()
        lora.inject(model)
        return {name: factors(layer) for name, layer in adapted_layers(model).items()}

    state = torch.get_rng_state()
    first = matrices(SMALL)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    more = matrices(LoRA(rank=3, alpha=6.0, seed=5))
    assert set(first) < set(more)
    assert all(torch.equal(first[name][0], more[name][0]) for name in first)
    other = matrices(LoRA(rank=3, alpha=6.0, seed=6))
    assert not any(torch.equal(more[name][0], other[name][0]) for name in more)
    for down, up in more.values():
        assert not up.any()
        # Uniform in +-1/sqrt(inputs), so the largest of a hundred numbers is close to the bound and none beyond it.
        assert 0.8 < float(down.detach().abs().max()) * down.shape[1] ** 0.5 <= 1


def test_every_linear_layer_of_the_backbone_is_adapted_unless_some_are_named():
    model = tiny_policy().build_model()
    LoRA(rank=2).inject(model)
    names = {name.rpartition(".")[2] for name in adapted_layers(model)}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert len(adapted_layers(model)) == 14


def test_an_adapter_may_be_switched_off_for_a_while():
    policy = tiny_policy()
    network = adapted_network(policy)
    adapted = logits(network.model)
    with without_adapter(network.model):
        assert torch.equal(logits(network.model), logits(policy.build_model()))
    assert torch.equal(logits(network.model), adapted)
    with pytest.raises(RuntimeError, match="any"), without_adapter(network.model):
        raise RuntimeError("any")
    assert torch.equal(logits(network.model), adapted)


def test_a_skeleton_gets_adapters_without_memory_that_can_be_filled_later():
    whole = tiny_policy().build_model()
    SMALL.inject(whole)
    with torch.device("meta"):
        model = type(whole)(tiny_policy().config)
    SMALL.inject(model)
    assert all(parameter.is_meta for parameter in model.parameters())
    model.to_empty(device="cpu")
    SMALL.initialise(model)
    for name, layer in adapted_layers(model).items():
        for found, expected in zip(factors(layer), factors(whole.get_submodule(name)), strict=True):
            assert torch.equal(found, expected)


def test_adapters_of_a_policy_in_bfloat16_stay_in_float32():
    model = tiny_policy().build_model().bfloat16()
    SMALL.inject(model)
    assert {parameter.dtype for name, parameter in model.named_parameters() if is_adapter(name)} == {torch.float32}
    assert {parameter.dtype for name, parameter in model.named_parameters() if not is_adapter(name)} == {torch.bfloat16}
    assert logits(model).dtype == torch.bfloat16


def test_names_are_translated():
    assert plain_name("layers.0.q_proj.base_layer.weight") == "layers.0.q_proj.weight"
    assert plain_name("layers.0.norm.weight") == "layers.0.norm.weight"
    assert not is_adapter("layers.0.q_proj.base_layer.weight")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dropout": 0.1}, "rollouts are sampled without it"),
        ({"rank": 0}, "`rank` and `alpha` must be positive, but got 0"),
        ({"alpha": 0.0}, "`rank` and `alpha` must be positive"),
    ],
    ids=str,
)
def test_settings_without_meaning_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        LoRA(**fields)


@pytest.mark.parametrize("name", ["query", "lm_head", "embed_tokens", "norm"])
def test_layers_that_cannot_be_adapted_are_refused(name):
    with pytest.raises(ConfigError, match=rf"`target_modules` must name .*'q_proj'.*but got \['{name}'\]"):
        LoRA(target_modules=["q_proj", name]).inject(tiny_policy().build_model())


def test_peft_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("aepo_lightning.policy.lora.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'aepo-lightning\[lora\]'"):
        SMALL.inject(tiny_policy().build_model())


def test_merging_sums_in_float32_and_rounds_once():
    # Above 1 bfloat16 goes in steps of 2^-7, so that 1 + 2^-8 is halfway and goes to even, 1. A little more goes up,
    # unless the addend was rounded to 2^-8 before.
    base, down = torch.ones(1, 1, dtype=torch.bfloat16), torch.ones(1, 1)
    up = torch.full((1, 1), 2.0**-9)
    assert merge_low_rank(base, down, up, 2.0).item() == 1
    assert merge_low_rank(base, down, up * (1 + 2.0**-9), 2.0).item() == 1 + 2.0**-7
    assert merge_low_rank(base, down, up, 2.0).dtype == torch.bfloat16
    assert merge_low_rank(base.double(), down.double(), up.double(), 0.3).item() == 1 + 0.3 * 2.0**-9


def test_what_one_network_has_learnt_is_no_other_networks():
    first, second = adapted_network(), adapted_network()
    assert torch.equal(logits(first.model), logits(second.model))
    teach(second, seed=2)
    assert not torch.equal(logits(first.model), logits(second.model))
