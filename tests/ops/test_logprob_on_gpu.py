"""Log-probs and entropies on CUDA against the definition in float64."""

import pytest
import torch

from aepo_lightning.ops.logit_map import LogitMap
from aepo_lightning.ops.logprob import chunked_logprob

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

NUM_TOKENS, HIDDEN, VOCAB = 70, 128, 5000
TEMPERATURE = 0.8


def inputs(dtype):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(NUM_TOKENS, HIDDEN, generator=generator)
    weight = 0.3 * torch.randn(VOCAB, HIDDEN, generator=generator)
    bias = torch.randn(VOCAB, generator=generator)
    target = torch.randint(VOCAB, (NUM_TOKENS,), generator=generator)
    return [tensor.to(dtype) for tensor in (hidden, weight, bias)], target


def definition(tensors, target, logit_map):
    hidden, weight, bias = tensors
    outputs = logit_map.scale * (hidden @ weight.T + bias)
    logits = outputs if logit_map.cap is None else logit_map.cap * torch.tanh(outputs / logit_map.cap)
    log_p = torch.log_softmax(logits / TEMPERATURE, dim=-1)
    return log_p.gather(-1, target[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


def with_gradients(logprobs, entropies, tensors):
    grads = torch.autograd.grad((logprobs + 0.5 * entropies).sum(), tensors)
    return [each.detach().double().cpu() for each in (logprobs, entropies, *grads)]


@pytest.mark.parametrize("logit_map", [LogitMap(), LogitMap(scale=0.5, cap=6.0)], ids=["plain", "capped"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_numbers_and_gradients_are_those_of_the_definition(dtype, logit_map, gpu_device):
    tensors, target = inputs(dtype)
    exact = [tensor.double().requires_grad_() for tensor in tensors]
    expected = with_gradients(*definition(exact, target, logit_map), exact)
    given = [tensor.to(gpu_device).requires_grad_() for tensor in tensors]
    hidden, weight, bias = given
    out = chunked_logprob(
        hidden,
        weight,
        target.to(gpu_device),
        TEMPERATURE,
        bias=bias,
        logit_map=logit_map,
        chunk_size=16,  # fewer than the tokens, so that the vocabulary is taken in parts
        entropy="grad",
    )
    found = with_gradients(out.logprobs, out.entropies, given)
    for one, other in zip(found[:2], expected[:2], strict=True):
        # Sums of 5,000 float32 terms; operands of 16 bits are the same in both.
        torch.testing.assert_close(one, other, rtol=2e-5, atol=5e-5)
    for one, other in zip(found[2:], expected[2:], strict=True):
        # In bfloat16 the gradient of the logits is rounded before the products, and each result is, to eight bits.
        most = 1e-4 if dtype == torch.float32 else 2**-7
        assert float((one - other).norm() / other.norm()) < most
