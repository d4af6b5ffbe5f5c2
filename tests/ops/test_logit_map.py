"""Scale, cap and bias of a head in the chunked computation, against the definition and against numbers by hand."""

import math

import pytest
import torch

from aepo_lightning.ops.logit_map import PLAIN, LogitMap
from aepo_lightning.ops.logprob import chunked_logprob
from tests.ops.test_logprob import make_cotangents, make_inputs

MAPS = {
    "scale": LogitMap(scale=0.37),
    "cap": LogitMap(cap=1.5),
    "both": LogitMap(scale=2.5, cap=4.0),
    "neither": PLAIN,
}


def make_bias(vocab_size=29, dtype=torch.float64):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(vocab_size, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()


def naive(hidden, weight, bias, target, temperature, logit_map):
    logits = logit_map.scale * (hidden @ weight.T + (0 if bias is None else bias))
    if logit_map.cap is not None:
        logits = logit_map.cap * torch.tanh(logits / logit_map.cap)
    log_p = torch.log_softmax(logits / temperature, -1)
    return log_p.gather(-1, target[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


def test_matches_logits_worked_by_hand():
    # Outputs (0, 2), with biases (1, 1) (1, 3), twice that (2, 6). A cap of 2 makes 2 tanh(1) and 2 tanh(3) of them,
    # and a temperature of 0.5 doubles their difference: d = 4 (tanh(3) - tanh(1)).
    # log p = (-log(1 + e^d), d - log(1 + e^d)).
    hidden, weight = torch.tensor([[1.0], [1.0]]).double(), torch.tensor([[0.0], [2.0]]).double()
    options = {"bias": torch.tensor([1.0, 1.0]).double(), "logit_map": LogitMap(scale=2.0, cap=2.0)}
    out = chunked_logprob(hidden, weight, torch.tensor([0, 1]), 0.5, **options)
    difference = 4 * (math.tanh(3) - math.tanh(1))
    normalizer = math.log1p(math.exp(difference))
    torch.testing.assert_close(out.logprobs, torch.tensor([-normalizer, difference - normalizer]).double())


@pytest.mark.parametrize("has_bias", [False, True], ids=["without_bias", "with_bias"])
@pytest.mark.parametrize("chunk_size", [1, 256])
@pytest.mark.parametrize("logit_map", MAPS.values(), ids=MAPS)
def test_equals_the_definition_in_value_and_gradient(logit_map, chunk_size, has_bias):
    hidden, weight, target = make_inputs()
    bias = make_bias() if has_bias else None
    options = {"bias": bias, "logit_map": logit_map, "chunk_size": chunk_size, "entropy": "grad"}
    out = chunked_logprob(hidden, weight, target, 0.7, **options)
    logprobs, entropies = naive(hidden, weight, bias, target, 0.7, logit_map)
    # 1e-12: float64 with sums of 29 terms.
    torch.testing.assert_close((out.logprobs, out.entropies), (logprobs, entropies), rtol=1e-12, atol=1e-12)
    by_logprobs, by_entropies = make_cotangents(13, torch.float64)
    inputs = (hidden, weight) if bias is None else (hidden, weight, bias)
    found = torch.autograd.grad((out.logprobs * by_logprobs + out.entropies * by_entropies).sum(), inputs)
    expected = torch.autograd.grad((logprobs * by_logprobs + entropies * by_entropies).sum(), inputs)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("logit_map", MAPS.values(), ids=MAPS)
def test_gradcheck_of_logprobs_and_entropies(logit_map):
    hidden, weight, target = make_inputs(num_tokens=3, hidden_size=2, vocab_size=5)

    def both(hidden, weight, bias):
        options = {"bias": bias, "logit_map": logit_map, "chunk_size": 2, "entropy": "grad"}
        out = chunked_logprob(hidden, weight, target, 0.7, **options)
        return out.logprobs, out.entropies

    assert torch.autograd.gradcheck(both, (hidden, weight, make_bias(5)))


def test_a_frozen_part_gets_no_gradient():
    hidden, weight, target = make_inputs()
    bias = make_bias()
    weight.requires_grad_(False)
    chunked_logprob(hidden, weight, target, bias=bias, logit_map=MAPS["both"]).logprobs.sum().backward()
    assert weight.grad is None
    assert bias.grad.any()
    assert hidden.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bias_of_any_precision_is_added_in_float32(dtype):
    hidden, weight, target = make_inputs(dtype=dtype)
    bias = make_bias(dtype=dtype)
    out = chunked_logprob(hidden, weight, target, bias=bias, logit_map=MAPS["both"])
    logprobs, _ = naive(hidden.double(), weight.double(), bias.double(), target, 1.0, MAPS["both"])
    torch.testing.assert_close(out.logprobs.double(), logprobs, rtol=1e-5, atol=1e-5)
    out.logprobs.sum().backward()
    expected = torch.autograd.grad(logprobs.sum(), bias)[0]
    torch.testing.assert_close(bias.grad, expected)


def test_a_plain_head_computes_what_it_does_without_a_map():
    hidden, weight, target = make_inputs(dtype=torch.float32)
    found = []
    for options in ({}, {"logit_map": LogitMap(scale=1.0)}):
        out = chunked_logprob(hidden, weight, target, 0.7, entropy="grad", **options)
        grads = torch.autograd.grad((out.logprobs + out.entropies).sum(), (hidden, weight))
        found.append((out.logprobs, out.entropies, *grads))
    assert all(map(torch.equal, *found))


def test_logits_at_their_cap_have_finite_numbers_and_no_slope():
    hidden = torch.tensor([[1e4]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0]])
    out = chunked_logprob(hidden, weight, torch.tensor([1]), logit_map=LogitMap(cap=3.0), entropy="grad")
    torch.testing.assert_close(out.logprobs.detach(), torch.tensor([-6.0 - math.log1p(math.exp(-6))]))
    (out.logprobs + out.entropies).sum().backward()
    assert hidden.grad.tolist() == [[0.0]]
