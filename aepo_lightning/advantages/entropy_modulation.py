"""The entropy-modulated advantage of EMPG: certain turns are rewarded and punished more than uncertain ones."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from aepo_lightning.contracts.batch import TrajectoryBatch
from aepo_lightning.distributed.collectives import all_reduce
from aepo_lightning.errors import ConfigError
from aepo_lightning.ops.masked import zero_outside

_EPSILON = 1e-8
"""Added to the range of entropies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyModulation:
    r"""Scale the advantage of each turn by how certain it was, and add a bonus for a certain next one.

    With H the mean entropy of the tokens of a turn and h = (H - min) / (max - min), where minimum and maximum are over
    all turns of the optimiser step, the advantage of turn t is

        A exp(-scale_sharpness h_t) / mean(exp(-scale_sharpness h)) + bonus_weight exp(-bonus_sharpness h_{t+1})

    minus its mean over all turns. The last turn of a trajectory has no bonus. This is the opposite of `EntropyShaping`.
    Trajectories of a group with equal rewards, whose A is 0, are moved by bonus and mean.

    References:
        EMPG, arXiv:2509.09265: modulated advantage, scaling factor, clarity bonus, min-max and zero-mean normalisation
        (eqs. 7 to 12), as described in ARLArena, eqs. S20 to S23, with its hyper-parameters. A turn is a run of sampled
        tokens. Departure: statistics are over the optimiser step on all ranks, not over the batch of rollouts; a turn
        that several trajectories share counts for each of them.
    """

    scale_sharpness: float = 1.0
    """The paper's k. 0 leaves the advantages as they are, but for bonus and mean."""
    bonus_sharpness: float = 1.0
    """The paper's k'."""
    bonus_weight: float = 0.05
    """The paper's zeta. 0 is no bonus."""

    def __post_init__(self) -> None:
        """Refuse settings that have no meaning."""
        for name in ("scale_sharpness", "bonus_sharpness", "bonus_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"`{name}` must not be negative, but got {getattr(self, name)}. 0 turns it off.")

    def __call__(self, batches: Sequence[TrajectoryBatch]) -> list[Float[Tensor, "_ _"]]:
        """Return the modulated advantages. Collective.

        Args:
            batches: All micro-batches of this rank, with `advantages` and `old_entropies`.
        """
        steps = [_Turns.of(batch) for batch in batches]
        entropies = _normalised(steps)
        scales = [turns.is_turn * (-self.scale_sharpness * h).exp() for turns, h in zip(steps, entropies, strict=True)]
        count, total = all_reduce(
            [float(sum(turns.is_turn.sum() for turns in steps)), float(sum(map(torch.sum, scales)))]
        )
        modulated = [
            turns.spread(scale * count / max(total, _EPSILON)) * turns.advantages + turns.spread(self._bonus(turns, h))
            for turns, h, scale in zip(steps, entropies, scales, strict=True)
        ]
        own = sum(turns.mean(each).sum() for turns, each in zip(steps, modulated, strict=True))
        mean = all_reduce([float(own)])[0] / max(1.0, count)
        return [
            zero_outside(each - mean, turns.mask).to(torch.float32)
            for turns, each in zip(steps, modulated, strict=True)
        ]

    def _bonus(self, turns: "_Turns", entropies: Float[Tensor, "batch turn"]) -> Float[Tensor, "batch turn"]:
        bonus = self.bonus_weight * (-self.bonus_sharpness * entropies).exp() * turns.is_turn
        return torch.cat([bonus[:, 1:], torch.zeros_like(bonus[:, :1])], dim=1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Turns:
    """The turns of a micro-batch: runs of response tokens. Numbers are in double precision."""

    mask: Bool[Tensor, "batch response"]
    index: Int[Tensor, "batch response"]
    """Which turn of its trajectory a token belongs to."""
    lengths: Float[Tensor, "batch turn"]
    """Tokens of each turn; 0 where a trajectory has no such turn."""
    advantages: Float[Tensor, "batch response"]
    entropies: Float[Tensor, "batch response"]

    @classmethod
    def of(cls, batch: TrajectoryBatch) -> "_Turns":
        """Find the turns of a micro-batch."""
        assert batch.advantages is not None, "`ExperienceBuilder` fills it in"
        assert batch.old_entropies is not None, "`ExperienceBuilder` fills it in"
        mask = batch.response_mask
        before = torch.cat([torch.zeros_like(mask[:, :1]), mask[:, :-1]], dim=1)
        number = (mask & ~before).cumsum(1)
        lengths = torch.zeros(len(mask), max(1, int(number.max())), dtype=torch.float64)
        index = (number - 1).clamp(min=0)
        return cls(
            mask=mask,
            index=index,
            lengths=lengths.scatter_add(1, index, mask.double()),
            advantages=zero_outside(batch.advantages, mask).double(),
            entropies=zero_outside(batch.old_entropies, mask).double(),
        )

    @property
    def is_turn(self) -> Bool[Tensor, "batch turn"]:
        """Where a trajectory has a turn."""
        return self.lengths > 0

    def mean(self, values: Float[Tensor, "batch response"]) -> Float[Tensor, "batch turn"]:
        """Return the mean over the tokens of each turn, 0 where there is none."""
        sums = torch.zeros_like(self.lengths).scatter_add(1, self.index, zero_outside(values, self.mask))
        return sums / self.lengths.clamp(min=1)

    def spread(self, values: Float[Tensor, "batch turn"]) -> Float[Tensor, "batch response"]:
        """Return the value of its turn for every token."""
        return values.gather(1, self.index)


def _normalised(steps: Sequence[_Turns]) -> list[Float[Tensor, "_ _"]]:
    """Return the mean entropy of every turn, brought to [0, 1] by minimum and maximum over all of them. Collective."""
    means = [turns.mean(turns.entropies) for turns in steps]
    present = [mean[turns.is_turn] for turns, mean in zip(steps, means, strict=True)]
    found = torch.cat([torch.empty(0, dtype=torch.float64), *present])
    own = [float((-found).max()), float(found.max())] if len(found) else [-math.inf, -math.inf]
    negated_lowest, highest = all_reduce(own, "max")
    width = highest + negated_lowest + _EPSILON
    return [
        zero_outside((mean + negated_lowest) / width, turns.is_turn) for turns, mean in zip(steps, means, strict=True)
    ]
