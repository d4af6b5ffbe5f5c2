"""One optimiser step: the same gradient however it is split, applied once, logged exactly, refused if not finite."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from lightning import Callback
from typing_extensions import override

from aepo_lightning.advantages import EntropyShaping
from aepo_lightning.errors import TrainingError
from aepo_lightning.objectives import Cispo, ClippedSurrogate, KLPenalty, LossAggregation
from aepo_lightning.policy.source import PretrainedPolicy
from tests.support.slow import quick
from tests.support.training import (
    FixedData,
    at_temperature,
    build_experience,
    built_module,
    empty_batch,
    experience_builder,
    flat,
    make_module,
    make_run,
    perturb,
    random_trees,
    relative_l2,
    small_policy,
)

AGGREGATIONS = {
    "token-mean": LossAggregation(),
    "seq-mean-token-mean": LossAggregation(mode="seq-mean-token-mean"),
    "seq-mean-token-sum-norm": LossAggregation(mode="seq-mean-token-sum-norm", norm_length=24),
}
OBJECTIVES = {
    "ebpo": {"objective": ClippedSurrogate(preserve_high=1.0)},
    "official": {"objective": ClippedSurrogate(preserve_high=1.0, dual_clip=1.2)},
    "ce_gppo": {"objective": ClippedSurrogate(preserve_low=0.75, preserve_high=1.0)},
    "gspo": {"objective": ClippedSurrogate(ratio_level="sequence", clip_range_low=3e-4, clip_range_high=4e-4)},
    "cispo": {"objective": Cispo(clip_range_high=0.2)},
    "kl and entropy": {"kl_penalty": KLPenalty(coefficient=0.3), "entropy_coefficient": 0.1},
}
BUDGETS = (10_000, 64, 1)


def experience(module, trees=None, **options):
    """Optimiser steps of trees that the present weights have scored."""
    trees = random_trees(3) if trees is None else trees
    return build_experience(module, trees, shaping=EntropyShaping(), **options)


def gradient(module, minibatch, micro_batches=None):
    """The loss of an optimiser step and its gradient, summed over micro-batches as `training_step` does."""
    module.zero_grad()
    total = 0.0
    for batch in minibatch.micro_batches if micro_batches is None else micro_batches:
        loss, _ = module.policy_loss(module.network, batch, minibatch)
        loss.backward()
        total += loss.item()
    return total, flat(parameter.grad for parameter in module.network.parameters())


@pytest.mark.parametrize("options", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize("aggregation", quick(AGGREGATIONS, next(iter(AGGREGATIONS))))
def test_the_gradient_depends_neither_on_the_split_nor_on_the_order(options, aggregation):
    module = built_module(aggregation=aggregation, **options)
    steps = [experience(module, max_tokens_per_micro_batch=budget)[0] for budget in BUDGETS]
    perturb(module.network)
    value, expected = gradient(module, steps[0])
    assert len(steps[0].micro_batches) < len(steps[1].micro_batches) < len(steps[2].micro_batches) == 12
    for step in steps[1:]:
        for micro_batches in (step.micro_batches, step.micro_batches[::-1]):
            found_value, found = gradient(module, step, micro_batches)
            assert found_value == pytest.approx(value, rel=1e-4, abs=1e-6)
            # float32 sums of twelve parts in another order; the requirement is 1e-5.
            assert relative_l2(found, expected) < 5e-6


def reference_loss(module, minibatch):
    """EBPO with token-mean, trajectory by trajectory without padding, from the paper's formula."""
    total = 0.0
    for batch in minibatch.micro_batches:
        for row, length in enumerate(batch.lengths.tolist()):
            ids = batch.input_ids[row : row + 1, :length]
            logits = module.network.model(input_ids=ids, use_cache=False).logits[0, :-1] / batch.temperature
            logprobs = logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
            for t in range(length - 1):
                if not batch.response_mask[row, t]:
                    continue
                advantage = float(batch.advantages[row, t])
                ratio = (logprobs[t] - batch.old_logprobs[row, t]).exp()
                kept = (1 + 0.2) / ratio.detach() * ratio
                upper = ratio if ratio <= 1.2 else kept
                clipped = torch.maximum(upper, torch.tensor(0.8))
                total = total - torch.minimum(ratio * advantage, clipped * advantage)
    return total / minibatch.global_num_tokens


def test_loss_and_gradient_are_those_of_the_papers_formula():
    module = built_module()
    (step,) = experience(module, at_temperature(random_trees(3), 0.8))
    perturb(module.network)
    value, found = gradient(module, step)
    module.zero_grad()
    expected = reference_loss(module, step)
    expected.backward()
    assert value == pytest.approx(expected.item(), abs=1e-6)
    assert relative_l2(found, flat(parameter.grad for parameter in module.network.parameters())) < 1e-5


