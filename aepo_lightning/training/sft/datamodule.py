"""Optimiser steps of conversations: every demonstration once in each pass, in an order of the pass's own.

A step is a function of its number alone, so that a run goes on anywhere. Its demonstrations are the same whatever the
number of ranks; each rank takes a part of them, in as many micro-batches as the others.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Literal

from lightning import LightningDataModule

from aepo_lightning.contracts.tree import Trajectory
from aepo_lightning.errors import ConfigError
from aepo_lightning.training.batching import Batcher, Row
from aepo_lightning.training.demonstrations import DemonstrationBatch, DemonstrationStep, check_steps
from aepo_lightning.training.loaders import StepLoader
from aepo_lightning.training.sft.rows import SFTRow, SFTRows


@dataclass(frozen=True, slots=True, kw_only=True)
class SFTSettings:
    """How demonstrations become optimiser steps.

    Raises:
        ConfigError: If a number has no meaning, or `packing` is an unknown word.
    """

    batch_size: int
    """Demonstrations of an optimiser step, over all ranks."""
    num_epochs: float | int = 1
    """Passes over the demonstrations."""
    num_steps: int | None = None
    """Optimiser steps, if they are to be fewer than the passes take."""
    packing: Literal["padded", "flat"] | str = "flat"
    """How a micro-batch runs: as one row without padding, or as right-padded rows. The numbers are the same."""
    max_tokens_per_micro_batch: int = 8192
    """Most tokens of one micro-batch, padding included; a longer demonstration gets one of its own."""
    steps_per_part: int = 100
    """Optimiser steps after which the validation loss is measured and a checkpoint written."""
    seed: int = 0
    """Of the order of the demonstrations."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        sizes = ("batch_size", "max_tokens_per_micro_batch", "steps_per_part", "num_steps")
        check_steps(self.packing, **{name: getattr(self, name) for name in sizes})
        if not 0 < self.num_epochs < math.inf:
            raise ConfigError(f"`num_epochs` must be positive, but got {self.num_epochs}. 3 is what the paper takes.")


class SFTDataModule(LightningDataModule):
    """Optimiser steps and validation batches. One epoch of the trainer is one part of the training."""

    def __init__(self, rows: SFTRows, settings: SFTSettings, pad_token_id: int) -> None:
        """Keep the rows.

        Args:
            rows: In tokens.
            settings: How they become steps.
            pad_token_id: Fills padded rows.
        """
        super().__init__()
        self._rows = rows
        self._settings = settings
        packing: Literal["padded", "flat"] = "flat" if settings.packing == "flat" else "padded"
        self._batcher = Batcher(
            max_tokens=settings.max_tokens_per_micro_batch, packing=packing, pad_token_id=pad_token_id
        )

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the whole training."""
        most = math.ceil(self._num_shown / self._settings.batch_size)
        return most if self._settings.num_steps is None else min(most, self._settings.num_steps)

    @property
    def _num_shown(self) -> int:
        """Demonstrations in all passes together."""
        return math.ceil(self._settings.num_epochs * len(self._rows.train))

    def train_dataloader(self) -> Iterable[DemonstrationStep]:
        """Return the steps of the part that the trainer has come to, whenever they are asked for."""
        return StepLoader(self.part)

    def val_dataloader(self) -> Iterable[DemonstrationStep]:
        """Return the held-out demonstrations, an optimiser step's worth at a time."""
        return StepLoader(self.held_out)

    def part(self) -> Iterator[DemonstrationStep]:
        """Yield the steps from where the trainer stands to the end of the part."""
        assert self.trainer is not None
        size, start = self._settings.steps_per_part, self.trainer.global_step
        stop = min((start // size + 1) * size, self.num_steps)
        return map(self.step, range(start, stop))

    def step(self, index: int) -> DemonstrationStep:
        """Return this rank's part of an optimiser step. Collective."""
        size, number = self._settings.batch_size, len(self._rows.train)
        shown = range(index * size, min((index + 1) * size, self._num_shown))
        return self._step([self._rows.train[self._order(each // number)[each % number]] for each in shown])

    def held_out(self) -> Iterator[DemonstrationStep]:
        """Yield this rank's part of the held-out demonstrations. Collective."""
        size = self._settings.batch_size
        return (self._step(self._rows.val[start : start + size]) for start in range(0, len(self._rows.val), size))

    @property
    def num_held_out(self) -> int:
        """Demonstrations that the validation loss is measured on."""
        return len(self._rows.val)

    def _order(self, epoch: int) -> tuple[int, ...]:
        return _epoch_order(self._settings.seed, epoch, len(self._rows.train))

    def _step(self, rows: Sequence[SFTRow]) -> DemonstrationStep:
        assert self.trainer is not None
        # The longest first, dealt out: ranks get about as many tokens each.
        dealt = sorted(rows, key=lambda row: -len(row.token_ids))[self.trainer.global_rank :: self.trainer.world_size]
        batches = [
            DemonstrationBatch(input_ids=batch.input_ids, response_mask=batch.response_mask, packed=batch.packed)
            for batch in self._batcher.micro_batches([_to_row(each) for each in dealt])
        ]
        # Nothing predicts the first token of a row. Every rank has all rows, so that none has to ask the others.
        num_tokens = sum(int(row.is_trained[1:].sum()) for row in rows)
        return DemonstrationStep(micro_batches=batches, num_tokens=num_tokens)


def _to_row(row: SFTRow) -> Row:
    zeros = [0.0] * len(row.token_ids)
    trajectory = Trajectory(
        token_ids=row.token_ids.tolist(),
        is_sampled=row.is_trained.tolist(),
        logprobs=zeros,
        entropies=zeros,
        prompt_length=int(row.is_trained.argmax()),
    )
    return Row(trajectory=trajectory, group=0, reward=0.0, advantage=0.0)


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, size: int) -> tuple[int, ...]:
    """Return the order of the demonstrations in one pass."""
    order = list(range(size))
    Random(f"sft-order/{seed}/{epoch}").shuffle(order)
    return tuple(order)
