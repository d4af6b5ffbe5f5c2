import math

import pytest
import torch

from aepo_lightning.contracts.objective import Objective, ObjectiveInput
from aepo_lightning.objectives.clipped_surrogate import ClippedSurrogate
from aepo_lightning.training.presets import CEGPPO

RATIOS = [0.5, 0.79, 1.0, 1.21, 1.5, 3.1]
EBPO = ClippedSurrogate(preserve_high=1.0)
PPO = ClippedSurrogate()
ALGORITHMS = {
    "PPO": PPO,
    "EBPO": EBPO,
    "GPPO": ClippedSurrogate(preserve_low=1.0, preserve_high=1.0),
    "CE-GPPO": ClippedSurrogate(preserve_low=0.75, preserve_high=1.0),
    "DAPO": ClippedSurrogate(clip_range_high=0.28),
    "EBPO-dual": ClippedSurrogate(preserve_high=1.0, dual_clip=3.0),
}
every_algorithm = pytest.mark.parametrize("objective", ALGORITHMS.values(), ids=ALGORITHMS.keys())


def make_inputs(ratios, advantages, mask=None):
    """One row of tokens whose old log-prob is -1.5 and whose importance ratios are given."""
    log_ratio = torch.tensor([ratios], dtype=torch.float64).log()
    advantages = torch.as_tensor(advantages, dtype=torch.float64).expand_as(log_ratio).clone()
    return ObjectiveInput(
        logprobs=(log_ratio - 1.5).requires_grad_(),
        old_logprobs=torch.full_like(log_ratio, -1.5),
        advantages=advantages,
        response_mask=torch.ones_like(log_ratio, dtype=torch.bool) if mask is None else torch.tensor([mask]),
    )


def gradient_weights(objective, inputs):
    """F, from grad loss = -F A grad(log pi), by autograd."""
    (grad,) = torch.autograd.grad(objective(inputs).token_losses.sum(), inputs.logprobs)
    return (-grad / inputs.advantages)[0].tolist()


def ppo_clip_loss(ratio, advantage, low, high, dual):
    """The textbook loss, one token at a time."""
    objective = min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)
    return -max(objective, dual * advantage) if dual and advantage < 0 else -objective


@pytest.mark.parametrize(
    ("objective", "advantage", "expected"),
    [
        (EBPO, 1.0, [0.5, 0.79, 1.0, 1.2, 1.2, 1.2]),
        (EBPO, -1.0, [0.0, 0.0, 1.0, 1.21, 1.5, 3.1]),
        (ALGORITHMS["EBPO-dual"], -1.0, [0.0, 0.0, 1.0, 1.21, 1.5, 0.0]),
        (PPO, 1.0, [0.5, 0.79, 1.0, 0.0, 0.0, 0.0]),
        (PPO, -1.0, [0.0, 0.0, 1.0, 1.21, 1.5, 3.1]),
        (ALGORITHMS["GPPO"], 1.0, [0.5, 0.79, 1.0, 1.2, 1.2, 1.2]),
        (ALGORITHMS["GPPO"], -1.0, [0.8, 0.8, 1.0, 1.21, 1.5, 3.1]),
        # 0.75 * 0.8 = 0.6
        (ALGORITHMS["CE-GPPO"], 1.0, [0.5, 0.79, 1.0, 1.2, 1.2, 1.2]),
        (ALGORITHMS["CE-GPPO"], -1.0, [0.6, 0.6, 1.0, 1.21, 1.5, 3.1]),
    ],
    ids=["EBPO+", "EBPO-", "EBPO-dual-", "PPO+", "PPO-", "GPPO+", "GPPO-", "CE-GPPO+", "CE-GPPO-"],
)
def test_gradient_weights_are_those_of_the_table(objective, advantage, expected):
    weights = gradient_weights(objective, make_inputs(RATIOS, advantage))
    assert weights == pytest.approx(expected, rel=1e-13, abs=0)


@every_algorithm
@pytest.mark.parametrize("advantage", [1.0, -1.0, 2.5, -0.3, 0.0])
def test_value_is_that_of_ppo_clip_whatever_the_coefficients(objective, advantage):
    ratios = [0.01, *RATIOS, 2.9, 40.0]
    losses = objective(make_inputs(ratios, advantage)).token_losses[0].tolist()
    bounds = (objective.clip_range_low, objective.clip_range_high, objective.dual_clip)
    assert losses == pytest.approx([ppo_clip_loss(r, advantage, *bounds) for r in ratios], rel=1e-13, abs=0)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize(("preserve_low", "preserve_high"), [(0.0, 1.0), (0.0, 0.0), (1.0, 1.0), (0.75, 1.0)])
