"""Weights between sampler and trainer: their values, what they leave alone, and where they enter the loss."""

import itertools
import math

import pytest
import torch

from aepo_lightning.contracts.objective import ObjectiveInput
from aepo_lightning.errors import ConfigError
from aepo_lightning.objectives import Cispo, ClippedSurrogate, ImportanceCorrection

MASK = torch.tensor([[True, True, True, False], [True, False, True, True]])
OBJECTIVES = {
    "grpo": ClippedSurrogate(),
    "ebpo": ClippedSurrogate(preserve_high=1.0),
    "gspo": ClippedSurrogate(ratio_level="sequence", clip_range_low=3e-4, clip_range_high=4e-4),
    "cispo": Cispo(clip_range_high=0.2),
}
MODES = ("none", "truncated", "masked")
LEVELS = ("token", "sequence", "sequence_product")


def combinations(*sources):
    """Every mode, level and source of old log-probs that may stand together."""
    found = itertools.product(MODES, LEVELS, sources)
    return [each for each in found if each != ("truncated", "sequence_product", "sampler")]


def correction(mode="truncated", **options):
    return ImportanceCorrection(**({"mode": mode, "cap": 1.5, "low": 0.8, "high": 1.25} | options))


def random_logprobs(seed=0, spread=0.5):
    """Current, old and sampler log-probs that differ by about `spread`."""
    generator = torch.Generator().manual_seed(seed)
    base = -3 * torch.rand(MASK.shape, generator=generator, dtype=torch.float64)
    noise = spread * torch.randn(2, *MASK.shape, generator=generator, dtype=torch.float64)
    return base, base + noise[0], base + noise[1]


def loss_of(objective, output, logprobs, advantages):
    inputs = ObjectiveInput(
        logprobs=logprobs, old_logprobs=output.old_logprobs, advantages=advantages, response_mask=MASK
    )
    return (objective(inputs).token_losses * output.token_weights).sum()


# By hand ------------------------------------------------------------------------------------------------------------

