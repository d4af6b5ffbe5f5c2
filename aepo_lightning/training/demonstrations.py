"""Demonstrations as the data of optimiser steps: written as rollouts are, in micro-batches within a token budget."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count, groupby, pairwise
from typing import Literal

import torch
from jaxtyping import Bool, Int
from lightning import LightningDataModule
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from aepo_lightning.chat_formats import message_end_id
from aepo_lightning.contracts.batch import PackedTokens
from aepo_lightning.contracts.chat_format import ChatFormat
from aepo_lightning.contracts.generation import FinishReason
from aepo_lightning.contracts.question import Demonstration, DemonstrationSource, SegmentSource
from aepo_lightning.distributed.collectives import all_reduce
from aepo_lightning.errors import ConfigError
from aepo_lightning.ops.tree_packing import pack_rows
from aepo_lightning.ops.tree_partition import fill_bins
from aepo_lightning.rollout.steps import opening_of
from aepo_lightning.tasks.asked import ask_demonstration
from aepo_lightning.training.batching import fill_padded
from aepo_lightning.training.loaders import StepLoader

EncodedRow = tuple[list[int], list[bool]]
"""Tokens of a demonstration and, for each, whether it is trained."""


@dataclass(slots=True, kw_only=True, eq=False)
class DemonstrationBatch:
    """Demonstrations as right-padded rows: one micro-batch."""

    input_ids: Int[Tensor, "batch seq"]
    response_mask: Bool[Tensor, "batch response"]
    """True where the predicted token was written by the demonstrator, hence is trained."""
    packed: PackedTokens | None = None
    """The same tokens without padding, if that is how they are to be scored."""

    def to(self, device: torch.device | str) -> "DemonstrationBatch":
        """Return the batch on `device`."""
        return DemonstrationBatch(
            input_ids=self.input_ids.to(device),
            response_mask=self.response_mask.to(device),
            packed=None if self.packed is None else self.packed.to(device),
        )


@dataclass(slots=True, kw_only=True, eq=False)
class DemonstrationStep:
    """The demonstrations of one optimiser step."""

    micro_batches: Sequence[DemonstrationBatch]
    num_tokens: int
    """Trained tokens of all micro-batches, over all ranks."""

    def to(self, device: torch.device | str) -> "DemonstrationStep":
        """Return the step with every tensor on `device`."""
        moved = [batch.to(device) for batch in self.micro_batches]
        return DemonstrationStep(micro_batches=moved, num_tokens=self.num_tokens)


def encode_demonstration(demonstration: Demonstration, chat_format: ChatFormat, eos_token_id: int) -> EncodedRow:
    """Return tokens and, for each, whether it is trained, laid out as in a rollout.

    The end of a message, `eos_token_id`, is trained: after the last turn, and after each turn that calls tools in
    formats whose turns no stop string ends. Results in a row answer one turn. Thoughts that the chat template opens are
    not opened again.
    """
    row = [(chat_format.encode_prompt(demonstration.question.messages), False)]
    before = opening = opening_of(chat_format)
    for source, turns in groupby(demonstration.turns, key=lambda turn: turn.source):
        texts = [turn.text for turn in turns]
        if source is SegmentSource.POLICY:
            row += [(chat_format.encode_text(text), True) for text in (_going_on(before, texts[0]), *texts[1:])]
            continue
        if row[-1][1] and not chat_format.stop:
            row.append(([eos_token_id], True))
        results = chat_format.encode_results(texts)
        row += [(ids, False) for ids in results]
        before = chat_format.decode(results[-1]) if opening else ""
    row.append(([eos_token_id], True))
    return [token for ids, _ in row for token in ids], [is_own for ids, is_own in row for _ in ids]


def _going_on(before: str, text: str) -> str:
    """Return the words of a turn after what the chat template wrote in its name, which may have opened its thoughts."""
    opened, spoken = opened_thoughts(before), text.lstrip()
    written = next((each for each in (opened, opened[: len("<think>")]) if spoken.startswith(each)), "")
    return spoken[len(written) :] if written else text


def opened_thoughts(before: str) -> str:
    """Return the thoughts that a text opens at its end and leaves open, from `<think>` on; often nothing."""
    _, opened, thoughts = before.rpartition("<think>")
    return opened + thoughts if opened and "</think>" not in thoughts else ""


def check_calls(demonstrations: Iterable[Demonstration], chat_format: ChatFormat) -> None:
    """Refuse demonstrations in which tools answer, but none of the calls is one that the rollouts would read.

    Some may be malformed, as those of a policy are.

    Raises:
        ConfigError: If no call can be read.
    """
    answered = [
        (before.text, call)
        for demonstration in demonstrations
        for before, after in pairwise(demonstration.turns)
        if (before.source, after.source) == (SegmentSource.POLICY, SegmentSource.TOOL)
        for call in chat_format.parse_calls(before.text, FinishReason.STOP) or (None,)
    ]
    if answered and not any(call and not call.problem for _, call in answered):
        name, text = type(chat_format).__name__, answered[0][0][-200:]
        raise ConfigError(
            f"Demonstrations must write calls as {name} reads them, but got {text!r} before a result. Have "
            "the task write them in this format, or set another `rollout.chat_format`."
        )


def collate_demonstrations(
    rows: Sequence[EncodedRow], pad_token_id: int, is_packed: bool = False
) -> DemonstrationBatch:
    """Pad encoded demonstrations to one width, and pack them one after another where that is how they run."""
    lengths = [len(tokens) for tokens, _ in rows]
    width = max(lengths)
    batch = DemonstrationBatch(
        input_ids=torch.tensor([tokens + [pad_token_id] * (width - len(tokens)) for tokens, _ in rows]),
        response_mask=torch.tensor([mask[1:] + [False] * (width - len(mask)) for _, mask in rows]),
    )
    if is_packed:
        batch.packed = pack_rows(batch.input_ids, torch.tensor(lengths), batch.response_mask, shares_prefixes=False)
    return batch


def check_steps(packing: str, **sizes: int | None) -> None:
    """Refuse settings with which demonstrations cannot become optimiser steps.

    Args:
        packing: How a micro-batch runs.
        sizes: Numbers by the names of their settings, None where there is no bound.

    Raises:
        ConfigError: If a number is not positive, or `packing` is an unknown word.
    """
    if packing not in ("padded", "flat"):
        raise ConfigError(f"`packing` must be 'padded' or 'flat', but got {packing!r}. Demonstrations form no tree.")
    for name, value in sizes.items():
        if value is not None and value < 1:
            raise ConfigError(f"`{name}` must be at least 1, but got {value}. Raise it.")


class DemonstrationDataModule(LightningDataModule):
    """Optimiser steps of demonstrations, each seen once."""

    def __init__(
        self,
        source: DemonstrationSource,
        chat_format: ChatFormat,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int = 64,
        *,
        packing: Literal["padded", "flat"] | str = "padded",
        max_tokens_per_micro_batch: int | None = None,
    ) -> None:
        """Keep the source.

        Args:
            source: Where demonstrations come from.
            chat_format: How tool results are written; must be the rollouts' own.
            tokenizer: Tokenizer of the policy.
            batch_size: Demonstrations per optimiser step and rank.
            packing: How a micro-batch runs: as right-padded rows, or as one row without padding. The numbers are the
                same.
            max_tokens_per_micro_batch: Most tokens of one micro-batch, padding included; a longer demonstration gets
                one of its own. None runs a step as one micro-batch.

        Raises:
            ConfigError: If a number is not positive, or `packing` is an unknown word.
        """
        super().__init__()
        check_steps(packing, batch_size=batch_size, max_tokens_per_micro_batch=max_tokens_per_micro_batch)
        self._source = source
        self._chat_format = chat_format
        self._tokenizer = tokenizer
        self._end_token_id = message_end_id(tokenizer)
        self._batch_size = batch_size
        self._is_packed = packing == "flat"
        self._max_tokens = max_tokens_per_micro_batch

    def train_dataloader(self) -> Iterable[DemonstrationStep]:
        """Return an endless loader; the trainer's `max_steps` ends it."""
        return StepLoader(lambda: map(self.step, count()))

    def step(self, index: int) -> DemonstrationStep:
        """Return the data of an optimiser step; every rank has its own.

        Raises:
            ConfigError: If the calls of the first demonstrations are not written as rollouts are read.
        """
        assert self.trainer is not None
        first = (index * self.trainer.world_size + self.trainer.global_rank) * self._batch_size
        shown = [ask_demonstration(self._source, each) for each in range(first, first + self._batch_size)]
        if index == 0:
            check_calls(shown, self._chat_format)
        rows = [encode_demonstration(each, self._chat_format, self._end_token_id) for each in shown]
        pad_token_id = self._tokenizer.pad_token_id
        batches = [
            collate_demonstrations([rows[each] for each in found], pad_token_id, self._is_packed)
            for found in self._bins([len(tokens) for tokens, _ in rows])
        ]
        own = sum(int(batch.response_mask.sum()) for batch in batches)
        return DemonstrationStep(micro_batches=batches, num_tokens=int(all_reduce([own])[0]))

    def _bins(self, lengths: Sequence[int]) -> Sequence[Sequence[int]]:
        """Return which rows run together."""
        if self._max_tokens is None:
            return [range(len(lengths))]
        return (fill_bins if self._is_packed else fill_padded)(lengths, self._max_tokens)