def test_gradient_equals_that_of_the_published_formula(preserve_low, preserve_high, advantage):
    # CE-GPPO: coefficient * (1 +- range) * r / sg(r) * A beyond the range, r A elsewhere.
    inputs = make_inputs(RATIOS, advantage)
    ratio = (inputs.logprobs - inputs.old_logprobs).exp()
    unit = ratio / ratio.detach()
    weight = ratio
    if advantage > 0:
        weight = torch.where(ratio > 1.2, preserve_high * 1.2 * unit, ratio)
    else:
        weight = torch.where(ratio < 0.8, preserve_low * 0.8 * unit, ratio)
    (expected,) = torch.autograd.grad((weight * inputs.advantages).sum(), inputs.logprobs)
    objective = ClippedSurrogate(preserve_low=preserve_low, preserve_high=preserve_high)
    (grad,) = torch.autograd.grad(-objective(inputs).token_losses.sum(), inputs.logprobs)
    torch.testing.assert_close(grad, expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_ce_gppo_has_the_gradient_of_its_released_loss(advantage):
    # Token by token: low, high or other, then min(3 |A|, loss) where A < 0. Below the range the loss is 0.6 |A|, so the
    # dual clip is of no concern there.
    ratios = [*RATIOS, 1.27, 1.29, 2.99, 3.01, 9.0]
    inputs = make_inputs(ratios, advantage)
    objective = CEGPPO().objective
    expected = []
    for ratio in ratios:
        weight, slope = ratio, ratio
        if advantage < 0 and ratio < 0.8:
            weight = slope = 0.75 * 0.8
        if advantage > 0 and ratio > 1.28:
            weight = slope = 1.28
        expected.append(0.0 if advantage < 0 and weight > 3 else slope)
    assert gradient_weights(objective, inputs) == pytest.approx(expected, rel=1e-12, abs=0)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_gradient_equals_that_of_tensor_bounds_on_clamp(advantage):
    # EBPO as published: min(r A, clip(r, 1 - low, (1 + high) / sg(r) * r) A).
    inputs = make_inputs(RATIOS, advantage)
    ratio = (inputs.logprobs - inputs.old_logprobs).exp()
    upper = 1.2 / ratio.detach() * ratio
    clipped = torch.maximum(torch.full_like(ratio, 0.8), torch.minimum(ratio, upper))
    published = torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
    # Where two branches of a minimum are equal, autograd gives each one half, which adds up to the whole.
    (expected,) = torch.autograd.grad(published.sum(), inputs.logprobs)
    (grad,) = torch.autograd.grad(-EBPO(inputs).token_losses.sum(), inputs.logprobs)
    torch.testing.assert_close(grad, expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("objective", [PPO, ClippedSurrogate(dual_clip=3.0)], ids=["plain", "dual"])
def test_gradcheck_of_the_hard_clip(objective):
    inputs = make_inputs(RATIOS * 2, torch.tensor([1.0] * 6 + [-1.0] * 6))

    def losses(logprobs):
        changed = ObjectiveInput(
            logprobs=logprobs,
            old_logprobs=inputs.old_logprobs,
            advantages=inputs.advantages,
            response_mask=inputs.response_mask,
        )
        return objective(changed).token_losses

    assert torch.autograd.gradcheck(losses, inputs.logprobs)


@pytest.mark.parametrize("preserve_high", [0.0, 1.0])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_without_bounds_the_gradient_is_that_of_the_ratio(advantage, preserve_high):
    unclipped = ClippedSurrogate(clip_range_low=1.0, clip_range_high=math.inf, preserve_high=preserve_high)
    assert gradient_weights(unclipped, make_inputs(RATIOS, advantage)) == pytest.approx(RATIOS)
    values = {name: metric.value() for name, metric in unclipped(make_inputs(RATIOS, advantage)).metrics.items()}
    assert not any(value for name, value in values.items() if "clip" in name or "gradient" in name)


@every_algorithm
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("outside", [math.nan, math.inf, -math.inf])
def test_what_is_outside_the_mask_changes_nothing(objective, level, outside):
    fields = {name: getattr(objective, name) for name in ClippedSurrogate.__slots__}
    objective = ClippedSurrogate(**(fields | {"ratio_level": level}))
    clean = make_inputs([0.5, 1.0, 1.5, 3.1], [1.0, -1.0, 1.0, -1.0])
    mask = torch.tensor([[True, True, False, True, True, False]])
    dirty = {}
    for name in ("logprobs", "old_logprobs", "advantages"):
        values = torch.full((1, 6), outside, dtype=torch.float64)
        values[mask] = getattr(clean, name).detach().flatten()
        dirty[name] = values
    inputs = ObjectiveInput(response_mask=mask, **(dirty | {"logprobs": dirty["logprobs"].requires_grad_()}))
    out, expected = objective(inputs), objective(clean)
    out.token_losses.sum().backward()
    expected.token_losses.sum().backward()
    torch.testing.assert_close(out.token_losses[mask], expected.token_losses[0], rtol=1e-13, atol=0)
    torch.testing.assert_close(inputs.logprobs.grad[mask], clean.logprobs.grad[0], rtol=1e-13, atol=0)
    assert out.token_losses[~mask].tolist() == [0.0, 0.0]
    assert inputs.logprobs.grad[~mask].tolist() == [0.0, 0.0]
    for name, metric in expected.metrics.items():
        assert out.metrics[name].value() == pytest.approx(metric.value(), rel=1e-13)


def test_gradient_flows_into_logprobs_only():
    inputs = make_inputs(RATIOS, 1.0)
    inputs.old_logprobs.requires_grad_()
    inputs.advantages.requires_grad_()
    out = EBPO(inputs)
    out.token_losses.sum().backward()
    assert inputs.logprobs.grad is not None
    assert inputs.old_logprobs.grad is None
    assert inputs.advantages.grad is None
    assert not any(metric.total.requires_grad for metric in out.metrics.values())


def test_log_ratios_beyond_20_keep_loss_and_gradient_finite():
    inputs = ObjectiveInput(
        logprobs=torch.tensor([[-0.1, -0.1, -500.0, -500.0]], requires_grad=True),
        old_logprobs=torch.tensor([[-500.0, -500.0, -0.1, -0.1]]),
        advantages=torch.tensor([[1.0, -1.0, 1.0, -1.0]]),
        response_mask=torch.ones(1, 4, dtype=torch.bool),
    )
    losses = ALGORITHMS["GPPO"](inputs).token_losses
    losses.sum().backward()
    # The outer tokens are clipped and preserved (1.2 and 0.8), the inner ones are beyond the clamp.
    torch.testing.assert_close(losses.detach(), torch.tensor([[-1.2, math.exp(20), -math.exp(-20), 0.8]]))
    torch.testing.assert_close(inputs.logprobs.grad, torch.tensor([[-1.2, 0.0, 0.0, 0.8]]))


def test_a_logprob_of_minus_infinity_is_hard_clipped_without_nan():
    inputs = ObjectiveInput(
        logprobs=torch.tensor([[-math.inf, -math.inf]], requires_grad=True),
        old_logprobs=torch.tensor([[-1.0, -1.0]]),
        advantages=torch.tensor([[1.0, -1.0]]),
        response_mask=torch.ones(1, 2, dtype=torch.bool),
    )
    losses = EBPO(inputs).token_losses
    losses.sum().backward()
    torch.testing.assert_close(losses.detach(), torch.tensor([[-math.exp(-20), 0.8]]))
    assert inputs.logprobs.grad.tolist() == [[0.0, 0.0]]


def test_nan_inside_the_mask_is_not_hidden():
    inputs = make_inputs([1.0, math.nan], 1.0)
    assert EBPO(inputs).token_losses.isnan().tolist() == [[False, True]]


def test_metrics_by_hand():
    inputs = make_inputs([0.5, 0.5, 1.5, 1.5, 3.5, 1.0, 9.0], [1, -1, 1, -1, -1, 1, 1], [True] * 6 + [False])
    metrics = ClippedSurrogate(preserve_high=1.0, dual_clip=3.0)(inputs).metrics
    # Six tokens: one above 1.2 with A > 0, one below 0.8 with A < 0, one above 3 with A < 0.
    for name in ("clip_fraction_high", "clip_fraction_low", "clip_fraction_dual", "gradient_preserved_fraction"):
        assert metrics[name].value() == pytest.approx(1 / 6)
        assert metrics[name].weight.item() == 6
    # (0.5 + 0.5 + 1.5 + 1.5 + 3.5 + 1) / 6 = 8.5 / 6
    assert metrics["importance_ratio"].value() == pytest.approx(8.5 / 6)
    # k3 = r - 1 - ln r per token: 2.5 / 6 - (2 ln 0.5 + 2 ln 1.5 + ln 3.5) / 6
    log_sum = 2 * math.log(0.5) + 2 * math.log(1.5) + math.log(3.5)
    assert metrics["approx_kl"].value() == pytest.approx((2.5 - log_sum) / 6)


@pytest.mark.parametrize(
    ("name", "expected"),
    # One token beyond each bound, of 4.
    [("PPO", 0.0), ("EBPO", 0.25), ("GPPO", 0.5), ("CE-GPPO", 0.5)],
)
def test_preserved_fraction_counts_the_clipped_tokens_that_keep_a_gradient(name, expected):
    metrics = ALGORITHMS[name](make_inputs([0.5, 1.5, 1.0, 1.0], [-1.0, 1.0, 1.0, -1.0])).metrics
    assert metrics["gradient_preserved_fraction"].value() == expected


def test_an_empty_mask_gives_zero_losses_and_zero_metrics():
    out = EBPO(make_inputs([0.5, 1.5], 1.0, [False, False]))
    assert out.token_losses.tolist() == [[0.0, 0.0]]
    assert {metric.value() for metric in out.metrics.values()} == {0.0}


def test_sequence_ratio_is_the_geometric_mean_and_its_gradient_that_of_the_sequence():
    # exp(mean(ln 2, ln 1/2, ln 8)) = 8^(1/3) = 2 with clip range 1.5: s A for each token.
    objective = ClippedSurrogate(clip_range_high=1.5, ratio_level="sequence")
    inputs = make_inputs([2.0, 0.5, 8.0, 77.0], 1.5, [True, True, True, False])
    out = objective(inputs)
    torch.testing.assert_close(out.token_losses.detach(), torch.tensor([[-3.0, -3.0, -3.0, 0.0]]).double())
    # GSPO's loss is -s A with d s / d logp_t = s / 3; the mean over the 3 tokens has that gradient.
    (grad,) = torch.autograd.grad(out.token_losses.sum() / 3, inputs.logprobs)
    log_ratio = (inputs.logprobs - inputs.old_logprobs)[0, :3]
    (expected,) = torch.autograd.grad(-log_ratio.mean().exp() * 1.5, inputs.logprobs)
    torch.testing.assert_close(grad, expected, rtol=1e-13, atol=0)


def test_turn_ratio_is_the_geometric_mean_of_each_turn_and_its_gradient_that_of_the_turn():
    # Turns of ratios (2, 1/2, 8) and (3), a result between them: exp(mean ln) is 2 and 3; 3 is beyond 2.5.
    objective = ClippedSurrogate(clip_range_high=1.5, ratio_level="turn")
    inputs = make_inputs([2.0, 0.5, 8.0, 77.0, 3.0], 1.5, [True, True, True, False, True])
    out = objective(inputs)
    torch.testing.assert_close(out.token_losses.detach()[0], torch.tensor([-3.0, -3.0, -3.0, 0.0, -3.75]).double())
    (grad,) = torch.autograd.grad(out.token_losses.sum() / 3, inputs.logprobs)
    log_ratio = (inputs.logprobs - inputs.old_logprobs)[0, :3]
    (expected,) = torch.autograd.grad(-log_ratio.mean().exp() * 1.5, inputs.logprobs)
    torch.testing.assert_close(grad, expected, rtol=1e-13, atol=0)
    assert out.metrics["clip_fraction_high"].value() == pytest.approx(0.25)


def test_one_turn_is_the_sequence_and_turns_of_one_token_are_tokens():
    whole = make_inputs([2.0, 0.5, 1.3], -1.0)
    parted = make_inputs([2.0, 9.0, 0.5, 9.0, 1.3], -1.0, [True, False, True, False, True])
    turn, sequence, token = (ClippedSurrogate(ratio_level=level) for level in ("turn", "sequence", "token"))
    torch.testing.assert_close(turn(whole).token_losses, sequence(whole).token_losses)
    torch.testing.assert_close(turn(parted).token_losses, token(parted).token_losses)


def test_sequence_ratio_clips_whole_sequences():
    objective = ClippedSurrogate(clip_range_low=3e-4, clip_range_high=4e-4, ratio_level="sequence")
    out = objective(make_inputs([2.0, 0.9], 1.0))
    # sqrt(1.8) is above 1.0004, so both tokens are clipped although the second alone would not be.
    assert out.token_losses[0].tolist() == pytest.approx([-1.0004, -1.0004])
    assert out.metrics["clip_fraction_high"].value() == 1.0
    assert gradient_weights(objective, make_inputs([2.0, 0.9], 1.0)) == [0.0, 0.0]


def test_satisfies_the_protocol():
    assert isinstance(EBPO, Objective)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clip_range_low": 1.5}, r"`clip_range_low` must be in \[0, 1\], but got 1.5"),
        ({"clip_range_high": -0.1}, "`clip_range_high` must not be negative, but got -0.1"),
        ({"preserve_low": -1.0}, "`preserve_low` must not be negative, but got -1.0"),
        ({"preserve_high": -1.0}, "`preserve_high` must not be negative, but got -1.0"),
        ({"dual_clip": 1.0}, r"`dual_clip` must be None \(off\) or above 1, but got 1.0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_refuses_settings_without_meaning(arguments, message):
    with pytest.raises(ValueError, match=message):
        ClippedSurrogate(**arguments)
