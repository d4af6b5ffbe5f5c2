"""Entropies in the rank field: the packing, and the wrapper around a sampler that scales its logits in place."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch

from aepo_lightning.engines.vllm_entropy import (
    _with_entropies,
    pack_entropies,
    row_entropies,
    tempered_logprobs,
    unpack_entropy,
)
from aepo_lightning.errors import EngineError


@dataclass
class Metadata:
    max_num_logprobs: int | None
    temperature: torch.Tensor | None


@dataclass
class Output:
    sampled_token_ids: torch.Tensor
    logprobs_tensors: object = None


class Logprobs(NamedTuple):
    token_ids: torch.Tensor
    logprobs: torch.Tensor
    ranks: torch.Tensor


def sampler(sampled, seen):
    def forward(logits, sampling_metadata):
        seen.append(sampling_metadata.max_num_logprobs)
        logits.mul_(0)
        return Output(torch.tensor(sampled)[:, None].int())

    return forward


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


def test_a_coin_of_odds_one_to_three_at_two_temperatures():
    logits = torch.tensor([[0.0, math.log(3.0)]] * 3)
    logprobs = tempered_logprobs(logits, torch.tensor([1.0, 0.5, 0.0]))
    # T = 1: p = 1/4, 3/4.  T = 1/2: odds 1 to 9, p = 1/10, 9/10.  T = 0 (greedy) counts as 1.
    expected = torch.tensor([[0.25, 0.75], [0.1, 0.9], [0.25, 0.75]])
    torch.testing.assert_close(logprobs.exp(), expected)
    # H(1/4) = 1/4 ln 4 + 3/4 ln 4/3 = 0.5623; H(1/10) = 0.1 ln 10 + 0.9 ln 10/9 = 0.3251
    assert row_entropies(logprobs).tolist() == pytest.approx([0.5623, 0.3251, 0.5623], abs=5e-5)  # four digits above
    torch.testing.assert_close(tempered_logprobs(logits, None), logprobs[[0, 0, 0]])


def test_rows_are_independent_of_how_many_there_are():
    logprobs = torch.randn(100, 7, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    alone = torch.stack([-(row.exp() * row).sum() for row in logprobs])
    torch.testing.assert_close(row_entropies(logprobs), alone)


def test_an_impossible_token_adds_nothing_to_the_entropy():
    logprobs = tempered_logprobs(torch.tensor([[0.0, 0.0, -math.inf]]), None)
    assert row_entropies(logprobs).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("num_top", [0, 2])
def test_the_wrapper_scores_the_logits_before_the_sampler_changes_them(num_top):
    logits = torch.tensor([[0.0, 1.0, 3.0], [2.0, 0.0, 1.0]])
    expected = (logits / torch.tensor([[0.5], [1.0]])).log_softmax(-1)
    seen = []
    forward = _with_entropies(sampler([1, 0], seen), Logprobs)
    output = forward(logits=logits, sampling_metadata=Metadata(num_top, torch.tensor([0.5, 1.0])))
    assert seen == [None]  # the sampler itself computes no log-probs
    assert output.logprobs_tensors.token_ids.tolist() == [[1, *[2, 1][:num_top]], [0, *[0, 2][:num_top]]]
    torch.testing.assert_close(output.logprobs_tensors.logprobs[:, 0], expected[[0, 1], [1, 0]])
    torch.testing.assert_close(
        output.logprobs_tensors.logprobs[:, 1:], expected.sort(descending=True).values[:, :num_top]
    )
    entropies = [unpack_entropy(code) for code in output.logprobs_tensors.ranks.tolist()]
    assert entropies == pytest.approx((-(expected.exp() * expected).sum(-1)).tolist())


def test_requests_without_logprobs_pass_through():
    seen = []
    output = _with_entropies(sampler([1], seen), Logprobs)(torch.zeros(1, 2), Metadata(None, None))
    assert output.logprobs_tensors is None
