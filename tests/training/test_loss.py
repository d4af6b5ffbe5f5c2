"""The loss of a micro-batch: where old log-probs come from, and what the importance correction multiplies."""

from dataclasses import replace

import pytest
import torch

from aepo_lightning.advantages import KLCov
from aepo_lightning.objectives import Cispo, ClippedSurrogate, ImportanceCorrection, KLPenalty
from tests.support.training import build_experience, built_module, flat, perturb, random_trees, relative_l2

OBJECTIVES = {
    "grpo": ClippedSurrogate(),
    "ebpo": ClippedSurrogate(preserve_high=1.0),
    "gspo": ClippedSurrogate(ratio_level="sequence", clip_range_low=3e-4, clip_range_high=4e-4),
    "cispo": Cispo(clip_range_high=0.2),
}


def update(module, minibatch):
    """Gradient and metrics of an optimiser step."""
    module.zero_grad()
    metrics = {}
    for batch in minibatch.micro_batches:
        loss, found = module.policy_loss(module.network, batch, minibatch)
        loss.backward()
        metrics = {name: mean + metrics[name] if name in metrics else mean for name, mean in found.items()}
    gradient = flat(parameter.grad for parameter in module.network.parameters())
    return gradient, {name: mean.value() for name, mean in metrics.items()}


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize("packing", ["padded", "tree"])
@pytest.mark.parametrize("mode", ["none", "truncated", "masked"])
def test_an_on_policy_step_without_the_scoring_pass_has_the_gradient_of_one_with_it(objective, packing, mode):
    correction = ImportanceCorrection(mode=mode, low=0.1, high=30.0, cap=5.0)
    module = built_module(objective=objective, importance_correction=correction)
    options = {"packing": packing, "max_tokens_per_micro_batch": 80}
    (scored,) = build_experience(module, random_trees(3), old_logprobs="recompute", **options)
    (skipped,) = build_experience(module, random_trees(3), old_logprobs="auto", **options)
    assert all(batch.old_logprobs is not None for batch in scored.micro_batches)
    assert all(batch.old_logprobs is None for batch in skipped.micro_batches)
    expected, scored_metrics = update(module, scored)
    found, metrics = update(module, skipped)
    # The same float32 numbers; the second forward pass of the scored one repeats the first.
    assert relative_l2(found, expected) < 1e-6
    assert expected.norm() > 1e-4
    assert metrics == pytest.approx(scored_metrics, rel=1e-5, abs=1e-6)
    assert metrics["importance_ratio"] == 1
    assert metrics["approx_kl"] == 0


def test_the_gradient_of_a_skipped_pass_is_that_of_the_policy_gradient():
    module = built_module()
    (step,) = build_experience(module, random_trees(2), old_logprobs="auto")
    found, _ = update(module, step)
    module.zero_grad()
    for batch in step.micro_batches:
        scores = module.network(batch.input_ids, batch.response_mask)
        (-(scores.logprobs * batch.advantages).sum() / step.global_num_tokens).backward()
    assert relative_l2(found, flat(parameter.grad for parameter in module.network.parameters())) < 1e-6


def test_without_a_correction_the_sampler_changes_the_metrics_only():
    module = built_module()
    (step,) = build_experience(module, random_trees(2))
    perturb(module.network)
    expected, before = update(module, step)
    for batch in step.micro_batches:
        batch.sampler_logprobs = batch.old_logprobs.clone()
    found, after = update(module, step)
    assert torch.equal(found, expected)
    assert before["mismatch_kl"] > 0.1
    assert after["mismatch_kl"] == after["sampler_logprob_gap"] == 0
    assert after["importance_weight"] == 1


def test_weights_multiply_the_objective_and_neither_penalty_nor_bonus():
    options = {"kl_penalty": KLPenalty(coefficient=0.3), "entropy_coefficient": 0.1}
    drop_all = ImportanceCorrection(mode="masked", low=1.0, high=1.0)
    module = built_module(importance_correction=drop_all, **options)
    (step,) = build_experience(module, random_trees(2))
    perturb(module.network)
    found, metrics = update(module, step)
    assert metrics["importance_outside_fraction"] == 1
    for batch in step.micro_batches:
        batch.advantages = torch.zeros_like(batch.advantages)
    assert relative_l2(found, update(module, step)[0]) < 1e-6


@pytest.mark.parametrize("place", ["loss", "reward"])
def test_the_distance_from_the_reference_is_logged_whatever_the_penalty_makes_of_it(place):
    module = built_module(kl_penalty=KLPenalty(coefficient=0.3, estimator="k1", place=place, max_estimate=1e-6))
    (step,) = build_experience(module, random_trees(2), kl_penalty=module.algorithm.kl_penalty)
    (batch,) = step.micro_batches
    perturb(module.network)
    d = (batch.ref_logprobs - module.score(batch).logprobs)[batch.response_mask].double()
    assert update(module, step)[1]["reference_kl"] == pytest.approx(float((d.exp() - d - 1).mean()), rel=1e-4)
    assert "reference_kl" not in update(plain := built_module(), build_experience(plain, random_trees(2))[0])[1]


