"""What a trainer may hand over: every weight once, by either name of a tied one."""

import pytest
import torch

from aepo_lightning.errors import DataError, EngineError
from aepo_lightning.policy.checked_weights import checked_weights, copies, copy_weights
from tests.support.builders import tiny_policy


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
def test_every_weight_comes_once_under_its_first_name(is_tied):
    model = tiny_policy(tie_word_embeddings=is_tied).build_model()
    published = list(checked_weights(model, model.state_dict().items(), EngineError))
    assert sorted(name for name, _ in published) == sorted(name for name, _ in model.named_parameters())
    for name, tensor in published:
        torch.testing.assert_close(tensor, model.get_parameter(name), rtol=0, atol=0)


def test_a_tied_weight_may_come_under_its_second_name_only():
    model = tiny_policy(tie_word_embeddings=True).build_model()
    names = {"model.embed_tokens.weight": "lm_head.weight"}
    weights = [(names.get(name, name), tensor) for name, tensor in model.named_parameters()]
    assert "model.embed_tokens.weight" in dict(checked_weights(model, weights, EngineError))


def test_copies_are_what_a_reader_may_keep_because_a_sharded_trainer_takes_its_own_back():
    model = tiny_policy().build_model()
    for name, tensor in copies(checked_weights(model, model.named_parameters(), EngineError)):
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


@pytest.mark.parametrize("error", [EngineError, DataError])
@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("unknown", r"has no weight named 'model\.layers\.9\.mlp\.up_proj\.weight'"),
        ("missing", r"1 are missing, 'model\.layers\.1\.mlp\.up_proj\.weight' among them"),
        ("shape", r"Weight 'model\.layers\.1\.mlp\.up_proj\.weight' must have shape \(64, 32\), but got \(64, 1\)"),
    ],
)
def test_weights_of_another_architecture_are_refused_with_the_error_of_their_boundary(kind, match, error):
    with pytest.raises(error, match=match):
        list(checked_weights(tiny_policy().build_model(), wrong_weights(kind), error))


def test_weights_are_copied_into_a_model_all_of_them_or_some():
    source, target = tiny_policy().build_model(), tiny_policy().build_model()
    for parameter in target.parameters():
        parameter.data.add_(1)
    name = "model.layers.1.mlp.up_proj.weight"
    copy_weights(target, [(name, source.get_parameter(name))], EngineError, is_partial=True)
    assert torch.equal(target.get_parameter(name), source.get_parameter(name))
    assert not torch.equal(target.lm_head.weight, source.lm_head.weight)
    copy_weights(target, source.named_parameters(), EngineError)
    assert all(torch.equal(target.get_parameter(each), weight) for each, weight in source.named_parameters())
