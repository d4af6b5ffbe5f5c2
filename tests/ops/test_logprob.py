import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from aepo_lightning.ops.logit_blocks import MOST_ROWS
from aepo_lightning.ops.logprob import chunked_logprob


def make_inputs(num_tokens=13, hidden_size=8, vocab_size=29, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_tokens, hidden_size, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(vocab_size, hidden_size, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(0, vocab_size, (num_tokens,), generator=generator)


def naive(hidden, weight, target, temperature):
    log_p = torch.log_softmax(hidden @ weight.T / temperature, -1)
    return log_p.gather(-1, target[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


def make_cotangents(num_tokens, dtype):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, num_tokens, dtype=torch.float64, generator=generator).to(dtype)


def test_matches_a_distribution_worked_by_hand():
    # Logits (0, ln 3) give p = (1/4, 3/4): log p = (-ln 4, ln 3 - ln 4), H = ln 4 - 3/4 ln 3.
    hidden = torch.tensor([[1.0], [1.0]], dtype=torch.float64)
    weight = torch.tensor([[0.0], [math.log(3)]], dtype=torch.float64)
    out = chunked_logprob(hidden, weight, torch.tensor([0, 1]), entropy="detached")
    expected = torch.tensor([-math.log(4), math.log(3) - math.log(4)], dtype=torch.float64)
    torch.testing.assert_close(out.logprobs, expected)
    entropy = math.log(4) - 0.75 * math.log(3)
    torch.testing.assert_close(out.entropies, torch.full((2,), entropy, dtype=torch.float64))


@pytest.mark.parametrize("chunk_size", [1, 5, 13, 256])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.6])
@pytest.mark.parametrize("mode", ["none", "detached", "grad"])
def test_equals_the_naive_computation_in_value_and_gradient(mode, temperature, chunk_size):
    hidden, weight, target = make_inputs()
    out = chunked_logprob(hidden, weight, target, temperature, chunk_size=chunk_size, entropy=mode)
    logprobs, entropies = naive(hidden, weight, target, temperature)
    # 1e-12: float64 with sums of 29 terms.
    torch.testing.assert_close(out.logprobs, logprobs, rtol=1e-12, atol=1e-12)
    g_logprobs, g_entropies = make_cotangents(13, torch.float64)
    loss, reference = (out.logprobs * g_logprobs).sum(), (logprobs * g_logprobs).sum()
    if mode == "none":
        assert out.entropies is None
    else:
        torch.testing.assert_close(out.entropies, entropies, rtol=1e-12, atol=1e-12)
        assert out.entropies.requires_grad == (mode == "grad")
    if mode == "grad":
        loss, reference = loss + (out.entropies * g_entropies).sum(), reference + (entropies * g_entropies).sum()
    grads = torch.autograd.grad(loss, (hidden, weight))
    expected = torch.autograd.grad(reference, (hidden, weight))
    torch.testing.assert_close(grads, expected, rtol=1e-12, atol=1e-12)


def test_gradcheck_of_logprobs_and_entropies():
    hidden, weight, target = make_inputs(num_tokens=5, hidden_size=3, vocab_size=7)

    def both(hidden, weight):
        out = chunked_logprob(hidden, weight, target, 0.7, chunk_size=2, entropy="grad")
        return out.logprobs, out.entropies

    assert torch.autograd.gradcheck(both, (hidden, weight))


def test_gradient_of_the_entropies_alone_is_exact():
    hidden, weight, target = make_inputs()
    out = chunked_logprob(hidden, weight, target, chunk_size=4, entropy="grad")
    grads = torch.autograd.grad(out.entropies.sum(), (hidden, weight))
    expected = torch.autograd.grad(naive(hidden, weight, target, 1.0)[1].sum(), (hidden, weight))
    torch.testing.assert_close(grads, expected, rtol=1e-12, atol=1e-12)


def both_gradients(hidden, weight, target, **options):
    """Return ours of a loss with entropies, and the same in float64."""
    num_tokens = len(target)
    g_logprobs, g_entropies = make_cotangents(num_tokens, torch.float32)
    out = chunked_logprob(hidden, weight, target, 0.9, chunk_size=7, entropy="grad", **options)
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    logprobs, entropies = naive(*exact, target, 0.9)
    assert out.logprobs.dtype == out.entropies.dtype == torch.float32
    # Logits reach tens: float32 rounds them by about 1e-6 each, bfloat16 would round them by 0.1.
    torch.testing.assert_close(out.logprobs.double(), logprobs, rtol=1e-6, atol=2e-5)
    torch.testing.assert_close(out.entropies.double(), entropies, rtol=1e-5, atol=2e-5)
    loss = (out.logprobs * g_logprobs).sum() + (out.entropies * g_entropies).sum()
    reference = (logprobs * g_logprobs.double()).sum() + (entropies * g_entropies.double()).sum()
    return torch.autograd.grad(loss, (hidden, weight)), torch.autograd.grad(reference, exact)


@pytest.mark.parametrize(
    ("dtype", "operand_dtype", "grad_tolerance"),
    # bfloat16 gradients of operands that are multiplied in float32 are rounded once, at the end.
    [
        (torch.float32, None, 1e-5),
        (torch.bfloat16, torch.float32, 2**-8),
    ],
    ids=["float32", "bfloat16_in_float32"],
)
def test_float32_operands_give_gradients_that_are_rounded_once(dtype, operand_dtype, grad_tolerance):
    hidden, weight, target = make_inputs(num_tokens=40, hidden_size=64, vocab_size=300, dtype=dtype)
    grads, expected = both_gradients(hidden, weight, target, operand_dtype=operand_dtype)
    for grad, source, truth in zip(grads, (hidden, weight), expected, strict=True):
        assert grad.dtype == source.dtype
        # Sums whose terms cancel are exact to float32 rounding of their largest terms.
        torch.testing.assert_close(grad.double(), truth, rtol=grad_tolerance, atol=2e-6 * float(truth.abs().max()))


def test_bfloat16_operands_are_accumulated_in_float32():
    hidden, weight, target = make_inputs(num_tokens=40, hidden_size=64, vocab_size=300, dtype=torch.bfloat16)
    grads, expected = both_gradients(hidden, weight, target)
    for grad, truth in zip(grads, expected, strict=True):
        assert grad.dtype == torch.bfloat16
        # The gradient of each logit is rounded to bfloat16, by 2^-9 at most, and so is each gradient at the end.
        assert float((grad.double() - truth).norm() / truth.norm()) < 2**-8


def test_the_float32_head_is_the_head_of_widened_inputs():
    hidden, weight, target = make_inputs(num_tokens=40, hidden_size=64, vocab_size=300, dtype=torch.bfloat16)
    out = chunked_logprob(hidden, weight, target, entropy="detached", operand_dtype=torch.float32)
    wide = chunked_logprob(hidden.float(), weight.float(), target, entropy="detached")
    torch.testing.assert_close((out.logprobs, out.entropies), (wide.logprobs, wide.entropies), rtol=0, atol=0)


def test_a_target_outside_the_vocabulary_has_no_finite_logprob():
    hidden, weight, _ = make_inputs(num_tokens=2)
    out = chunked_logprob(hidden, weight, torch.tensor([29, -1]), chunk_size=1)
    assert out.logprobs.isnan().all()


def test_float32_inputs_are_never_rounded():
    # Large enough for the processor's bfloat16 units, which would be wrong by 1e-2.
    hidden, weight, target = make_inputs(num_tokens=128, hidden_size=256, vocab_size=512, dtype=torch.float32)
    out = chunked_logprob(hidden, weight.detach().bfloat16(), target)
    logprobs, _ = naive(hidden.double(), weight.bfloat16().double(), target, 1.0)
    # Logits reach a hundred, float32 rounds them by 1e-5.
    torch.testing.assert_close(out.logprobs.double(), logprobs, rtol=1e-6, atol=1e-4)


def test_more_tokens_than_a_block_has_rows_change_nothing():
    num_tokens = MOST_ROWS + 100
    hidden, weight, target = make_inputs(num_tokens=num_tokens, hidden_size=3, vocab_size=9)
    out = chunked_logprob(hidden, weight, target, 0.7, chunk_size=1300, entropy="grad")
    logprobs, entropies = naive(hidden, weight, target, 0.7)
    torch.testing.assert_close((out.logprobs, out.entropies), (logprobs, entropies), rtol=1e-12, atol=1e-12)
    g_logprobs, g_entropies = make_cotangents(num_tokens, torch.float64)
    loss = (out.logprobs * g_logprobs + out.entropies * g_entropies).sum()
    reference = (logprobs * g_logprobs + entropies * g_entropies).sum()
    grads = torch.autograd.grad(loss, (hidden, weight))
    # 1e-11: sums over 4196 tokens in float64.
    torch.testing.assert_close(grads, torch.autograd.grad(reference, (hidden, weight)), rtol=1e-11, atol=1e-11)


def test_mixed_input_types_and_autocast_change_nothing_on_cpu():
    hidden, weight, target = make_inputs(dtype=torch.float32)
    plain = chunked_logprob(hidden, weight, target, entropy="detached")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = chunked_logprob(hidden, weight, target, entropy="detached")
        grads = torch.autograd.grad(cast.logprobs.sum(), (hidden, weight))
    torch.testing.assert_close((cast.logprobs, cast.entropies), (plain.logprobs, plain.entropies), rtol=0, atol=0)
    torch.testing.assert_close(grads, torch.autograd.grad(plain.logprobs.sum(), (hidden, weight)), rtol=0, atol=0)
    rounded = hidden.bfloat16()
    mixed = chunked_logprob(rounded, weight, target)
    torch.testing.assert_close(mixed.logprobs, chunked_logprob(rounded.float(), weight, target).logprobs)


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_a_frozen_input_gets_no_gradient_and_the_other_keeps_its_own(frozen):
    hidden, weight, target = make_inputs()
    tensors = {"hidden": hidden, "weight": weight}
    free = tensors["weight" if frozen == "hidden" else "hidden"]
    expected = torch.autograd.grad(naive(hidden, weight, target, 1.0)[0].sum(), free)
    tensors[frozen].requires_grad_(False)
    chunked_logprob(hidden, weight, target, chunk_size=4).logprobs.sum().backward()
    torch.testing.assert_close(free.grad, expected[0], rtol=1e-12, atol=1e-12)
    assert tensors[frozen].grad is None


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation returned."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_never_holds_all_logits_in_forward_or_backward():
    num_tokens, hidden_size, vocab_size, chunk_size = 64, 4, 100, 8
    hidden, weight, target = make_inputs(num_tokens, hidden_size, vocab_size)
    with LargestTensor() as ours:
        out = chunked_logprob(hidden, weight, target, chunk_size=chunk_size, entropy="grad")
        (out.logprobs + out.entropies).sum().backward()
    with LargestTensor() as reference:
        sum(x.sum() for x in naive(hidden, weight, target, 1.0)).backward()
    assert ours.numel <= chunk_size * vocab_size
    assert reference.numel == num_tokens * vocab_size


def test_keeps_no_logits_for_backward():
    hidden, weight, target = make_inputs(64, 4, 100)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        chunked_logprob(hidden, weight, target, chunk_size=8, entropy="grad")
    # The two inputs, the targets, and one normaliser and one entropy per token.
    assert sorted(saved) == sorted([hidden.numel(), weight.numel(), 64, 64, 64])


def test_no_tokens_give_empty_outputs_and_a_zero_gradient():
    hidden, weight, target = make_inputs(num_tokens=0)
    out = chunked_logprob(hidden, weight, target, entropy="grad")
    (out.logprobs.sum() + out.entropies.sum()).backward()
    assert out.logprobs.shape == out.entropies.shape == (0,)
    assert weight.grad.abs().sum() == 0


def test_entropy_of_a_certain_token_is_zero_and_of_a_flat_row_is_log_vocab():
    hidden = torch.tensor([[0.0], [500.0]], requires_grad=True)
    weight = torch.arange(50.0)[:, None]
    out = chunked_logprob(hidden, weight, torch.tensor([3, 49]), entropy="grad")
    torch.testing.assert_close(out.entropies.detach(), torch.tensor([math.log(50), 0.0]))
    out.entropies.sum().backward()
    assert hidden.grad.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "`temperature` must be positive, but got 0.0"),
        ({"chunk_size": 0}, "`chunk_size` must be auto or at least 1, but got 0"),
        ({"operand_dtype": torch.int8}, "`operand_dtype` must be a floating-point type, but got torch.int8"),
    ],
    ids=["temperature", "chunk_size", "operand_dtype"],
)
def test_refuses_settings_without_meaning(arguments, message):
    with pytest.raises(ValueError, match=message):
        chunked_logprob(*make_inputs(), **arguments)


@pytest.mark.gpu
def test_bfloat16_on_cuda_equals_float32_on_cpu(gpu_device):
    hidden, weight, target = make_inputs(num_tokens=40, hidden_size=64, vocab_size=304, dtype=torch.bfloat16)
    on_gpu = [x.detach().to(gpu_device).requires_grad_() for x in (hidden, weight)]
    out = chunked_logprob(*on_gpu, target.to(gpu_device), 0.9, chunk_size=8, entropy="grad")
    reference = chunked_logprob(hidden, weight, target, 0.9, entropy="grad")
    torch.testing.assert_close(out.logprobs.cpu(), reference.logprobs, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(out.entropies.cpu(), reference.entropies, rtol=1e-5, atol=2e-5)
    grads = torch.autograd.grad((out.logprobs + out.entropies).sum(), on_gpu)
    expected = torch.autograd.grad((reference.logprobs + reference.entropies).sum(), (hidden, weight))
    for grad, truth in zip(grads, expected, strict=True):
        # The gradient of the logits is rounded to bfloat16 before the product: 2^-8 of the largest entries.
        torch.testing.assert_close(grad.cpu().float(), truth.float(), rtol=2**-6, atol=2**-7 * float(truth.abs().max()))