# Sampler probabilities 0.5, 0.4, 0.2; old ones of the trainer 0.55, 0.2, 0.5: weights 1.1, 0.5, 2.5.
SAMPLER = torch.tensor([[0.5, 0.4, 0.2]]).log()
OLD = torch.tensor([[0.55, 0.2, 0.5]]).log()
ALL = torch.ones(1, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("mode", "level", "expected"),
    [
        ("none", "token", [1, 1, 1]),
        ("truncated", "token", [1.1, 0.5, 1.5]),
        ("masked", "token", [1.1, 0, 0]),
        # The geometric mean is (1.1 * 0.5 * 2.5)^(1/3) = 1.375^(1/3) = 1.11199.
        ("truncated", "sequence", [1.11199] * 3),
        ("masked", "sequence", [1.11199] * 3),
        ("truncated", "sequence_product", [1.375] * 3),
        ("masked", "sequence_product", [0, 0, 0]),
    ],
)
def test_weights_of_hand_worked_tokens(mode, level, expected):
    output = correction(mode, level=level)(OLD, OLD, SAMPLER, ALL)
    torch.testing.assert_close(output.token_weights, torch.tensor([expected]).float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(output.old_logprobs, OLD)


def test_metrics_of_hand_worked_tokens():
    found = correction()(OLD, OLD, SAMPLER, ALL).metrics
    # Log-weights ln 1.1 = 0.0953102, ln 0.5 = -0.6931472, ln 2.5 = 0.9162907.
    # k3 = w - 1 - ln w: 0.0046898, 0.1931472, 0.5837093.
    assert found["sampler_logprob_gap"].value() == pytest.approx((0.0953102 + 0.6931472 + 0.9162907) / 3, rel=1e-5)
    assert found["mismatch_kl"].value() == pytest.approx((0.0046898 + 0.1931472 + 0.5837093) / 3, rel=1e-5)
    assert found["importance_weight"].value() == pytest.approx(4.1 / 3, rel=1e-5)
    assert found["importance_outside_fraction"].value() == pytest.approx(1 / 3)
    assert all(float(each.weight) == 3 for each in found.values())


def test_ratios_of_hand_worked_tokens_where_the_old_log_probs_are_the_samplers():
    # The current policy stands where the trainer's old one stood above, so the ratios to the sampler are 1.1, 0.5, 2.5.
    truncated = correction(old_logprobs="sampler")(OLD, SAMPLER, SAMPLER, ALL)
    ratio = (OLD - truncated.old_logprobs).exp()
    torch.testing.assert_close(ratio, torch.tensor([[1.1, 0.5, 1.5]]))
    assert truncated.token_weights.tolist() == [[1, 1, 1]]
    masked = correction("masked", old_logprobs="sampler")(OLD, SAMPLER, SAMPLER, ALL)
    torch.testing.assert_close(masked.old_logprobs, SAMPLER)
    assert masked.token_weights.tolist() == [[1, 0, 0]]


# Against a slow reference -------------------------------------------------------------------------------------------


def reference(settings, current, old, sampler):
    """Ratio and factor of every token, one by one, from the formulas of the class."""
    trainer = current if settings.old_logprobs == "sampler" or old is None else old
    ratios, factors = torch.ones_like(current), torch.ones_like(current)
    for row, tokens in enumerate(MASK.tolist()):
        own = [t for t, is_trained in enumerate(tokens) if is_trained]
        weights = {t: math.exp(float(trainer[row, t] - sampler[row, t])) for t in own}
        if settings.level != "token":
            product = math.prod(weights.values())
            weights = dict.fromkeys(own, product ** (1 / len(own)) if settings.level == "sequence" else product)
        for t in own:
            w = weights[t]
            bounded = {"none": w, "truncated": min(w, settings.cap)}.get(settings.mode)
            if settings.mode == "masked":
                bounded = w if settings.low <= w <= settings.high else 0.0
            if settings.old_logprobs == "sampler":
                ratio = math.exp(float(current[row, t] - sampler[row, t]))
                if settings.mode == "masked":
                    ratios[row, t], factors[row, t] = ratio, float(bounded > 0)
                else:
                    ratios[row, t] = ratio * bounded / w
            else:
                ratios[row, t] = math.exp(float(current[row, t] - trainer[row, t]))
                factors[row, t] = 1.0 if settings.mode == "none" else bounded
    return ratios, factors


@pytest.mark.parametrize(("mode", "level", "source"), combinations("recompute", "auto", "sampler"))
def test_ratios_and_factors_are_those_of_the_formulas(mode, level, source):
    settings = correction(mode, level=level, old_logprobs=source)
    for seed in range(8):
        current, old, sampler = random_logprobs(seed)
        for given in (old, None) if source == "auto" else (old,):
            output = settings(current, sampler if source == "sampler" else given, sampler, MASK)
            ratios, factors = reference(settings, current, given, sampler)
            torch.testing.assert_close((current - output.old_logprobs).exp()[MASK], ratios[MASK])
            torch.testing.assert_close(output.token_weights[MASK], factors[MASK])


# Laws ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "level", "source"), combinations("recompute", "sampler"))
def test_nothing_changes_where_sampler_and_trainer_agree(mode, level, source):
    current, _, sampler = random_logprobs()
    if source == "sampler":
        current = sampler.clone()
    output = correction(mode, level=level, old_logprobs=source)(current, sampler, sampler, MASK)
    assert torch.equal(output.token_weights, torch.ones_like(sampler))
    assert torch.equal(output.old_logprobs[MASK], sampler[MASK])
    assert output.metrics["mismatch_kl"].value() == 0


def test_without_a_cap_the_weights_are_those_of_importance_sampling():
    current, old, sampler = random_logprobs()
    weights = correction(cap=math.inf)(current, old, sampler, MASK).token_weights
    torch.testing.assert_close(weights[MASK], (old - sampler).exp()[MASK])
    output = correction(cap=math.inf, old_logprobs="sampler")(current, sampler, sampler, MASK)
    assert torch.equal(output.old_logprobs[MASK], sampler[MASK])


@pytest.mark.parametrize("source", ["recompute", "sampler"])
def test_masking_drops_exactly_the_tokens_beyond_the_bounds(source):
    current, old, sampler = random_logprobs()
    output = correction("masked", old_logprobs=source)(current, old, sampler, MASK)
    weights = ((current if source == "sampler" else old) - sampler).exp()
    beyond = ((weights < 0.8) | (weights > 1.25)) & MASK
    assert beyond.any()
    assert not beyond[MASK].all()
    assert torch.equal((output.token_weights == 0) & MASK, beyond)
    assert output.metrics["importance_outside_fraction"].value() == pytest.approx(float(beyond.sum() / MASK.sum()))


def test_no_bound_is_counted_where_there_is_none():
    current, old, sampler = random_logprobs(spread=3.0)
    assert correction("none")(current, old, sampler, MASK).metrics["importance_outside_fraction"].value() == 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("level", LEVELS)
def test_what_stands_outside_the_mask_changes_nothing(mode, level):
    tensors = random_logprobs()
    spoiled = [torch.where(MASK, each, torch.nan) for each in tensors]
    settings = correction(mode, level=level)
    expected, found = settings(*tensors, MASK), settings(*spoiled, MASK)
    for name in ("token_weights", "old_logprobs"):
        assert torch.equal(getattr(found, name)[MASK], getattr(expected, name)[MASK])
        assert getattr(found, name).isfinite().all()
    for name, mean in expected.metrics.items():
        assert found.metrics[name].value() == mean.value()


def test_an_empty_mask_gives_empty_means():
    current, old, sampler = random_logprobs()
    output = correction(level="sequence")(current, old, sampler, torch.zeros_like(MASK))
    assert all(float(mean.weight) == 0 and mean.value() == 0 for mean in output.metrics.values())
    assert output.token_weights.isfinite().all()


def test_metrics_add_up_over_micro_batches():
    tensors = random_logprobs()
    whole = correction()(*tensors, MASK).metrics
    parts = [correction()(*[each[[row]] for each in tensors], MASK[[row]]).metrics for row in range(2)]
    for name, mean in whole.items():
        assert (parts[0][name] + parts[1][name]).value() == pytest.approx(mean.value())


def test_a_token_that_the_trainer_excludes_gets_no_weight_and_one_that_the_sampler_excluded_a_bounded_one():
    sampler = torch.tensor([[-1.0, -torch.inf]])
    old = torch.tensor([[-torch.inf, -1.0]])
    output = correction()(old, old, sampler, torch.ones(1, 2, dtype=torch.bool))
    assert output.token_weights[0, 0] < 1e-8
    assert output.token_weights[0, 1] == 1.5


# Gradients ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("source", ["recompute", "sampler"])
def test_no_gradient_flows_through_weights_and_bounds(objective, mode, source):
    current, old, sampler = random_logprobs()
    advantages = torch.randn(MASK.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    old = sampler if source == "sampler" else old
    inputs = [each.clone().requires_grad_() for each in (current, old, sampler)]
    output = correction(mode, old_logprobs=source)(*inputs, MASK)
    assert not output.token_weights.requires_grad
    assert not output.old_logprobs.requires_grad
    loss_of(objective, output, inputs[0], advantages).backward()
    # Weights and old log-probs as constants give the same gradient, and nothing else has one.
    constant = current.clone().requires_grad_()
    loss_of(objective, output, constant, advantages).backward()
    assert torch.equal(inputs[0].grad, constant.grad)
    assert inputs[1].grad is None
    assert inputs[2].grad is None


def test_the_gradient_of_a_truncated_ratio_is_the_cap_times_that_of_the_log_prob():
    # Ratio e = 2.718 to the sampler, cap 1.5, advantage -1, where PPO has no upper bound: the gradient of
    # -min(r A, clip(r) A) is -A r = r, hence 1.5 after truncation and e before.
    current = torch.tensor([[-1.0]], dtype=torch.float64, requires_grad=True)
    sampler, mask = torch.tensor([[-2.0]], dtype=torch.float64), torch.tensor([[True]])
    for settings, expected in ((correction(), 1.5), (correction("none"), math.e), (correction("masked"), 0.0)):
        current.grad = None
        own = ImportanceCorrection(
            mode=settings.mode, cap=settings.cap, low=settings.low, high=settings.high, old_logprobs="sampler"
        )
        output = own(current, sampler, sampler, mask)
        inputs = ObjectiveInput(
            logprobs=current, old_logprobs=output.old_logprobs, advantages=-torch.ones_like(sampler), response_mask=mask
        )
        (ClippedSurrogate()(inputs).token_losses * output.token_weights).sum().backward()
        assert float(current.grad) == pytest.approx(expected)


# Settings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cap": 0.9}, r"`cap` must be at least 1, .* but got 0.9"),
        ({"cap": math.nan}, r"`cap` must be at least 1, .* but got nan"),
        ({"low": 1.1}, r"`low` and `high` must have 1 between them, but got 1.1 and 1.25"),
        ({"high": 0.9}, r"`low` and `high` must have 1 between them, but got 0.8 and 0.9"),
        ({"low": -0.1}, r"`low` and `high` must have 1 between them, but got -0.1"),
    ],
)
def test_bounds_without_meaning_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        correction(**options)


