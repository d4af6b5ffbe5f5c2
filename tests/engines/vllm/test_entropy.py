"""Entropies in the rank field, and the interval for what a truncated entropy leaves out."""

import math

import pytest
import torch

from aepo_lightning.engines.vllm.entropy import pack_entropies, top_k_entropy_gap, unpack_entropy
from aepo_lightning.errors import EngineError
from aepo_lightning.ops.entropy import top_k_entropy


def test_half_a_nat_is_two_to_the_31_above_the_mark():
    # 0.5 * 2^32 = 2^31
    assert pack_entropies(torch.tensor([0.5, 0.0])).tolist() == [2**52 + 2**31, 2**52]


@pytest.mark.parametrize("entropy", [0.0, 1e-9, 0.1, math.log(151_936), 1000.0])
def test_packing_keeps_an_entropy_to_two_to_the_minus_33(entropy):
    packed = pack_entropies(torch.tensor([entropy], dtype=torch.float64))
    assert unpack_entropy(packed.item()) == pytest.approx(entropy, abs=2.0**-33, rel=0)


@pytest.mark.parametrize("rank", [0, 1, 151_936])
def test_a_plain_rank_is_not_taken_for_an_entropy(rank):
    with pytest.raises(EngineError, match=f"vLLM must report entropies, but reported the rank {rank}"):
        unpack_entropy(rank)


def test_a_quarter_left_out_over_two_of_four_tokens():
    # Listed 1/2 and 1/4, so t = 1/4 over n = 2: at least 1/4 ln 4 = 0.3466, at most 1/4 ln 8 = 0.5199.
    gap = top_k_entropy_gap([math.log(0.5), math.log(0.25)], 4)
    assert gap == pytest.approx((0.3466, 0.5199), abs=5e-5)  # four digits above


@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0])
def test_the_exact_entropy_lies_in_the_interval(scale):
    logits = scale * torch.randn(50, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for row in logits.log_softmax(-1):
        top = row.topk(20).values.tolist()
        low, high = top_k_entropy_gap(top, 300)
        assert low <= top_k_entropy(row.tolist()) - top_k_entropy(top) <= high


@pytest.mark.parametrize("probabilities", [[0.5, 0.5], [1.0]], ids=["all_tokens", "all_mass"])
def test_nothing_is_missing_when_everything_is_listed(probabilities):
    assert top_k_entropy_gap([math.log(p) for p in probabilities], 2) == (0.0, 0.0)


def test_more_tokens_than_there_are_are_refused():
    with pytest.raises(ValueError, match="`top_logprobs` must have at most 2 entries, but got 3"):
        top_k_entropy_gap([-1.0, -1.0, -1.0], 2)