def test_what_stands_in_the_padding_changes_no_gradient():
    module = built_module(entropy_coefficient=0.1)
    (step,) = experience(module)
    perturb(module.network)
    value, expected = gradient(module, step)
    (batch,) = step.micro_batches
    padding = torch.arange(batch.input_ids.shape[1]) >= batch.lengths[:, None]
    assert padding.any()
    other = replace(batch, input_ids=torch.where(padding, 11, batch.input_ids))
    for name in ("old_logprobs", "advantages", "sampler_logprobs"):
        setattr(other, name, torch.where(batch.response_mask, getattr(batch, name), torch.nan))
    found_value, found = gradient(module, step, [other])
    assert found_value == pytest.approx(value, abs=1e-6)
    assert relative_l2(found, expected) < 1e-6


@pytest.mark.parametrize("options", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize("aggregation", AGGREGATIONS.values(), ids=AGGREGATIONS)
def test_an_empty_micro_batch_adds_zero_and_reaches_every_parameter(options, aggregation):
    module = built_module(aggregation=aggregation, **options)
    (step,) = experience(module)
    value, found = gradient(module, step, [empty_batch()])
    assert value == 0
    assert not found.any()
    assert all(parameter.grad is not None for parameter in module.network.parameters())


# Runs ---------------------------------------------------------------------------------------------------------------


def run(folder, steps=None, callbacks=(), max_epochs=1, budget=10_000, num_steps=1, **options):
    """Fit on `num_steps` fixed optimiser steps per epoch, scored by the initial weights."""
    if steps is None:
        source = built_module(**options)
        steps = experience(source, random_trees(2 * num_steps), questions_per_step=2, max_tokens_per_micro_batch=budget)
    return make_run(
        folder, make_module(**options), FixedData(steps), callbacks=list(callbacks), max_epochs=max_epochs
    ).fit()


def initial_weights(fitted):
    return flat(fitted.module.policy.build_model().parameters())


def weights(fitted):
    return flat(fitted.network.parameters())


class StepRecorder(Callback):
    def __init__(self):
        self.seen = []

    @override
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append((batch_idx, trainer.global_step))


def test_batch_index_global_step_and_logger_step_agree(tmp_path):
    recorder = StepRecorder()
    fitted = run(tmp_path, callbacks=[recorder], max_epochs=2, num_steps=3, budget=40)
    assert recorder.seen == [(0, 1), (1, 2), (2, 3), (0, 4), (1, 5), (2, 6)]
    assert fitted.logger.steps("train/loss") == [0, 1, 2, 3, 4, 5]


def test_weights_after_a_step_do_not_depend_on_the_micro_batches(tmp_path):
    whole, split = (run(tmp_path, num_steps=2, budget=budget) for budget in (10_000, 40))
    assert relative_l2(weights(split) - initial_weights(split), weights(whole) - initial_weights(whole)) < 1e-5


def test_a_step_follows_the_gradient_of_the_loss(tmp_path):
    fitted = run(tmp_path, max_grad_norm=1e9, optimizer=partial(torch.optim.SGD, lr=0.25))
    module = built_module()
    value, expected = gradient(module, experience(module, random_trees(2))[0])
    found = (initial_weights(fitted) - weights(fitted)) / 0.25
    # The difference of weights keeps about five digits of the gradient.
    assert relative_l2(found, expected) < 1e-4
    assert fitted.logger.values("train/loss") == [pytest.approx(value, abs=1e-6)]
    assert fitted.logger.values("train/grad_norm") == [pytest.approx(float(expected.norm()), rel=1e-5)]


def test_steps_are_those_of_a_loop_by_hand(tmp_path):
    fitted = run(tmp_path, num_steps=3, max_grad_norm=0.1, budget=40)
    module = built_module()
    steps = experience(module, random_trees(6), questions_per_step=2)
    optimizer = torch.optim.SGD(module.network.parameters(), lr=0.5)
    for step in steps:
        gradient(module, step)
        torch.nn.utils.clip_grad_norm_(module.network.parameters(), 0.1)
        optimizer.step()
    moved = flat(module.network.parameters()) - initial_weights(fitted)
    assert relative_l2(weights(fitted) - initial_weights(fitted), moved) < 1e-5


def test_gradients_are_clipped_to_the_norm_and_logged_before(tmp_path):
    free = run(tmp_path, max_grad_norm=1e9)
    norm = free.logger.values("train/grad_norm")[0]
    clipped = run(tmp_path, max_grad_norm=norm / 10, optimizer=partial(torch.optim.SGD, lr=1.0))
    assert clipped.logger.values("train/grad_norm") == [pytest.approx(norm, rel=1e-5)]
    assert float((weights(clipped) - initial_weights(clipped)).norm()) == pytest.approx(norm / 10, rel=1e-3)


def test_metrics_are_means_over_all_tokens_however_they_are_split(tmp_path):
    logs = [run(tmp_path, budget=budget).logger.rows[0][1] for budget in BUDGETS]
    for other in logs[1:]:
        assert other.keys() == logs[0].keys()
        for name, value in logs[0].items():
            assert other[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    module = built_module()
    (step,) = experience(module, random_trees(2))
    (batch,) = step.micro_batches
    mask = batch.response_mask
    gap = (batch.old_logprobs - batch.sampler_logprobs).abs()[mask].mean()
    assert logs[0]["train/entropy"] == pytest.approx(float(module.score(batch).entropies[mask].mean()), rel=1e-5)
    assert logs[0]["train/sampler_logprob_gap"] == pytest.approx(float(gap), rel=1e-5)


def test_the_ratio_is_one_before_the_first_update_and_not_after(tmp_path):
    logger = run(tmp_path, num_steps=2).logger
    ratios = logger.values("train/importance_ratio")
    assert ratios[0] == pytest.approx(1, abs=1e-6)
    assert ratios[1] != pytest.approx(1, abs=1e-4)
    # A mean over no token is no number.
    assert "train/entropy_beyond_high" not in logger.rows[0][1]
    assert logger.rows[0][1]["train/old_entropy"] == pytest.approx(logger.rows[0][1]["train/entropy"], rel=1e-5)


class MetricRecorder(Callback):
    def __init__(self):
        self.seen = []

    @override
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(dict(trainer.callback_metrics))


def test_a_step_without_a_number_does_not_log_that_of_the_step_before(tmp_path):
    (step,) = experience(built_module(), random_trees(2), questions_per_step=2)
    batches = [replace(batch, advantages=torch.zeros_like(batch.advantages)) for batch in step.micro_batches]
    recorder = MetricRecorder()
    fitted = run(tmp_path, [step, replace(step, micro_batches=batches)], [recorder], max_epochs=2)
    # In the second epoch tokens of the first step are beyond the bound; without advantages none matters.
    for logged in (recorder.seen, [row for _, row in fitted.logger.rows if "train/loss" in row]):
        assert ["train/entropy_beyond_high" in each for each in logged] == [False, False, True, False]
        assert [each["train/clip_fraction_high"] > 0 for each in logged] == [False, False, True, False]


def test_the_scheduler_steps_once_per_optimiser_step_and_the_rate_in_use_is_logged(tmp_path):
    fitted = run(
        tmp_path,
        num_steps=2,
        budget=40,
        max_epochs=2,
        scheduler=partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda step: 1 / (1 + step)),
    )
    # SGD's rate is 0.5: 0.5 / 1, 0.5 / 2, 0.5 / 3, 0.5 / 4.
    assert fitted.logger.values("train/lr") == pytest.approx([0.5, 0.25, 0.5 / 3, 0.125])


def spoil(step, value):
    """Put `value` where the advantage of the first response token stands."""
    batch = step.micro_batches[-1]
    row, column = batch.response_mask.nonzero()[0].tolist()
    batch.advantages[row, column] = value
    return step


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_loss_that_is_not_finite_stops_the_run_and_saves_the_batch(tmp_path, value):
    source = built_module()
    good, bad = experience(source, random_trees(4), questions_per_step=2, max_tokens_per_micro_batch=40)
    broken = make_run(tmp_path / "broken", make_module(), FixedData([good, spoil(bad, value)]))
    with pytest.raises(TrainingError, match=r"must be finite \(step 1, batch 1\)"):
        broken.fit()
    sound = run(tmp_path / "sound", steps=[good])
    assert torch.equal(weights(broken), weights(sound))
    assert broken.trainer.global_step == 1
    (path,) = (tmp_path / "broken").glob("non_finite_*.pt")
    assert path.name == "non_finite_step1_rank0.pt"
    saved = torch.load(path)
    assert len(saved["micro_batches"]) == len(bad.micro_batches)
    assert torch.equal(saved["micro_batches"][0]["input_ids"], bad.micro_batches[0].input_ids)
    assert not torch.isfinite(saved["micro_batches"][-1]["advantages"]).all()
    assert not torch.isfinite(saved["loss"]) or not torch.isfinite(saved["grad_norm"])


# Penalties ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_the_penalty_is_zero_at_the_reference(estimator):
    plain, penalised = built_module(), built_module(kl_penalty=KLPenalty(coefficient=0.5, estimator=estimator))
    (value, expected), (found_value, found) = (gradient(each, experience(each)[0]) for each in (plain, penalised))
    assert found_value == pytest.approx(value, abs=1e-7)
    assert relative_l2(found, expected) < 1e-5


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_penalty_adds_the_mean_estimate(estimator):
    modules = built_module(), built_module(kl_penalty=KLPenalty(coefficient=0.5, estimator=estimator))
    steps = [experience(module)[0] for module in modules]
    for module in modules:
        perturb(module.network)
    batch = steps[1].micro_batches[0]
    d = (batch.ref_logprobs - modules[1].score(batch).logprobs)[batch.response_mask].double()
    estimate = {"k1": -d, "k2": d**2 / 2, "k3": d.exp() - d - 1}[estimator].mean()
    plain, penalised = (gradient(module, step)[0] for module, step in zip(modules, steps, strict=True))
    assert penalised - plain == pytest.approx(0.5 * float(estimate), abs=1e-5)


def silence(steps):
    """Take the reward out, so that only penalties act."""
    for step in steps:
        for batch in step.micro_batches:
            batch.advantages = torch.zeros_like(batch.advantages)
    return steps


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_the_penalty_pulls_towards_the_reference(estimator):
    module = built_module(kl_penalty=KLPenalty(coefficient=1.0, estimator=estimator))
    (step,) = silence(experience(module))
    perturb(module.network)
    optimizer = torch.optim.SGD(module.network.parameters(), lr=0.05)
    values = []
    for _ in range(4):
        values.append(gradient(module, step)[0])
        optimizer.step()
    assert values[0] > 0
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.8 * values[0]


def test_the_reference_stays_what_it_was_and_out_of_the_checkpoint(tmp_path):
    kl = KLPenalty(coefficient=0.1)
    fitted = run(tmp_path, kl_penalty=kl, num_steps=2)
    (batch,) = experience(built_module(kl_penalty=kl), random_trees(2))[0].micro_batches
    assert torch.equal(fitted.module.score_reference(batch).logprobs, batch.ref_logprobs)
    assert not torch.equal(fitted.module.score(batch).logprobs, batch.ref_logprobs)
    assert all(name.startswith("network.model.") for name in fitted.module.state_dict())
    assert len(list(fitted.module.parameters())) == len(list(small_policy().build_model().parameters()))


def test_without_a_penalty_there_is_no_second_network():
    module = built_module()
    assert not module.uses_reference
    assert module._reference == []


def test_the_entropy_bonus_is_the_mean_entropy_and_raises_it():
    module = built_module(entropy_coefficient=0.2)
    (step,) = silence(experience(module))
    (batch,) = step.micro_batches
    entropies = [float(module.score(batch).entropies[batch.response_mask].mean())]
    assert gradient(module, step)[0] == pytest.approx(-0.2 * entropies[0], rel=1e-5)
    torch.optim.SGD(module.network.parameters(), lr=0.5).step()
    entropies.append(float(module.score(batch).entropies[batch.response_mask].mean()))
    assert entropies[1] > entropies[0] + 1e-4


# The rest -----------------------------------------------------------------------------------------------------------


def test_scores_carry_no_gradient_and_leave_the_mode_alone():
    module = built_module()
    (step,) = experience(module)
    scores = module.score(step.micro_batches[0])
    assert not scores.logprobs.requires_grad
    assert module.network.training
    assert torch.equal(scores.logprobs, step.micro_batches[0].old_logprobs)


def test_old_log_probs_are_those_of_the_weights_before_the_update():
    module = built_module()
    builder = experience_builder(questions_per_step=1)
    steps = builder.build(at_temperature(random_trees(3), 0.7), module.score)
    for batch in (batch for step in steps for batch in step.micro_batches):
        assert torch.equal(batch.old_logprobs, module.score(batch).logprobs)
        assert torch.equal(batch.old_entropies, module.score(batch).entropies)


def test_a_loaded_policy_is_trained_in_training_mode(tmp_path):
    policy = small_policy()
    policy.build_model().save_pretrained(tmp_path)
    policy.tokenizer.save_pretrained(tmp_path)
    loaded = PretrainedPolicy(name_or_path=str(tmp_path))
    assert not loaded.build_model().training
    assert all(part.training for part in built_module(policy=loaded).network.modules())


def test_building_the_model_twice_keeps_the_first():
    module = built_module()
    network = module.network
    module.configure_model()
    assert module.network is network
