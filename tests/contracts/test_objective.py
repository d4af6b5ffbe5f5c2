"""The seam where an objective is called: what a user's answers is checked, and it is named."""

import math

import pytest
import torch

from aepo_lightning.contracts.objective import ObjectiveInput, ObjectiveOutput, WeightedMean, evaluate_objective
from aepo_lightning.errors import TrainingError
from aepo_lightning.objectives import ClippedSurrogate

MASK = torch.tensor([[True, True, False], [True, False, False]])


def inputs(**changes):
    given = {"logprobs": torch.full((2, 3), -0.5, requires_grad=True), "old_logprobs": torch.full((2, 3), -0.6)}
    return ObjectiveInput(**(given | {"advantages": torch.ones(2, 3), "response_mask": MASK} | changes))


def losses(given):
    return -given.logprobs * given.advantages


def test_token_losses_alone_are_an_answer():
    given = inputs()
    output = evaluate_objective(losses, given)
    assert torch.equal(output.token_losses, losses(given))
    assert output.metrics == {}


@pytest.mark.parametrize("value", [2, 2.0, True, torch.tensor(2.0), torch.tensor([2])], ids=str)
def test_metrics_are_numbers_of_any_kind(value):
    output = evaluate_objective(
        lambda given: ObjectiveOutput(token_losses=losses(given), metrics={"m": value}), inputs()
    )
    assert (output.metrics["m"] + output.metrics["m"]).value() == float(value)


def test_means_are_kept():
    mean = WeightedMean(total=torch.tensor(3.0), weight=torch.tensor(2.0))
    answer = evaluate_objective(
        lambda given: ObjectiveOutput(token_losses=losses(given), metrics={"m": mean}), inputs()
    )
    assert answer.metrics["m"] is mean


@pytest.mark.parametrize(
    ("objective", "named"),
    [
        (lambda _: None, "return an `ObjectiveOutput` or a tensor of token losses, but got NoneType"),
        (lambda _: 0.5, "return an `ObjectiveOutput` or a tensor of token losses, but got float"),
        (lambda given: losses(given).mean(), r"floats of shape \(2, 3\), but got torch.float32 of shape \(\)"),
        (lambda given: losses(given).long(), r"floats of shape \(2, 3\), but got torch.int64"),
        (lambda given: losses(given).detach(), "return losses with a gradient, but they do not depend on `logprobs`"),
        (lambda given: losses(given) * math.nan, "return finite losses for finite log-probs and advantages, but some"),
        (lambda given: given.nothing, r"not fail, but it raised AttributeError: .* \(test_objective\.py, line \d+\)"),
        (
            lambda given: ObjectiveOutput(token_losses=losses(given), metrics={"m": "high"}),
            "return metrics that are numbers or `WeightedMean`s, but 'm' is 'high'",
        ),
    ],
    ids=["none", "number", "mean", "integers", "detached", "nan", "raises", "metric"],
)
def test_what_is_no_loss_is_refused_by_name(objective, named):
    with pytest.raises(TrainingError, match=rf"The objective `{__name__}\.<lambda>` must .*{named}"):
        evaluate_objective(objective, inputs())


def test_what_is_not_finite_without_its_fault_or_outside_the_mask_is_not_blamed_on_it():
    broken = inputs(advantages=torch.full((2, 3), math.nan))
    assert evaluate_objective(losses, broken).token_losses.isnan().all()
    outside = lambda given: torch.where(given.response_mask, losses(given), math.nan)  # noqa: E731
    assert evaluate_objective(outside, inputs()).token_losses.isnan().any()


def test_those_of_this_library_are_called_as_they_are():
    given = inputs()
    direct, through = ClippedSurrogate()(given), evaluate_objective(ClippedSurrogate(), given)
    assert torch.equal(direct.token_losses, through.token_losses)
    assert sorted(direct.metrics) == sorted(through.metrics)
