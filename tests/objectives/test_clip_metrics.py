"""What is logged about clipping: tokens, their entropies and their share of the gradient."""

import math
from dataclasses import replace

import pytest
import torch

from aepo_lightning.contracts.objective import ObjectiveInput
from aepo_lightning.objectives import Cispo, ClippedSurrogate

OBJECTIVES = {
    "ppo": ClippedSurrogate(),
    "ebpo, dual": ClippedSurrogate(preserve_high=1.0, dual_clip=2.0),
    "ce-gppo": ClippedSurrogate(clip_range_high=0.28, preserve_low=0.75, preserve_high=1.0, dual_clip=3.0),
    "gspo": ClippedSurrogate(ratio_level="sequence", preserve_high=0.5, clip_range_low=0.05, clip_range_high=0.05),
    "cispo": Cispo(clip_range_low=0.3, clip_range_high=0.5),
}
every_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)


def make_inputs(seed=0, num_rows=6, width=20):
    generator = torch.Generator().manual_seed(seed)
    old, new = (-3 * torch.rand(num_rows, width, dtype=torch.float64, generator=generator) for _ in range(2))
    return ObjectiveInput(
        logprobs=(old + 0.3 * (new - old)).requires_grad_(),
        old_logprobs=old,
        advantages=torch.randn(num_rows, width, dtype=torch.float64, generator=generator),
        response_mask=torch.rand(num_rows, width, generator=generator) < 0.7,
        old_entropies=2 * torch.rand(num_rows, width, dtype=torch.float64, generator=generator),
    )


def slow_reference(objective, inputs):
    """Token by token in plain Python, with the gradient that autograd finds."""
    (gradient,) = torch.autograd.grad(objective(inputs).token_losses.sum(), inputs.logprobs)
    inputs = replace(inputs, logprobs=inputs.logprobs.detach())
    is_cispo, is_sequence = isinstance(objective, Cispo), getattr(objective, "ratio_level", "") == "sequence"
    dual_clip = getattr(objective, "dual_clip", None) or math.inf
    sums = dict.fromkeys(("tokens", "high", "low", "dual", "kept", "can", "mass", "clipped", "preserved"), 0.0)
    entropies = {"all": [], "high": [], "low": []}
    for i in range(len(gradient)):
        places = [t for t in range(gradient.shape[1]) if inputs.response_mask[i, t]]
        log_ratios = {t: float(inputs.logprobs[i, t] - inputs.old_logprobs[i, t]) for t in places}
        mean_old = sum(float(inputs.old_logprobs[i, t]) for t in places) / len(places)
        for t in places:
            ratio = math.exp(sum(log_ratios.values()) / len(places) if is_sequence else log_ratios[t])
            old = math.exp(mean_old if is_sequence else float(inputs.old_logprobs[i, t]))
            advantage, entropy = float(inputs.advantages[i, t]), float(inputs.old_entropies[i, t])
            found = {
                "high": ratio > 1 + objective.clip_range_high and (is_cispo or advantage > 0),
                "low": ratio < 1 - objective.clip_range_low and (is_cispo or advantage < 0),
                "dual": not is_cispo and ratio > dual_clip and advantage < 0,
            }
            sums["tokens"] += 1
            sums["can"] += old < 1 / (1 + objective.clip_range_high) and (is_cispo or advantage > 0)
            sums["mass"] += ratio * abs(advantage)
            entropies["all"].append(entropy)
            for name in found:
                sums[name] += found[name]
            for name in ("high", "low"):
                entropies[name] += [entropy] if found[name] else []
            if any(found.values()):
                sums["kept"] += bool(gradient[i, t])
                sums["clipped"] += ratio * abs(advantage)
                sums["preserved"] += abs(float(gradient[i, t]))
    means = {name: sum(values) / len(values) if values else 0.0 for name, values in entropies.items()}
    return {
        "clip_fraction_high": sums["high"] / sums["tokens"],
        "clip_fraction_low": sums["low"] / sums["tokens"],
        "clip_fraction_dual": sums["dual"] / sums["tokens"],
        "gradient_preserved_fraction": sums["kept"] / sums["tokens"],
        "clippable_fraction": sums["can"] / sums["tokens"],
        "gradient_mass_clipped_fraction": sums["clipped"] / sums["mass"],
        "gradient_mass_preserved_fraction": sums["preserved"] / sums["mass"],
        "old_entropy": means["all"],
        "entropy_beyond_high": means["high"],
        "entropy_beyond_low": means["low"],
    }


