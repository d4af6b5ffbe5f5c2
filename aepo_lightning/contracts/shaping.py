"""What may look at a whole optimiser step before its first update, and give every token its advantage."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from aepo_lightning.contracts.batch import TrajectoryBatch
from aepo_lightning.contracts.blame import call_part, is_own, part_name
from aepo_lightning.errors import TrainingError


@runtime_checkable
class AdvantageShaping(Protocol):
    """Changes the advantages of the tokens of an optimiser step, in view of all of them.

    It is called once for each step, on all ranks alike, so it may meet the other ranks.
    """

    def __call__(self, batches: Sequence[TrajectoryBatch]) -> list[Float[Tensor, "_ _"]]:
        """Return the advantage of every token, for each micro-batch in order; 0 outside the response mask.

        Args:
            batches: All micro-batches of this rank, with `advantages`, `old_logprobs` and `old_entropies`. They are
                read, not changed. Rows of padding have no response token. What is returned must not depend on how
                trajectories are spread over micro-batches and ranks.
        """
        ...


def shape_advantages(shaping: AdvantageShaping, batches: Sequence[TrajectoryBatch]) -> list[Float[Tensor, "_ _"]]:
    """Return what a shaping answers; of one that a user wrote, checked.

    Raises:
        TrainingError: If the shaping raises, or its answer is not one finite advantage for each response token. It
            names the shaping.
    """
    if is_own(shaping):
        return shaping(batches)
    answer: object = call_part("shaping", shaping, lambda: shaping(batches))
    if not isinstance(answer, Sequence) or len(answer) != len(batches):
        found = f"got {len(answer)} of them" if isinstance(answer, Sequence) else f"got {type(answer).__name__}"
        raise _refusal(shaping, f"return a list of one tensor for each of {len(batches)} micro-batches", found)
    return [_checked(shaping, each, batch) for each, batch in zip(answer, batches, strict=True)]


def _checked(shaping: AdvantageShaping, answer: object, batch: TrajectoryBatch) -> Tensor:
    mask = batch.response_mask
    if not isinstance(answer, Tensor) or answer.shape != mask.shape or not answer.is_floating_point():
        shape = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise _refusal(shaping, f"return floats of shape {tuple(mask.shape)} for each token", f"got {shape}")
    inside = torch.where(mask, answer.detach(), 0.0)
    if not bool(torch.isfinite(inside).all()):
        raise _refusal(shaping, "return finite advantages", "some are not")
    return inside


def _refusal(shaping: AdvantageShaping, rule: str, found: str) -> TrainingError:
    return TrainingError(f"The shaping `{part_name(shaping)}` must {rule}, but {found}.")
