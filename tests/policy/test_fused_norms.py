"""RMS norms as one kernel: the same numbers, and only where they are plain."""

import pytest
import torch

from aepo_lightning.policy.fused_norms import fuse_norms
from aepo_lightning.policy.network import PolicyNetwork
from aepo_lightning.policy.skeleton import build_skeleton
from tests.support.builders import tiny_policy
from tests.support.training import make_module

IDS = torch.tensor([[5, 9, 17, 30, 31, 8]])


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize(("model_type", "expected"), [("qwen3", 9), ("llama", 5), ("gemma3_text", 0), ("phi", 0)])
def test_states_are_the_same_and_norms_of_other_kinds_stay(model_type, expected):
    model = tiny_policy(model_type).build_model()
    before = model.model(input_ids=IDS, use_cache=False).last_hidden_state
    assert fuse_norms(model) == expected
    after = model.model(input_ids=IDS, use_cache=False).last_hidden_state
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


def test_weights_that_are_replaced_in_place_count():
    model = tiny_policy("llama").build_model()
    fuse_norms(model)
    hidden = torch.randn(2, 32)
    model.model.norm.weight.copy_(torch.arange(32.0))
    expected = hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + 1e-6) * torch.arange(32.0)
    torch.testing.assert_close(model.model.norm(hidden), expected, rtol=1e-5, atol=1e-5)


def test_sixteen_bits_are_rounded_once():
    model = tiny_policy("llama").build_model().bfloat16()
    hidden = torch.randn(64, 32).bfloat16()
    weight = (torch.rand(32) + 0.5).bfloat16()
    model.model.norm.weight.copy_(weight)
    twice = model.model.norm(hidden)
    exact = hidden.double() * torch.rsqrt(hidden.double().square().mean(-1, keepdim=True) + 1e-6) * weight.double()
    assert fuse_norms(model) == 5
    once = model.model.norm(hidden)
    assert once.dtype == torch.bfloat16
    assert float((once - exact).abs().mean()) < float((twice - exact).abs().mean())


def test_a_norm_that_does_more_under_the_same_name_stays():
    model = tiny_policy("llama").build_model()
    kind = type(model.model.norm)

    class ShiftedRMSNorm(kind):
        def forward(self, hidden):
            return super().forward(hidden) + self.weight

    model.model.norm.__class__ = ShiftedRMSNorm
    assert fuse_norms(model) == 4


def scores_and_gradients(policy, dtype, is_fused):
    model = policy.build_model().to(dtype)
    if is_fused is None:
        model = model.double()
    network = PolicyNetwork(model, gradient_checkpointing=True, fused_norms=bool(is_fused)).train()
    with torch.enable_grad():
        scores = network(IDS, torch.ones(1, 5, dtype=torch.bool), entropy="grad")
        (scores.logprobs.sum() + scores.entropies.sum()).backward()
    gradients = torch.cat([each.grad.flatten() for each in network.parameters()])
    return scores.logprobs.double(), scores.entropies.double(), gradients.double()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_an_update_has_the_same_scores_and_gradients(dtype):
    policy = tiny_policy("qwen3")
    found, own = (scores_and_gradients(policy, dtype, is_fused) for is_fused in (True, False))
    if dtype != torch.bfloat16:
        for one, other in zip(found, own, strict=True):  # transformers' norms round to float32, whatever comes in
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        return
    exact = scores_and_gradients(policy, dtype, None)  # of the same rounded weights
    for one, other, true in zip(found, own, exact, strict=True):
        # What is rounded once is not farther away; a third leaves room for chance on few tokens.
        assert (one - true).norm() <= 4 / 3 * (other - true).norm()


def test_states_under_autocast_go_the_own_way():
    norm = tiny_policy("llama").build_model().model.norm
    hidden = torch.randn(3, 32).bfloat16()
    expected = norm(hidden)
    assert fuse_norms(norm) == 1
    assert norm(hidden).dtype == expected.dtype
    torch.testing.assert_close(norm(hidden), expected, rtol=0, atol=0)


def test_norms_without_memory_are_fused_and_take_their_weights_later():
    model = build_skeleton(tiny_policy("qwen3").config, torch.float32)
    assert fuse_norms(model) == 9
    norm = model.model.norm.to_empty(device="cpu")
    with torch.no_grad():
        norm.weight.fill_(2.0)
    torch.testing.assert_close(norm(torch.ones(1, 32)), torch.full((1, 32), 2.0), rtol=1e-5, atol=1e-5)


def test_the_module_fuses_norms_where_it_is_asked_to():
    module = make_module(fused_norms=True)
    module.configure_model()
    assert "forward" in vars(module.trained_network().model.model.norm)
