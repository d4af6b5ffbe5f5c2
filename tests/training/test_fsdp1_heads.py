"""Heads that scale, cap or bias their logits, in FSDP1 units on two ranks: the numbers of one process."""

import pytest
import torch

from aepo_lightning.ops.logit_map import PLAIN
from aepo_lightning.policy.network import PolicyNetwork
from aepo_lightning.policy.output_head import measure_logit_map
from aepo_lightning.policy.sharding.options import ShardingOptions
from tests.support.ranks import run_ranks
from tests.support.slow import quick
from tests.support.training import small_policy
from tests.training.test_fsdp1 import batches, train, update

pytestmark = pytest.mark.distributed

HEADS = {
    "scaled": {"model_type": "granite", "logits_scaling": 13.0},
    "capped": {"model_type": "gemma2", "final_logit_softcapping": 2.0},
    "biased": {"model_type": "phi"},
}


@pytest.mark.parametrize("fields", quick(HEADS, "biased"))
def test_two_ranks_equal_one_process_whatever_the_head_does(fields):
    policy = small_policy(**fields)
    model = policy.build_model()
    assert (measure_logit_map(model) != PLAIN) != ("lm_head.bias" in dict(model.named_parameters()))
    micro_batches = batches()
    single = PolicyNetwork(model)
    expected = update(single, micro_batches, num_ranks=1)
    trained = {name.removeprefix("model."): weight.detach() for name, weight in single.named_parameters()}
    per_step = len(micro_batches) + 1
    for rank, found in enumerate(run_ranks(train, policy, ShardingOptions(), micro_batches, False)):
        assert found["weights"].keys() == trained.keys()
        for name, weight in trained.items():
            if name.endswith("k_proj.bias"):  # it moves all scores of a query alike: AdamW enlarges rounding errors
                continue
            torch.testing.assert_close(found["weights"][name], weight, atol=1e-5, rtol=1e-5)
        first, second = expected[:per_step], expected[per_step:]
        own = [*first[rank:-1:2], first[-1], *second[rank:-1:2], second[-1]]
        assert found["numbers"] == pytest.approx(own, rel=1e-4, abs=1e-5)
    initial = policy.build_model().state_dict()
    assert all(not torch.equal(initial[name], weight) for name, weight in trained.items() if "lm_head" in name)
