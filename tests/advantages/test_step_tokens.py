import pytest
import torch

from aepo_lightning.advantages.step_tokens import covariance_terms, kth_largest, num_chosen, response_tokens
from tests.support.step_batches import PARTS, WHOLE, by_row, make_rows, split


def test_the_kth_largest_is_that_of_the_sorted_values():
    values = torch.randn(50, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.arange(-25, 25)
    values = torch.cat([values, torch.tensor([0.0, -0.0, 1.0, 1.0, -1.0, 3e38, -3e38, 1e-45])])
    ordered = sorted(values.tolist(), reverse=True)
    for k in range(1, len(values) + 1, 3):
        assert kth_largest(values, k) == ordered[k - 1]


def test_a_fraction_is_at_least_one_value():
    assert [num_chosen(fraction, torch.zeros(10)) for fraction in (0.001, 0.2, 0.26, 1.0)] == [1, 2, 3, 10]
    assert num_chosen(0.5, torch.zeros(0)) == 0


def test_covariances_are_those_of_a_loop_over_tokens():
    rows = make_rows()
    (batch,) = split(rows, *WHOLE)
    tokens = [(i, t) for i in range(8) for t in range(12) if batch.response_mask[i, t]]
    logprobs = [float(batch.old_logprobs[at]) for at in tokens]
    advantages = [float(batch.advantages[at]) for at in tokens]
    means = [sum(values) / len(tokens) for values in (logprobs, advantages)]
    (found,) = covariance_terms([batch])
    for at, logprob, advantage in zip(tokens, logprobs, advantages, strict=True):
        assert float(found[at]) == pytest.approx((logprob - means[0]) * (advantage - means[1]), rel=1e-4, abs=1e-6)
    assert not found[~batch.response_mask].any()
    # Their mean is the covariance of the two columns.
    columns = torch.tensor([logprobs, advantages], dtype=torch.float64)
    mean = float(response_tokens([found], [batch]).mean())
    assert mean == pytest.approx(float(torch.cov(columns, correction=0)[0, 1]), rel=1e-5)


def test_covariances_do_not_depend_on_the_split():
    rows = make_rows()
    whole, parts = (by_row(covariance_terms(split(rows, *each)), *each) for each in (WHOLE, PARTS))
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-7)