@every_objective
def test_metrics_equal_those_of_a_loop_over_tokens(objective):
    inputs = make_inputs()
    found = {name: metric.value() for name, metric in objective(inputs).metrics.items()}
    expected = slow_reference(objective, inputs)
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-12)
    assert expected["clip_fraction_high"] > 0
    assert expected["clip_fraction_low"] > 0


def test_masses_and_entropies_by_hand():
    # Old probability 1/2 everywhere, ratios 1.5, 0.5, 1 and 1.2 (at the bound), advantages 2, -1, 1, -4.
    ratios, old = torch.tensor([[1.5, 0.5, 1.0, 1.2]]), torch.full((1, 4), math.log(0.5))
    inputs = ObjectiveInput(
        logprobs=old + ratios.log(),
        old_logprobs=old,
        advantages=torch.tensor([[2.0, -1.0, 1.0, -4.0]]),
        response_mask=torch.ones(1, 4, dtype=torch.bool),
        old_entropies=torch.tensor([[1.0, 0.25, 0.5, 0.25]]),
    )
    metrics = ClippedSurrogate(preserve_high=1.0)(inputs).metrics
    # Without clipping 1.5 * 2 + 0.5 * 1 + 1 * 1 + 1.2 * 4 = 9.3; beyond a bound 3 + 0.5; kept 1.2 * 2.
    assert metrics["gradient_mass_clipped_fraction"].value() == pytest.approx(3.5 / 9.3)
    assert metrics["gradient_mass_preserved_fraction"].value() == pytest.approx(2.4 / 9.3)
    assert metrics["old_entropy"].value() == pytest.approx(0.5)
    assert metrics["entropy_beyond_high"].value() == pytest.approx(1.0)
    assert metrics["entropy_beyond_low"].value() == pytest.approx(0.25)
    # Two of four have a positive advantage and an old probability below 1 / 1.2.
    assert metrics["clippable_fraction"].value() == 0.5


@every_objective
def test_no_more_tokens_are_beyond_the_upper_bound_than_could_be(objective):
    metrics = objective(make_inputs(seed=1, num_rows=40)).metrics
    assert 0 < metrics["clip_fraction_high"].value() <= metrics["clippable_fraction"].value()


@every_objective
def test_metrics_add_up_over_micro_batches_whatever_stands_outside_the_mask(objective):
    inputs = make_inputs()
    names = [name for name in ObjectiveInput.__dataclass_fields__ if name != "response_mask"]
    dirty = {name: getattr(inputs, name).detach().masked_fill(~inputs.response_mask, math.nan) for name in names}
    whole, inputs = objective(inputs).metrics, replace(inputs, **dirty)
    first, second = (
        objective(ObjectiveInput(**{name: getattr(inputs, name)[rows] for name in [*names, "response_mask"]})).metrics
        for rows in (slice(0, 1), slice(1, None))
    )
    for name, metric in whole.items():
        assert (first[name] + second[name]).value() == pytest.approx(metric.value(), rel=1e-12)


@every_objective
def test_without_entropies_only_their_means_are_left_out(objective):
    inputs = make_inputs()
    without = objective(replace(inputs, old_entropies=None)).metrics
    missing = objective(inputs).metrics.keys() - without.keys()
    assert missing == {"old_entropy", "entropy_beyond_high", "entropy_beyond_low"}
