"""What a model does to its logits is found by trying, whatever its configuration calls it, or refused by name."""

import math

import pytest
import torch
from torch import nn

from aepo_lightning.errors import ConfigError
from aepo_lightning.ops.logit_map import PLAIN, LogitMap
from aepo_lightning.policy.output_head import measure_logit_map
from aepo_lightning.policy.skeleton import build_skeleton
from tests.support.builders import tiny_policy

GRANITE = {"model_type": "granite", "logits_scaling": 13.0}
GEMMA2 = {"model_type": "gemma2", "head_dim": 8, "final_logit_softcapping": 30.0}
MAPS = {
    "qwen3": ({}, PLAIN),
    "granite divides": (GRANITE, LogitMap(scale=1 / 13)),
    "hyperclovax multiplies under the same name": (
        {"model_type": "hyperclovax", "logits_scaling": 0.25},
        LogitMap(scale=0.25),
    ),
    "cohere": ({"model_type": "cohere", "logit_scale": 0.0625}, LogitMap(scale=0.0625)),
    "gemma2": (GEMMA2, LogitMap(cap=30.0)),
    "phi": ({"model_type": "phi"}, PLAIN),
    "nanochat": ({"model_type": "nanochat", "final_logit_softcapping": 1.0}, LogitMap(cap=1.0)),
}


@pytest.mark.parametrize("is_meta", [False, True], ids=["with_weights", "meta"])
@pytest.mark.parametrize(("fields", "expected"), MAPS.values(), ids=MAPS)
def test_scale_and_cap_are_measured(fields, expected, is_meta):
    policy = tiny_policy(**fields)
    model = build_skeleton(policy.config, torch.float32) if is_meta else policy.build_model()
    found = measure_logit_map(model)
    assert found.scale == pytest.approx(expected.scale, rel=1e-12)
    assert found.cap == (None if expected.cap is None else pytest.approx(expected.cap, rel=1e-12))
    assert found.is_identity == expected.is_identity


def model_with(change):
    """A model whose `forward` does something to its logits."""
    model = tiny_policy().build_model()
    forward = model.forward

    def changed(**options):
        output = forward(**options)
        output.logits = change(model, output.logits)
        return output

    model.forward = changed
    return model


def test_what_counts_is_what_tokens_are_sampled_from():
    model = model_with(lambda model, logits: logits * (3.0 if model.training else 0.5)).train()
    assert measure_logit_map(model) == LogitMap(scale=0.5)
    assert model.training


def masked(_, logits):
    return logits.index_fill(-1, torch.tensor([77]), torch.finfo(logits.dtype).min)


ODD = {
    "shift": (
        lambda _, logits: logits + 0.01,
        r"returns 9\.31\S* for token 0, the logit must be 9\.31\S*, but is 0\.01",
    ),
    "masked token": (masked, r"for token 77, the logit must be .*, but is -1\.79"),
    "square": (lambda _, logits: logits.square(), "the logit must be"),
    "relu": (lambda _, logits: logits.relu(), "the logit must be"),
    "softmax": (lambda _, logits: logits.log_softmax(-1), "Logits must grow with the outputs of the head"),
    "negative": (lambda _, logits: -logits, "Logits must grow with the outputs of the head"),
    "by position": (lambda _, logits: logits * torch.tensor([1.0, 2.0, 1.0])[:, None], "the logit must be"),
    "other cap": (lambda _, logits: logits / (1 + logits.abs()), "the logit must be"),
    "not finite": (lambda _, logits: logits * math.nan, "Logits must grow with the outputs of the head"),
    "last only": (
        lambda _, logits: logits[:, -1:],
        r"There must be logits of shape \(1, 3, 268\), but .* \(1, 1, 268\)",
    ),
    "a layer": (
        lambda model, logits: model.extra(logits),
        "No layer may stand between backbone and head, but .* `extra`",
    ),
    "an error": (lambda *_: [][0], r"Qwen3ForCausalLM fails where it has only those: IndexError"),
}


@pytest.mark.parametrize(("change", "message"), ODD.values(), ids=ODD)
def test_logits_that_are_anything_else_are_refused_with_both_figures(change, message):
    model = model_with(change)
    if "extra" in message:
        model.extra = nn.Identity()
    with pytest.raises(ConfigError, match=message):
        measure_logit_map(model)


def with_parameter(model):
    model.logit_scale = nn.Parameter(torch.ones(()))


def with_normed_head(model):
    class NormHead(nn.Linear):
        def forward(self, hidden):
            return nn.functional.linear(hidden, nn.functional.normalize(self.weight))

    model.lm_head = NormHead(32, 268, bias=False)


def with_layers_in_the_head(model):
    model.lm_head = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 268))


def with_hook(model):
    model.lm_head.register_forward_hook(lambda *_: None)


def with_more_inputs(model):
    forward = model.forward
    model.forward = lambda input_ids, **options: forward(input_ids, position_ids=input_ids, **options)


PARTS = {
    "parameter": (with_parameter, r"has \['logit_scale'\] beside them"),
    "normed head": (with_normed_head, "`lm_head` must be a linear layer, but that of Qwen3ForCausalLM is NormHead"),
    "deep head": (with_layers_in_the_head, "`lm_head` must be a linear layer, .* is Sequential"),
    "hook": (with_hook, "`lm_head` must be a linear layer, .* is Linear, which computes something else"),
    "more inputs": (with_more_inputs, r"must need token ids only, but the model gives it \['position_ids'\]"),
}


@pytest.mark.parametrize(("change", "message"), PARTS.values(), ids=PARTS)
def test_parts_that_the_chunked_head_would_leave_out_are_refused(change, message):
    model = tiny_policy().build_model()
    change(model)
    with pytest.raises(ConfigError, match=message):
        measure_logit_map(model)


@pytest.mark.parametrize("fields", [{"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2}], ids=["gpt2"])
def test_a_model_without_the_usual_parts_is_refused(fields):
    with pytest.raises(ConfigError, match="must have a `model` backbone and an `lm_head`, but got GPT2LMHeadModel"):
        measure_logit_map(tiny_policy(**fields).build_model())


def test_the_model_is_the_same_afterwards():
    model = tiny_policy(**GRANITE).build_model()
    ids = torch.tensor([[5, 9, 17]])
    before = model(input_ids=ids).logits
    measure_logit_map(model)
    assert torch.equal(model(input_ids=ids).logits, before)
    assert not {"forward"} & set(vars(model.model)) & set(vars(model.lm_head))


def test_a_map_that_changes_something_is_logged(caplog):
    with caplog.at_level("INFO", "aepo_lightning.policy.output_head"):
        measure_logit_map(tiny_policy().build_model())
        assert not caplog.messages
        measure_logit_map(tiny_policy(**GEMMA2).build_model())
    assert caplog.messages == ["Gemma2ForCausalLM scales its logits by 1, capped at 30."]
