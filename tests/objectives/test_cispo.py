import math

import pytest
import torch

from aepo_lightning.contracts.objective import Objective, ObjectiveInput
from aepo_lightning.objectives.cispo import Cispo

RATIOS = [0.1, 1.0, 4.0, 9.0]


def make_inputs(advantage, outside=0.0):
    """Four tokens with the ratios above and one outside the mask."""
    log_ratio = torch.tensor([RATIOS], dtype=torch.float64).log()
    extra = torch.full((1, 1), outside, dtype=torch.float64)
    return ObjectiveInput(
        logprobs=torch.cat([log_ratio - 3.0, extra], -1).requires_grad_(),
        old_logprobs=torch.cat([torch.full_like(log_ratio, -3.0), extra], -1),
        advantages=torch.cat([torch.full_like(log_ratio, advantage), extra], -1),
        response_mask=torch.tensor([[True] * 4 + [False]]),
    )


@pytest.mark.parametrize("outside", [0.0, math.nan, math.inf])
@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_gradient_is_the_clipped_weight_times_the_advantage(advantage, outside):
    inputs = make_inputs(advantage, outside)
    Cispo()(inputs).token_losses.sum().backward()
    # min(r, 5) for both signs of the advantage.
    expected = [-advantage * weight for weight in (0.1, 1.0, 4.0, 5.0)] + [0.0]
    assert inputs.logprobs.grad[0].tolist() == pytest.approx(expected, rel=1e-13, abs=0)


def test_value_by_hand():
    losses = Cispo(clip_range_low=0.4, clip_range_high=1.0)(make_inputs(1.0)).token_losses[0].tolist()
    # -clip(r, 0.6, 2) * logp with logp = ln r - 3
    weights = [0.6, 1.0, 2.0, 2.0]
    expected = [-w * (math.log(r) - 3.0) for w, r in zip(weights, RATIOS, strict=True)] + [0.0]
    assert losses == pytest.approx(expected, rel=1e-13, abs=0)


def test_metrics_by_hand():
    metrics = Cispo(clip_range_low=0.5)(make_inputs(1.0)).metrics
    values = {name: metric.value() for name, metric in metrics.items() if "mass" not in name}
    # 0.1 is below 0.5, 9 is above 5; mean ratio (0.1 + 1 + 4 + 9) / 4 = 3.525.
    assert values.pop("approx_kl") == pytest.approx(sum(r - 1 - math.log(r) for r in RATIOS) / 4)
    assert values == pytest.approx(
        {
            "clip_fraction_high": 0.25,
            "clip_fraction_low": 0.25,
            "clip_fraction_dual": 0.0,
            "clippable_fraction": 1.0,  # exp(-3), the old probability of all four, is below 1 / 5
            "gradient_preserved_fraction": 0.5,
            "importance_ratio": 3.525,
        }
    )


def test_satisfies_the_protocol():
    assert isinstance(Cispo(), Objective)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clip_range_low": 2.0}, r"`clip_range_low` must be None \(no bound\) or in \[0, 1\], but got 2.0"),
        ({"clip_range_high": -1.0}, "`clip_range_high` must not be negative, but got -1.0"),
    ],
    ids=["low", "high"],
)
def test_refuses_settings_without_meaning(arguments, message):
    with pytest.raises(ValueError, match=message):
        Cispo(**arguments)
