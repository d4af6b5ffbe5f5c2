"""The contract of packed training with an adapter: every number of an update is that of padded rows."""

import pytest
import torch

from aepo_lightning.objectives import Cispo, ClippedSurrogate, KLPenalty
from aepo_lightning.policy.lora import LoRA
from tests.support.adapters import teach
from tests.support.extras import needs
from tests.support.packing import PACKINGS, branched_trees, grouped_policy, update
from tests.support.training import build_experience, built_module, relative_l2

needs("peft", "lora")

OBJECTIVES = {
    "ebpo": ClippedSurrogate(preserve_high=1.0),
    "gspo": ClippedSurrogate(ratio_level="sequence", clip_range_low=0.02, clip_range_high=0.02),
    "cispo": Cispo(clip_range_high=0.5),
}
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}
ADAPTERS = {"all layers": LoRA(rank=3, alpha=6.0), "attention": LoRA(rank=2, target_modules=("q_proj", "v_proj"))}


def check_equal(found, expected, tolerance):
    assert found["loss"] == pytest.approx(expected["loss"], rel=tolerance)
    assert relative_l2(found["gradients"], expected["gradients"]) < tolerance
    assert found["rows"].keys() == expected["rows"].keys()
    for key, numbers in expected["rows"].items():
        torch.testing.assert_close(found["rows"][key], numbers, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=["float64", "float32"])
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_adapters_train_the_same_on_packed_tokens(name, adapter, dtype):
    trees = branched_trees(num_trees=2, seed=list(OBJECTIVES).index(name))
    options = {
        "objective": OBJECTIVES[name],
        "adapter": ADAPTERS[adapter],
        "dtype": dtype,
        "kl_penalty": KLPenalty(coefficient=0.1),
        "entropy_coefficient": 0.01,
        "experience": {"max_tokens_per_micro_batch": 60},
    }
    expected = update("padded", trees, **options)
    assert expected["gradients"].norm() > 0
    for packing in PACKINGS:
        found = update(packing, trees, **options)
        check_equal(found, expected, TOLERANCES[dtype])
        assert found["num_micro_batches"] > 1


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
def test_gradient_checkpointing_recomputes_packed_tokens_below_frozen_embeddings(packing, is_tied):
    trees, policy = branched_trees(num_trees=2), grouped_policy(tie_word_embeddings=is_tied)
    options = {"dtype": torch.float64, "policy": policy, "adapter": ADAPTERS["all layers"]}
    expected = update("padded", trees, **options)
    check_equal(update(packing, trees, gradient_checkpointing=True, **options), expected, 1e-10)


def test_the_reference_is_the_policy_without_its_adapter_and_needs_no_copy():
    options = {"kl_penalty": KLPenalty(coefficient=0.1)}
    module = built_module(policy=grouped_policy(), adapter=ADAPTERS["all layers"], **options)
    teach(module.network)
    (minibatch,) = build_experience(module, branched_trees(num_trees=2), packing="tree")
    (batch,) = minibatch.micro_batches
    plain = built_module(policy=grouped_policy(), **options)
    assert torch.equal(batch.ref_logprobs, plain.score_reference(batch).logprobs)
    assert (batch.ref_logprobs - batch.old_logprobs).abs().max() > 0.1
    assert torch.equal(batch.old_logprobs, module.score(batch).logprobs)
    assert module._reference == []
