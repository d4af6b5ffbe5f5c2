"""RMS norms as one kernel: the same numbers, and only where they are plain."""

import pytest
import torch

from aepo_lightning.engines.transformers.fused_norms import fuse_norms
from tests.support.builders import tiny_policy

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