@pytest.mark.parametrize("name", ["mode", "level", "old_logprobs"])
def test_an_unknown_word_is_refused(name):
    settings = correction()
    # Past the type checker of the tests, as a configuration file would.
    object.__setattr__(settings, name, "engine")
    with pytest.raises(ValueError, match=rf"`{name}` must be one of .* but got 'engine'"):
        settings.__post_init__()


def test_only_the_product_of_the_sequence_gives_the_mean_under_the_other_policy():
    # Sequences of two coins: all four, each as often as the sampler (heads with 0.5) draws it; the trainer's heads have
    # 0.7. The share of trajectories with two heads is 0.25 of the sampler and 0.49 of the trainer.
    heads = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    sampler, trainer = torch.full_like(heads, math.log(0.5)), torch.where(heads > 0, 0.7, 0.3).log()
    estimates = {
        level: float(
            ImportanceCorrection(mode="truncated", level=level, cap=10.0)(
                trainer, trainer, sampler, heads > -1
            ).token_weights[0, 0]
            / 4
        )
        for level in LEVELS
    }
    assert estimates == pytest.approx({"token": 0.35, "sequence": 0.35, "sequence_product": 0.49})


def test_a_bound_on_the_product_is_refused_where_it_would_scale_the_ratios_of_tokens():
    with pytest.raises(ConfigError, match="`level` must be 'token' or 'sequence' for mode 'truncated'"):
        correction(level="sequence_product", old_logprobs="sampler")
