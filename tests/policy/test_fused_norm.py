"""Norms of Hugging Face models that run in few passes: which are taken, and that nothing else changes."""

import pytest
import torch

from aepo_lightning.policy.fused_norm import fuse_rms_norms
from tests.policy.test_tiled_mlp import loss_and_gradients, make_model


@pytest.mark.parametrize(("model_type", "number"), [("qwen3", 9), ("llama", 5), ("qwen2", 5)])
def test_loss_and_gradients_stay_the_same(model_type, number):
    model = make_model(model_type)
    expected = loss_and_gradients(model)
    assert fuse_rms_norms(model) == number
    torch.testing.assert_close(loss_and_gradients(model), expected)


def test_other_norms_are_left_alone():
    assert fuse_rms_norms(make_model("gemma")) == 0


def test_autocast_and_other_precisions_take_the_plain_way():
    model = make_model()
    norm, hidden = model.model.norm, torch.randn(1, 3, 16)
    expected = norm(hidden), norm(hidden.bfloat16())
    fuse_rms_norms(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(norm(hidden), expected[0])
    assert torch.equal(norm(hidden.bfloat16()), expected[1])
