"""Where tokens of an optimiser step lie beside the clip range, asked of the objective itself."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from aepo_lightning.contracts.objective import WeightedMean, evaluate_objective
from aepo_lightning.ops.masked import importance_ratio
from aepo_lightning.training.loss import LossParts, PolicyLoss

WITHIN = "within the range"
UNKNOWN = "the objective does not say"
_BOUNDS = {"high": "upper bound", "low": "lower bound", "dual": "dual clip"}


class ClipStates:
    """Asks an objective about tokens that share one ratio: its metrics then say of them what they say of each."""

    def __init__(self, loss: PolicyLoss, parts: LossParts) -> None:
        """Keep what is asked.

        Args:
            loss: Of the step.
            parts: What it gave for a micro-batch of the step.
        """
        self._objective = loss.objective
        self._inputs = replace(parts.inputs, logprobs=parts.inputs.logprobs.detach())
        self._level = getattr(loss.objective, "ratio_level", "token")

    def of(self, row: int, place: int) -> tuple[float, str]:
        """Return the ratio of a token and where it is beside the clip range.

        Args:
            row: In the micro-batch.
            place: A trained token of it.
        """
        metrics = self._metrics(row, range(*self._unit(row, place)))
        exact = math.exp(float((self._inputs.logprobs - self._inputs.old_logprobs)[row, place]))
        ratio = metrics.get("importance_ratio")
        return exact if ratio is None else ratio.value(), _state(metrics)

    def of_row(self, row: int) -> list[tuple[float, str]]:
        """Return for each trained token of a row what `of` gives, asking once for many."""
        places = [place for place, is_own in enumerate(self._inputs.response_mask[row].tolist()) if is_own]
        if self._level == "token":
            log_ratios = self._inputs.logprobs[row : row + 1] - self._inputs.old_logprobs[row : row + 1]
            ratios = importance_ratio(log_ratios)[0].tolist()
            return [(ratios[place], state) for place, state in zip(places, self._states(row, places), strict=True)]
        units = [self._unit(row, place) for place in places]
        firsts = dict(zip(reversed(units), reversed(places), strict=True))
        found = {unit: self.of(row, place) for unit, place in firsts.items()}
        return [found[unit] for unit in units]

    def _states(self, row: int, places: Sequence[int]) -> list[str]:
        """Return the state of each token: few are beyond a bound, so those that are not are told many at once."""
        if not places:
            return []
        state = _state(self._metrics(row, places))
        if len(places) == 1 or state in (WITHIN, UNKNOWN):
            return [state] * len(places)
        middle = len(places) // 2
        return self._states(row, places[:middle]) + self._states(row, places[middle:])

    def _metrics(self, row: int, places: Sequence[int]) -> Mapping[str, WeightedMean]:
        """Return what the objective says of some tokens of a row."""
        own, every = slice(row, row + 1), self._inputs
        mask = torch.zeros_like(every.response_mask[own])
        mask[0, list(places)] = every.response_mask[row, list(places)]
        inputs = replace(
            every,
            logprobs=every.logprobs[own],
            old_logprobs=every.old_logprobs[own],
            advantages=every.advantages[own],
            response_mask=mask,
            old_entropies=None if every.old_entropies is None else every.old_entropies[own],
        )
        return evaluate_objective(self._objective, inputs).metrics

    def _unit(self, row: int, place: int) -> tuple[int, int]:
        mask = self._inputs.response_mask[row].tolist()
        if self._level == "sequence":
            return 0, len(mask)
        start, stop = place, place + 1
        while self._level == "turn" and start and mask[start - 1]:
            start -= 1
        while self._level == "turn" and stop < len(mask) and mask[stop]:
            stop += 1
        return start, stop


def _state(metrics: Mapping[str, WeightedMean]) -> str:
    """Return in words where tokens are of which the objective says this; of several, where the first bound is met."""
    if "clip_fraction_high" not in metrics:
        return UNKNOWN
    beyond = [name for name in _BOUNDS if _value(metrics, f"clip_fraction_{name}")]
    kept = "gradient kept" if _value(metrics, "gradient_preserved_fraction") else "no gradient"
    return f"beyond the {_BOUNDS[beyond[0]]}, {kept}" if beyond else WITHIN


def _value(metrics: Mapping[str, WeightedMean], name: str) -> float:
    return metrics[name].value() if name in metrics else 0.0