def test_the_penalty_of_chosen_tokens_is_their_distance_from_the_old_policy():
    module = built_module()
    (step,) = build_experience(module, random_trees(2), kl_cov=KLCov(fraction=0.2, coefficient=0.7))
    on_policy = update(module, step)[0]
    perturb(module.network)
    found = update(module, step)[0]
    module.zero_grad()
    for batch in step.micro_batches:
        logprobs = module.network(batch.input_ids, batch.response_mask).logprobs
        distance = (logprobs - batch.old_logprobs)[batch.kl_coefficients > 0].abs()
        (0.7 * distance.sum() / step.global_num_tokens).backward()
        batch.kl_coefficients = None
    penalty = flat(parameter.grad for parameter in module.network.parameters())
    assert penalty.norm() > 1e-3
    assert relative_l2(found - penalty, update(module, step)[0]) < 1e-5
    # Before the first step the distance is 0, and so is its gradient.
    plain = built_module()
    assert torch.equal(on_policy, update(plain, build_experience(plain, random_trees(2))[0])[0])


def test_the_weight_of_the_entropy_bonus_may_be_set_between_steps():
    module, expected = built_module(), built_module(entropy_coefficient=0.1)
    (step,) = build_experience(module, random_trees(2))
    before = update(module, step)[0]
    module.entropy_coefficient = 0.1
    found = update(module, step)[0]
    assert torch.equal(found, update(expected, step)[0])
    assert relative_l2(found, before) > 1e-3


def test_a_constant_weight_scales_the_gradient():
    module = built_module(importance_correction=ImportanceCorrection(mode="truncated", cap=4.0))
    (step,) = build_experience(module, random_trees(2))
    for batch in step.micro_batches:
        batch.sampler_logprobs = batch.old_logprobs - torch.log(torch.tensor(3.0))
    plain = built_module()
    for other in (module, plain):
        perturb(other.network)
    # Factors of 3 round differently.
    assert relative_l2(update(module, step)[0], 3 * update(plain, step)[0]) < 1e-6


def test_the_mismatch_of_sampler_log_probs_is_measured_against_the_current_policy():
    correction = ImportanceCorrection(old_logprobs="sampler")
    module = built_module(importance_correction=correction)
    (taken,) = build_experience(module, random_trees(2), old_logprobs="sampler")
    (scored,) = build_experience(module, random_trees(2))
    found, expected = update(module, taken)[1], update(built_module(), scored)[1]
    # At the first step of an iteration the current policy is the one that the trainer would have scored with.
    for name in ("mismatch_kl", "sampler_logprob_gap", "importance_weight"):
        assert found[name] == pytest.approx(expected[name], rel=1e-5)
    perturb(module.network)
    assert update(module, taken)[1]["mismatch_kl"] != pytest.approx(expected["mismatch_kl"], rel=1e-3)


@pytest.mark.parametrize("mode", ["none", "truncated", "masked"])
@pytest.mark.parametrize("source", ["recompute", "sampler"])
def test_loss_and_metrics_do_not_depend_on_the_split(mode, source):
    correction = ImportanceCorrection(mode=mode, level="sequence", cap=1.2, low=0.1, high=10.0, old_logprobs=source)
    module = built_module(importance_correction=correction)
    results = []
    for budget in (10_000, 60, 1):
        options = {"max_tokens_per_micro_batch": budget, "old_logprobs": source}
        results.append((module, build_experience(module, random_trees(3), **options)[0]))
    perturb(module.network)
    (expected, metrics), *others = [update(*each) for each in results]
    assert expected.norm() > 1e-4
    for gradient, found in others:
        # float32 sums of up to twelve parts in another order.
        assert relative_l2(gradient, expected) < 5e-6
        assert found == pytest.approx(metrics, rel=1e-4, abs=1e-6)


def test_a_weight_is_that_of_old_over_sampler_and_stays_when_the_policy_moves():
    module = built_module(importance_correction=ImportanceCorrection(mode="truncated"))
    (step,) = build_experience(module, random_trees(2))
    before = update(module, step)[1]
    perturb(module.network)
    after = update(module, step)[1]
    for name in ("importance_weight", "mismatch_kl", "importance_outside_fraction"):
        assert after[name] == pytest.approx(before[name])
    assert after["importance_ratio"] != pytest.approx(before["importance_ratio"], abs=1e-4)


def test_numbers_in_the_padding_reach_no_metric():
    module = built_module(importance_correction=ImportanceCorrection(mode="masked"))
    (step,) = build_experience(module, random_trees(2))
    expected = update(module, step)
    spoiled = [
        replace(batch, sampler_logprobs=torch.where(batch.response_mask, batch.sampler_logprobs, torch.nan))
        for batch in step.micro_batches
    ]
    gradient, metrics = update(module, replace(step, micro_batches=spoiled))
    assert torch.equal(gradient, expected[0])
    assert metrics == expected[1]
