"""What a trainer may publish to vLLM: every weight once, by either name of a tied one, as copies."""

import pytest
import torch

from aepo_lightning.errors import EngineError
from aepo_lightning.policy.checked_weights import checked_weights
from tests.support.builders import tiny_policy


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
def test_every_weight_comes_once_under_its_first_name(is_tied):
    model = tiny_policy(tie_word_embeddings=is_tied).build_model()
    published = list(checked_weights(model, model.state_dict().items()))
    assert sorted(name for name, _ in published) == sorted(name for name, _ in model.named_parameters())
    for name, tensor in published:
        torch.testing.assert_close(tensor, model.get_parameter(name), rtol=0, atol=0)


def test_a_tied_weight_may_come_under_its_second_name_only():
    model = tiny_policy(tie_word_embeddings=True).build_model()
    names = {"model.embed_tokens.weight": "lm_head.weight"}
    weights = [(names.get(name, name), tensor) for name, tensor in model.named_parameters()]
    assert "model.embed_tokens.weight" in dict(checked_weights(model, weights))


def test_weights_are_copies_because_a_sharded_trainer_takes_its_own_back():
    model = tiny_policy().build_model()
    for name, tensor in checked_weights(model, model.named_parameters()):
        assert tensor.data_ptr() != model.get_parameter(name).data_ptr()


def wrong_weights(kind):
    weights = dict(tiny_policy().build_model().named_parameters())
    name = "model.layers.1.mlp.up_proj.weight"
    if kind == "unknown":
        weights["model.layers.9.mlp.up_proj.weight"] = weights[name]
    elif kind == "missing":
        del weights[name]
    else:
        weights[name] = weights[name][:, :1]
    return weights.items()


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("unknown", r"has no weight named 'model\.layers\.9\.mlp\.up_proj\.weight'"),
        ("missing", r"1 weights were not published, 'model\.layers\.1\.mlp\.up_proj\.weight' among them"),
        ("shape", r"Weight 'model\.layers\.1\.mlp\.up_proj\.weight' must have shape \(64, 32\), but got \(64, 1\)"),
    ],
)
def test_weights_of_another_architecture_are_refused(kind, match):
    with pytest.raises(EngineError, match=match):
        list(checked_weights(tiny_policy().build_model(), wrong_weights(kind)))
