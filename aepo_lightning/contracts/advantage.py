"""The seams where advantages and credit are asked for: what a user's part answers is checked, and it is named."""

import inspect
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from aepo_lightning.contracts.blame import call_part, part_name
from aepo_lightning.contracts.objective import AdvantageEstimator, Credit, RewardGroup
from aepo_lightning.errors import TrainingError


def takes(part: object, parameter: str) -> bool:
    """Return whether a function, or an object that is called, has a parameter of a name."""
    return callable(part) and parameter in inspect.signature(part).parameters


def estimate_advantages(
    estimator: AdvantageEstimator, group: RewardGroup, *, is_weighted: bool
) -> Float[Tensor, " group"]:
    """Return one advantage per trajectory of a group.

    Args:
        estimator: It is given `weights` and `roots` if it has parameters of these names.
        group: Rewards and weights.
        is_weighted: Whether trajectories count differently. If not, `weights` is None.

    Raises:
        TrainingError: If the estimator raises, or its answer is not one finite number for each of finite rewards. It
            names the estimator.
    """
    known = {"weights": group.weights if is_weighted else None, "roots": group.roots}
    asked: dict[str, Any] = {name: value for name, value in known.items() if takes(estimator, name)}
    answer: object = call_part("advantage estimator", estimator, lambda: estimator(group.rewards, **asked))
    shape = (len(group.leaves),)
    found = f"{answer.dtype} of shape {tuple(answer.shape)}" if isinstance(answer, Tensor) else f"{answer!r:.80}"
    if not isinstance(answer, Tensor) or tuple(answer.shape) != shape:
        raise _refusal("advantage estimator", estimator, f"return a tensor of shape {shape}", f"got {found}")
    if not bool(torch.isfinite(answer).all()) and bool(torch.isfinite(group.rewards).all()):
        raise _refusal("advantage estimator", estimator, "return finite advantages of finite rewards", "some are not")
    return answer


def assign_credit(credit: Credit, group: RewardGroup, advantages: Float[Tensor, " group"]) -> list[list[float]]:
    """Return one advantage for each policy segment of each trajectory of a group.

    Raises:
        TrainingError: If the credit raises, or its answer is not one finite number for each of them. It names the
            credit.
    """
    answer: object = call_part("credit", credit, lambda: credit(group, advantages))
    counts = [len(turns) for turns in group.turns]
    rows = [_numbers(row) for row in answer] if isinstance(answer, Sequence | Tensor) else []
    found = [None if row is None else len(row) for row in rows]
    if found != counts:
        rule = f"return a list for each trajectory with an advantage for each of its policy segments, {counts}"
        raise _refusal("credit", credit, rule, f"got {found if rows else answer!r:.80}")
    values = [row for row in rows if row is not None]
    if not all(bool(torch.isfinite(torch.tensor(row)).all()) for row in values):
        raise _refusal("credit", credit, "return finite advantages", "some are not")
    return values


def _numbers(row: object) -> list[float] | None:
    if isinstance(row, Tensor):
        row = row.tolist()
    if not isinstance(row, Sequence) or isinstance(row, str) or not all(isinstance(each, Real) for each in row):
        return None
    return [float(each) for each in row]


def _refusal(kind: str, part: object, rule: str, found: str) -> TrainingError:
    return TrainingError(f"The {kind} `{part_name(part)}` must {rule}, but {found}.")
