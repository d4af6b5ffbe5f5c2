import math

import pytest
import torch

from aepo_lightning.contracts.generation import FinishReason, Generation
from aepo_lightning.ops.entropy import top_k_entropy
from aepo_lightning.rollout.turn_entropy import TurnEntropy


def make_generation(entropies, top_logprobs=()):
    return Generation(
        token_ids=list(range(len(entropies))),
        logprobs=[-1.0] * len(entropies),
        entropies=list(entropies),
        finish_reason=FinishReason.STOP,
        top_logprobs=[list(row) for row in top_logprobs],
    )


def slow_entropy(logits):
    largest = max(logits)
    weights = [math.exp(z - largest) for z in logits]
    return -sum(w / sum(weights) * math.log(w / sum(weights)) for w in weights if w > 0)


def make_logits(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 3


def test_top_k_entropy_is_the_truncated_sum():
    # p = 1/2 and 1/4 of some distribution: 1/2 ln 2 + 1/4 ln 4 = ln 2
    assert top_k_entropy([math.log(0.5), math.log(0.25), -math.inf]) == pytest.approx(math.log(2), rel=1e-15)
    assert top_k_entropy([]) == 0.0


def test_top_k_entropy_grows_with_k_up_to_the_exact_entropy():
    for row in make_logits(20, 40, seed=3):
        ordered = torch.log_softmax(row, -1).sort(descending=True).values.tolist()
        estimates = [top_k_entropy(ordered[:k]) for k in (0, 1, 10, 39, 40)]
        assert estimates == sorted(estimates)
        assert estimates[2] < estimates[4]
        assert estimates[4] == pytest.approx(slow_entropy(row.tolist()), rel=1e-13)


def test_turn_entropy_by_hand():
    # First two tokens of (1, 3, 100): sum 4, mean 2; V = 8: ln V = 2.0794.
    generation = make_generation([1.0, 3.0, 100.0])
    expected = {
        ("mean", "none"): 2.0,
        ("sum", "none"): 4.0,
        ("mean", "log_vocab"): 2.0 / math.log(8),
        ("sum", "vocab"): 0.5,
    }
    for (aggregate, normalizer), value in expected.items():
        measure = TurnEntropy(num_tokens=2, aggregate=aggregate, normalizer=normalizer)
        assert measure(generation, 8) == pytest.approx(value, rel=1e-15)


def test_turn_entropy_of_uniform_tokens_is_one_for_any_length():
    for count in (1, 7, 20, 50):
        assert TurnEntropy()(make_generation([math.log(1000)] * count), 1000) == pytest.approx(1.0, rel=1e-14)


def test_official_estimate_concatenates_the_top_log_probs_of_the_first_20_tokens():
    rows = [torch.log_softmax(row, -1).sort(descending=True).values[:11].tolist() for row in make_logits(30, 200)]
    official = TurnEntropy(aggregate="sum", estimator="top_k")
    flat = [logprob for row in rows[:20] for logprob in row]
    expected = -sum(math.exp(logprob) * logprob for logprob in flat) / math.log(200)
    assert official(make_generation([0.0] * 30, rows), 200) == pytest.approx(expected, rel=1e-13)
    assert official.num_top_logprobs_needed == 10


def test_largest_official_estimate_for_the_qwen3_vocabulary():
    # Ten tokens of probability 1/10 at each of 20 positions: 20 * ln 10 / ln 151669 = 46.0517 / 11.9295 = 3.8603
    generation = make_generation([0.0] * 20, [[math.log(0.1)] * 10] * 20)
    assert TurnEntropy(aggregate="sum", estimator="top_k")(generation, 151669) == pytest.approx(3.8603, abs=1e-4)


def test_exact_estimator_needs_no_top_logprobs():
    assert TurnEntropy().num_top_logprobs_needed == 0


@pytest.mark.parametrize("estimator", ["exact", "top_k"])
def test_a_turn_without_tokens_has_entropy_zero(estimator):
    assert TurnEntropy(estimator=estimator)(make_generation([]), 100) == 0.0


def test_top_k_estimator_refuses_a_generation_without_top_logprobs():
    with pytest.raises(ValueError, match=r"top_logprobs` must have one entry per token, but got 0 for 2 tokens"):
        TurnEntropy(estimator="top_k")(make_generation([1.0, 1.0]), 100)


def test_refuses_a_vocabulary_of_one():
    with pytest.raises(ValueError, match="`vocab_size` must be at least 2, but got 1"):
        TurnEntropy()(make_generation([1.0]), 1)


@pytest.mark.parametrize("field", ["num_tokens", "num_top_logprobs"])
def test_refuses_settings_without_meaning(field):
    with pytest.raises(ValueError, match=f"`{field}` must be at least 1, but got 0"):
        TurnEntropy(**{field: 0})
