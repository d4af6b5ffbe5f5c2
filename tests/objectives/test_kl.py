import math

import pytest
import torch

from aepo_lightning.objectives.kl import KLPenalty, kl_estimate


def make_distributions(vocab_size=6):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, vocab_size, dtype=torch.float64, generator=generator)
    return logits[0].requires_grad_(), torch.log_softmax(logits[1], -1)


@pytest.mark.parametrize(
    ("estimator", "expected"),
    # d = ref - logp = ln 2: k1 = -ln 2, k2 = (ln 2)^2 / 2, k3 = 2 - ln 2 - 1.
    [("k1", -math.log(2)), ("k2", math.log(2) ** 2 / 2), ("k3", 1 - math.log(2))],
)
def test_estimate_by_hand(estimator, expected):
    logprobs = torch.tensor([[-1.0]], dtype=torch.float64)
    estimate = kl_estimate(logprobs, logprobs + math.log(2), estimator)
    assert estimate.item() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(estimator):
    logits, ref = make_distributions()
    log_p = torch.log_softmax(logits, -1).detach()
    exact = (log_p.exp() * (log_p - ref)).sum()
    mean = (log_p.exp() * kl_estimate(log_p[None], ref[None], estimator)[0]).sum()
    torch.testing.assert_close(mean, exact, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_mean_gradients_are_those_of_the_docstring(estimator):
    logits, ref = make_distributions()
    log_p = torch.log_softmax(logits, -1)
    sampled = (log_p.exp().detach() * kl_estimate(log_p[None], ref[None], estimator)[0]).sum()
    exact = {
        "k1": log_p.exp().sum(),
        "k2": (log_p.exp() * (log_p - ref)).sum(),
        "k3": (ref.exp() * (ref - log_p)).sum(),
    }[estimator]
    grads = [torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (sampled, exact)]
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_k2_and_k3_are_never_negative_and_zero_for_equal_policies(estimator):
    difference = torch.linspace(-30, 30, 121, dtype=torch.float64)[None]
    estimate = kl_estimate(torch.zeros_like(difference), difference, estimator)
    assert (estimate >= 0).all()
    assert (estimate == 0).tolist() == (difference == 0).tolist()


def test_k3_stays_finite_for_log_probs_far_apart():
    logprobs = torch.tensor([[-1e4, -1.0, -math.inf]], requires_grad=True)
    estimate = kl_estimate(logprobs, torch.tensor([[-1.0, -1e4, -1.0]]), "k3")
    estimate.sum().backward()
    assert estimate.isfinite().all()
    assert logprobs.grad.isfinite().all()


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_gradcheck(estimator):
    logprobs = torch.tensor([[-0.5, -2.0, -3.0]], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([[-1.5, -1.9, -0.1]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: kl_estimate(x, ref, estimator), logprobs)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_penalty_is_the_scaled_estimate_inside_the_mask_and_zero_outside(estimator):
    logprobs = torch.tensor([[-1.0, math.nan, -2.0]], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([[-1.5, -math.inf, -1.0]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, False, True]])
    penalty = KLPenalty(coefficient=0.3, estimator=estimator)(logprobs, ref, mask)
    expected = 0.3 * kl_estimate(logprobs[mask][None], ref[mask][None], estimator)[0]
    torch.testing.assert_close(penalty[mask], expected)
    assert penalty[~mask].tolist() == [0.0]
    penalty.sum().backward()
    assert logprobs.grad[~mask].tolist() == [0.0]
    assert logprobs.grad.isfinite().all()
    assert ref.grad is None


def test_coefficient_zero_reads_no_reference():
    logprobs = torch.tensor([[-1.0, -2.0]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert KLPenalty()(logprobs, torch.full_like(logprobs, math.nan), mask).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(
    ("options", "expected", "gradient"),
    [
        # k3 of d = 3 and 30: e^3 - 4, and e^20 - 21 without a gradient; d(k3)/d(logp) = 1 - e^d.
        ({}, [math.exp(3) - 4, math.exp(20) - 21], [1 - math.exp(3), 0]),
        ({"max_log_ratio": 2.0}, [math.exp(2) - 3, math.exp(2) - 3], [0, 0]),
        # verl: d to +-20, then the estimate to +-10.
        ({"max_estimate": 10.0}, [10, 10], [0, 0]),
        ({"max_estimate": 20.0}, [math.exp(3) - 4, 20], [1 - math.exp(3), 0]),
        ({"estimator": "k1", "max_estimate": 10.0}, [-3, -10], [1, 0]),
    ],
)
def test_bounds_of_a_token(options, expected, gradient):
    logprobs = torch.tensor([[-4.0, -31.0]], dtype=torch.float64, requires_grad=True)
    mask = torch.ones(1, 2, dtype=torch.bool)
    penalty = KLPenalty(coefficient=1.0, **options)(logprobs, torch.full_like(logprobs, -1.0), mask)
    penalty.sum().backward()
    assert penalty[0].tolist() == pytest.approx(expected, rel=1e-12)
    assert logprobs.grad[0].tolist() == pytest.approx(gradient, rel=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coefficient": -1.0}, r"`coefficient` must be 0 \(off\) or positive, but got -1"),
        ({"max_log_ratio": 0.0}, "`max_log_ratio` must be positive and at most 80, but got 0.0"),
        ({"max_estimate": -1.0}, r"`max_estimate` must be None \(no bound\) or positive, but got -1.0"),
    ],
)
def test_refuses_settings_without_meaning(options, message):
    with pytest.raises(ValueError, match=message):
        KLPenalty(**options)


def test_an_unknown_place_is_refused():
    penalty = KLPenalty()
    object.__setattr__(penalty, "place", "advantage")
    with pytest.raises(ValueError, match="`place` must be 'loss' or 'reward', but got 'advantage'"):
        penalty.__post_init__()
