"""The tokens of all conversations, what was held out, and what was left out and why."""

import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
from jaxtyping import Bool, Int
from transformers import PreTrainedTokenizerBase

from aepo_lightning.chat_formats import message_end_id
from aepo_lightning.chat_formats.text_codec import special_ids
from aepo_lightning.contracts.chat_format import ChatFormat
from aepo_lightning.contracts.question import Demonstration, SegmentSource
from aepo_lightning.contracts.tool import ToolSpec
from aepo_lightning.distributed.first_process import is_first_process
from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.tasks.conversations import ConversationFiles, ConversationRow, Fault, UnusableRowError
from aepo_lightning.training.demonstrations import check_calls, encode_demonstration
from aepo_lightning.training.sft.turns import demonstrations_of

logger = logging.getLogger(__name__)

_MOST_EXAMPLES = 3
_NUM_CHECKED = 64
"""Demonstrations whose calls must be some that the rollouts read."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SFTRow:
    """A demonstration in tokens."""

    token_ids: Int[np.ndarray, " seq"]
    is_trained: Bool[np.ndarray, " seq"]
    """True where the assistant wrote the token, or ended its message by it."""


@dataclass(slots=True, kw_only=True)
class RowCounts:
    """How many rows were read, and what became of them."""

    num_rows: int = 0
    num_demonstrations: int = 0
    """Made of the rows that can be used; one in which somebody asks again is several."""
    num_faulty: dict[Fault, int] = field(default_factory=lambda: defaultdict(int))
    examples: dict[Fault, list[str]] = field(default_factory=lambda: defaultdict(list))
    """The first rows with each fault: where, and what was there."""

    def leave_out(self, row: ConversationRow, error: UnusableRowError) -> None:
        """Count a row that cannot be used."""
        self.num_faulty[error.fault] += 1
        if len(self.examples[error.fault]) < _MOST_EXAMPLES:
            self.examples[error.fault].append(f"{row.origin}, {row.place}: {error.found!r}")

    @property
    def num_unusable(self) -> int:
        """Rows with a fault."""
        return sum(self.num_faulty.values())

    def __str__(self) -> str:
        """Return the counts by reason, with the first examples of each."""
        used = self.num_rows - self.num_unusable
        head = f"{self.num_rows} rows, {used} used as {self.num_demonstrations} demonstrations"
        if not self.num_unusable:
            return f"{head}, none left out."
        lines = [f"{head}, {self.num_unusable} left out:"]
        for fault, count in sorted(self.num_faulty.items(), key=lambda each: -each[1]):
            lines += [f"  {count} {fault}", *(f"    {example}" for example in self.examples[fault])]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SFTRows:
    """All demonstrations in tokens."""

    train: Sequence[SFTRow]
    val: Sequence[SFTRow]
    """Held out, to measure the loss on."""
    counts: RowCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class RowLimits:
    """Which rows are taken.

    Raises:
        ConfigError: If a number has no meaning.
    """

    max_length: int | None = None
    """Most tokens of a demonstration; longer ones are left out, never cut. None takes all."""
    max_unusable_fraction: float | int = 0.05
    """Refuse the data if a larger share of the rows cannot be used."""
    val_fraction: float | int = 0.0
    """Share of the questions that is held out, with all of their demonstrations, where no validation file is named."""

    def __post_init__(self) -> None:
        """Refuse numbers without meaning."""
        if self.max_length is not None and self.max_length < 2:
            raise ConfigError(f"`max_length` must be at least 2, but got {self.max_length}. Raise it.")
        if not 0 <= self.max_unusable_fraction <= 1:
            raise ConfigError(
                f"`max_unusable_fraction` must be in [0, 1], but got {self.max_unusable_fraction}. 1 takes any."
            )
        if not 0 <= self.val_fraction < 1:
            raise ConfigError(f"`val_fraction` must be in [0, 1), but got {self.val_fraction}. 0 holds out nothing.")


def read_rows(
    source: ConversationFiles,
    chat_format: ChatFormat,
    specs: Sequence[ToolSpec],
    tokenizer: PreTrainedTokenizerBase,
    limits: RowLimits,
) -> SFTRows:
    """Read all conversations as the tokens that a policy of these rollouts would see and write.

    Args:
        source: Where they are.
        chat_format: Of the rollouts.
        specs: Tools of the run.
        tokenizer: Of the policy.
        limits: What is taken.

    Raises:
        ConfigError: If no call is written as the chat format reads calls.
        DataError: If a file cannot be read, too many rows cannot be used, or none is left to train on or, where
            validation files are named, to measure the loss on.
    """
    encoder = _Encoder(chat_format=chat_format, specs=specs, tokenizer=tokenizer, max_length=limits.max_length)
    train = encoder.encode(source.rows("train"))
    val = encoder.encode(source.rows("val"))
    check_calls(encoder.with_tools, chat_format)
    counts = encoder.counts
    if counts.num_unusable > limits.max_unusable_fraction * counts.num_rows:
        raise DataError(
            f"At most {limits.max_unusable_fraction:.4g} of the rows may be unusable, but of {counts}\nRepair or "
            "remove them, or raise `coldstart.limits.max_unusable_fraction`."
        )
    if is_first_process():
        logger.info("Conversations: %s", counts)
    if source.val_path is None:
        train, val = _held_out(train, limits.val_fraction)
    elif not val:
        raise DataError(
            f"`coldstart.data.val_path` must have a conversation that can be used, but has none: of {counts}\nRepair "
            "its rows, or name no validation file."
        )
    if not train:
        raise DataError(
            f"There must be a conversation to train on, but of {counts}\nLower `coldstart.limits.val_fraction` if all "
            "were held out."
        )
    return SFTRows(train=[row for _, row in train], val=[row for _, row in val], counts=counts)


_Asked = tuple[str, SFTRow]
"""What the first question of a row is, and a demonstration of the row."""


@dataclass(slots=True, kw_only=True)
class _Encoder:
    chat_format: ChatFormat
    specs: Sequence[ToolSpec]
    tokenizer: PreTrainedTokenizerBase
    max_length: int | None
    counts: RowCounts = field(default_factory=RowCounts)
    with_tools: list[Demonstration] = field(default_factory=list)
    """The first ones in which tools answer."""
    _special_ids: frozenset[int] = field(init=False)
    _end_id: int = field(init=False)

    def __post_init__(self) -> None:
        self._special_ids, self._end_id = special_ids(self.tokenizer), message_end_id(self.tokenizer)

    def encode(self, rows: Iterable[ConversationRow]) -> list[_Asked]:
        """Return the demonstrations of the rows that can be used."""
        found: list[_Asked] = []
        for row in rows:
            self.counts.num_rows += 1
            try:
                if isinstance(row.content, UnusableRowError):
                    raise row.content
                shown = demonstrations_of(row.content, self.chat_format, self.specs, f"{row.origin}-{row.place}")
                encoded = [self._encode(demonstration) for demonstration in shown]
            except UnusableRowError as error:
                self.counts.leave_out(row, error)
                continue
            self.counts.num_demonstrations += len(encoded)
            has_tools = [each for each in shown if len(each.turns) > 1]
            self.with_tools += has_tools[: _NUM_CHECKED - len(self.with_tools)]
            asked = str(next(message.text for message in row.content if message.role == "user"))
            found += [(asked, each) for each in encoded]
        return found

    def _encode(self, demonstration: Demonstration) -> SFTRow:
        tokens, is_trained = encode_demonstration(demonstration, self.chat_format, self._end_id)
        num_turns = sum(turn.source is SegmentSource.POLICY for turn in demonstration.turns)
        num_ends = 1 if self.chat_format.stop else num_turns
        num_special = sum(own and token in self._special_ids for token, own in zip(tokens, is_trained, strict=True))
        if num_special > num_ends:
            own_tokens = [token for token, own in zip(tokens, is_trained, strict=True) if own]
            raise UnusableRowError(Fault.CONTROL_TOKENS, self.tokenizer.decode(own_tokens))
        if self.max_length is not None and len(tokens) > self.max_length:
            raise UnusableRowError(Fault.TOO_LONG, f"{len(tokens)} tokens, at most {self.max_length}")
        return SFTRow(token_ids=np.asarray(tokens, dtype=np.int32), is_trained=np.asarray(is_trained, dtype=bool))


def _held_out(rows: Sequence[_Asked], fraction: float | int) -> tuple[list[_Asked], list[_Asked]]:
    """Return the rows to train on and those of a share of the questions, chosen by their digests.

    The share is rounded up: one question at least, unless it is 0.
    """
    questions = sorted({asked for asked, _ in rows}, key=lambda asked: blake2b(asked.encode(), digest_size=16).digest())
    chosen = {*questions[: math.ceil(fraction * len(questions))]}
    return [row for row in rows if row[0] not in chosen], [row for row in rows if row[0] in chosen]
