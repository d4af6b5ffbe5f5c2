"""Models without weights: no memory before it is asked for, and everything that no file holds."""

import pytest
import torch
from torch import nn

from aepo_lightning.errors import ConfigError
from aepo_lightning.policy.skeleton import _compute_buffers, build_skeleton, materialise
from aepo_lightning.policy.source import PretrainedPolicy
from aepo_lightning.policy.weight_files import WeightFiles, weight_targets
from tests.support.builders import tiny_policy

CPU = torch.device("cpu")
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
POLICIES = {
    "qwen3": {},
    "tied": {"tie_word_embeddings": True},
    "llama3_rope": {"model_type": "llama", "rope_parameters": LLAMA3},
    "qwen2": {"model_type": "qwen2"},
    "gemma3": {"model_type": "gemma3_text", "head_dim": 8, "sliding_window": 16},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("fields", POLICIES.values(), ids=POLICIES)
def test_a_skeleton_with_weights_is_the_model(tmp_path, fields, dtype):
    policy = tiny_policy(**fields)
    expected = policy.build_model().to(dtype)
    expected.save_pretrained(tmp_path)
    model = build_skeleton(policy.config, dtype)
    assert all(parameter.is_meta and parameter.dtype == dtype for parameter in model.parameters())
    materialise(model, CPU)
    model.tie_weights()
    WeightFiles(tmp_path).load(weight_targets(model))
    assert all(torch.equal(model.state_dict()[name], value) for name, value in expected.state_dict().items())
    loaded = PretrainedPolicy(name_or_path=str(tmp_path), dtype=str(dtype).removeprefix("torch.")).build_model()
    buffers = dict(loaded.named_buffers())
    assert {buffer.dtype for name, buffer in buffers.items() if "inv_freq" in name} == {torch.float32}
    assert {name: buffer.dtype for name, buffer in model.named_buffers()} == {n: b.dtype for n, b in buffers.items()}
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    if policy.config.tie_word_embeddings:
        assert model.lm_head.weight is model.model.embed_tokens.weight


def test_building_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    build_skeleton(tiny_policy().config, torch.float32)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool], ids=str)
def test_a_buffer_that_the_architecture_does_not_compute_is_refused(dtype):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("table", torch.zeros(3, dtype=dtype), persistent=False)

    model = build_skeleton(tiny_policy().config, torch.float32)
    model.odd = Odd()
    with pytest.raises(ConfigError, match=r"`odd.table` of Qwen3ForCausalLM is in no file and cannot be computed"):
        _compute_buffers(model)


def test_units_below_keep_what_they_have():
    module = nn.Sequential(nn.Linear(2, 2, device="meta"), nn.Linear(2, 2))
    kept = module[1].weight
    materialise(module, CPU, is_unit=lambda child: child is module[1])
    assert not module[0].weight.is_meta
    assert module[1].weight is kept
