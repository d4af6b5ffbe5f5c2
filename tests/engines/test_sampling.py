"""Sampling: the right distribution, and random numbers that belong to a request and not to its batch."""

import math

import pytest
import torch

from aepo_lightning.engines.sampling import counter_uniforms, penalise_repetition, sample_tokens

MASK = (1 << 64) - 1


def slow_split_mix(state):
    """SplitMix64's finaliser in Python integers, which do not overflow."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def slow_uniform(seed, position):
    state = slow_split_mix((slow_split_mix(seed) + (position + 1) * 0x9E3779B97F4A7C15) & MASK)
    return (state >> 11) / 2**53


def slow_keep(probabilities, top_p, top_k):
    """The tokens that survive top-k and then top-p, by the definition."""
    order = sorted(range(len(probabilities)), key=lambda token: -probabilities[token])
    order = order[:top_k] if top_k else order
    total = math.fsum(probabilities[token] for token in order)
    kept, mass = set(), 0.0
    for token in order:
        if mass >= top_p * total:
            break
        kept.add(token)
        mass += probabilities[token]
    return kept


def draw(logits, uniforms, temperature=1.0, top_p=1.0, top_k=0):
    number = len(uniforms)
    rows = torch.as_tensor(logits, dtype=torch.float32).expand(number, -1)
    return sample_tokens(
        rows,
        torch.full((number,), float(temperature)),
        torch.full((number,), float(top_p)),
        torch.full((number,), top_k),
        torch.as_tensor(uniforms, dtype=torch.float64),
    )


def grid(number):
    """Midpoints of `number` equal intervals of [0, 1): an exact stand-in for uniform draws."""
    return (torch.arange(number, dtype=torch.float64) + 0.5) / number


@pytest.mark.parametrize("seed", [0, 1, 12345, (1 << 63) - 1])
def test_uniforms_equal_splitmix_in_python_integers(seed):
    positions = [0, 1, 2, 511, 1 << 20]
    found = counter_uniforms(torch.tensor([seed] * len(positions)), torch.tensor(positions))
    assert found.tolist() == [slow_uniform(seed, position) for position in positions]


@pytest.mark.parametrize("axis", ["positions", "seeds", "both"])
def test_uniforms_are_uniform(axis):
    number = 20_000
    counter = torch.arange(number)
    zeros = torch.zeros_like(counter)
    seeds = zeros if axis == "positions" else counter
    positions = zeros if axis == "seeds" else counter
    ordered = counter_uniforms(seeds, positions).sort().values
    assert float(ordered[0]) >= 0
    assert float(ordered[-1]) < 1
    distance = (ordered - grid(number)).abs().max() + 0.5 / number
    # Kolmogorov-Smirnov: P(distance > 1.95 / sqrt(n)) = 0.001 for uniform numbers.
    assert float(distance) < 1.95 / math.sqrt(number)


def test_neighbouring_positions_and_seeds_are_uncorrelated():
    counter = torch.arange(20_000)
    for seeds, positions in ((counter * 0, counter), (counter, counter * 0)):
        values = counter_uniforms(seeds, positions)
        correlation = torch.corrcoef(torch.stack((values[1:], values[:-1])))[0, 1]
        assert abs(float(correlation)) < 4 / math.sqrt(20_000)  # four standard deviations


def test_uniforms_do_not_depend_on_the_rest_of_the_batch():
    seeds, positions = torch.tensor([3, 9, 3]), torch.tensor([5, 5, 6])
    together = counter_uniforms(seeds, positions)
    alone = [counter_uniforms(seeds[i : i + 1], positions[i : i + 1]) for i in range(3)]
    assert torch.equal(together, torch.cat(alone))
    assert len(set(together.tolist())) == 3


def test_a_hand_worked_draw():
    # p = (1/2, 1/4, 1/4), cumulative (0.5, 0.75, 1): the draw is the first index whose cumulative mass exceeds u.
    logits = torch.tensor([0.5, 0.25, 0.25]).log()
    assert draw(logits, [0.0, 0.49, 0.51, 0.74, 0.76, 1 - 2**-53]).token_ids.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_over_a_grid_of_uniforms_are_the_probabilities(temperature):
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0, -4.0])
    number = 10_000
    counts = torch.bincount(draw(logits, grid(number), temperature).token_ids, minlength=5)
    expected = torch.softmax(logits.double() / temperature, -1) * number
    # Inverting the cumulative distribution on a grid is off by at most one point at each end of an interval.
    assert float((counts - expected).abs().max()) <= 2


def test_counter_draws_pass_a_chi_square_test():
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0, -2.0, 0.5])
    number = 20_000
    uniforms = counter_uniforms(torch.full((number,), 77), torch.arange(number))
    counts = torch.bincount(draw(logits, uniforms).token_ids, minlength=6).double()
    expected = torch.softmax(logits.double(), -1) * number
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 20.5  # 0.999 quantile for 5 degrees of freedom


@pytest.mark.parametrize("top_k", [0, 1, 3, 7, 100], ids="k{}".format)
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5, 0.01], ids="p{}".format)
def test_top_k_then_top_p_keeps_exactly_what_the_definition_keeps(top_p, top_k):
    generator = torch.Generator().manual_seed(5)
    for _ in range(10):
        logits = torch.randn(12, generator=generator) * 2
        probabilities = torch.softmax(logits, -1).double()
        kept = slow_keep(probabilities.tolist(), torch.tensor(top_p).double().item(), top_k)
        number = 4_000
        counts = torch.bincount(draw(logits, grid(number), 1.0, top_p, top_k).token_ids, minlength=12)
        mass = sum(probabilities[token].item() for token in kept)
        for token in range(12):
            expected = number * probabilities[token].item() / mass if token in kept else 0
            assert abs(int(counts[token]) - expected) <= (2 if token in kept else 0)


def test_ties_at_the_edge_of_top_k_still_keep_exactly_k():
    tokens = draw(torch.zeros(6), grid(1_000), top_k=2).token_ids
    assert len(set(tokens.tolist())) == 2


def test_top_p_stops_at_the_token_that_reaches_the_mass_exactly():
    assert set(draw(torch.zeros(2), grid(1_000), top_p=0.5).token_ids.tolist()) in ({0}, {1})


@pytest.mark.parametrize("dead", [[0], [5], [0, 1, 4, 5]], ids=str)
@pytest.mark.parametrize("top_p", [1.0, 0.95])
def test_tokens_of_zero_probability_are_never_drawn(dead, top_p):
    logits = torch.zeros(6)
    logits[dead] = -math.inf
    uniforms = torch.cat((torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64), grid(500)))
    sampled = draw(logits, uniforms, top_p=top_p)
    assert not set(sampled.token_ids.tolist()) & set(dead)
    assert sampled.logprobs.isfinite().all()
    assert sampled.entropies.tolist() == pytest.approx([math.log(6 - len(dead))] * len(uniforms))


def test_a_single_live_token_is_drawn_for_every_uniform():
    logits = torch.tensor([-math.inf, 3.0, -math.inf])
    sampled = draw(logits, [0.0, 0.3, 1 - 2**-53])
    assert sampled.token_ids.tolist() == [1, 1, 1]
    assert sampled.entropies.tolist() == [0.0, 0.0, 0.0]


def test_greedy_takes_the_largest_logit_and_reports_temperature_one():
    logits = torch.tensor([0.1, 2.0, 1.9])
    greedy, plain = draw(logits, [0.0, 0.999], temperature=0), draw(logits, [0.5, 0.5])
    assert greedy.token_ids.tolist() == [1, 1]
    assert greedy.logprobs.tolist() == pytest.approx([torch.log_softmax(logits, -1)[1].item()] * 2)
    assert torch.equal(greedy.entropies, plain.entropies)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
def test_logprobs_and_entropies_are_those_of_the_tempered_distribution(temperature):
    logits = torch.randn(30, generator=torch.Generator().manual_seed(2)) * 3
    sampled = draw(logits, grid(50), temperature, top_p=0.8, top_k=9)
    weights = [math.exp(value / temperature) for value in logits.tolist()]
    total = math.fsum(weights)
    slow = [math.log(weight / total) for weight in weights]
    entropy = -math.fsum(math.exp(value) * value for value in slow)
    # float32 against float64, values up to 20: relative 1e-6 is some ten units in the last place.
    assert sampled.logprobs.tolist() == pytest.approx([slow[t] for t in sampled.token_ids.tolist()], rel=2e-6, abs=2e-6)
    assert sampled.entropies.tolist() == pytest.approx([entropy] * 50, rel=2e-6, abs=2e-6)
    assert sampled.all_logprobs[0].tolist() == pytest.approx(slow, rel=2e-6, abs=2e-6)


def test_each_row_has_its_own_settings():
    logits = torch.tensor([[0.0, 1.0, 2.0]]).expand(4, -1)
    sampled = sample_tokens(
        logits,
        torch.tensor([0.0, 1.0, 1.0, 100.0]),
        torch.tensor([1.0, 1.0, 0.01, 1.0]),
        torch.tensor([0, 0, 0, 1]),
        torch.tensor([0.0, 0.0, 0.0, 0.0], dtype=torch.float64),
    )
    assert sampled.token_ids.tolist() == [2, 0, 2, 2]


def test_scores_of_tokens_that_were_there_are_lowered_whatever_their_sign():
    logits = torch.tensor([[2.0, -2.0, 1.0, 0.0]]).repeat(2, 1)
    found = penalise_repetition(logits, [[0, 1, 1, 3], [0, 1]], [2.0, 1.0])
    # 2 / 2, -2 * 2, not seen, 0; the second row has no penalty
    assert found.tolist() == [[1.0, -4.0, 1.0, 0.0], [2.0, -2.0, 1.0, 0.0]]
    assert logits[0, 0] == 2


@pytest.mark.parametrize("temperature, token", [(1.0, 2), (0.0, 1)])
def test_other_scores_decide_what_is_drawn_and_logprobs_stay_those_of_the_policy(temperature, token):
    logits, others = torch.tensor([[3.0, 1.0, 1.0]]), torch.tensor([[-99.0, 1.0, 1.0]])
    rows = (torch.tensor([temperature]), torch.tensor([1.0]), torch.tensor([0]), torch.tensor([0.75]).double())
    found = sample_tokens(logits, *rows, drawn_from=others)
    # of the other scores: 0, 1/2, 1/2; the policy gives e / (e^3 + 2e) to each of the last two
    assert found.token_ids.tolist() == [token]
    assert found.logprobs.item() == pytest.approx(1 - math.log(math.exp(3) + 2 * math.e))
    assert found.entropies.item() == pytest.approx(sample_tokens(logits, *rows).entropies.item())
