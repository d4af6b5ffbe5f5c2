"""Chained arithmetic with numbers too large to do in the head: one call of the python tool per operation.

A question lists a start value and operations that apply from left to right (`Start 4821. Then *977, +1203, -5531.`).
The policy computes one operation a turn and carries the printed result over to the next. The texts are plain ASCII,
meant for a byte-level tokenizer; a word per digit would not be Python.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from aepo_lightning.contracts.question import Demonstration, DemonstrationTurn, Question, SegmentSource, Split
from aepo_lightning.errors import ConfigError
from aepo_lightning.tasks.index import check_index
from aepo_lightning.tasks.prompts import with_system

_OPERATORS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chain:
    """A start value and the operations that follow, each a sign and an operand."""

    start: int
    steps: tuple[tuple[str, int], ...]

    @property
    def text(self) -> str:
        """The chain as the question states it."""
        return f"Start {self.start}. Then {', '.join(f'{sign}{operand}' for sign, operand in self.steps)}."

    @property
    def value(self) -> int:
        """The result of all operations from left to right."""
        value = self.start
        for sign, operand in self.steps:
            value = _OPERATORS[sign](value, operand)
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class ArithmeticTask:
    """Chained integer arithmetic for the python tool, and demonstrations with a tunable rate of wrong steps.

    Every question is a pure function of the seed, the split and the index. Training, validation and demonstrations
    draw from three streams of their own; with at least four digits and three operands they hardly ever meet.

    Raises:
        ConfigError: If a setting has no meaning.
    """

    num_operands: int = 3
    """Operations after the start value, hence tool calls that the right trajectory needs."""
    num_digits: int = 4
    """Decimal digits of the start value and of every operand."""
    signs: str = "+-*"
    """Operations to draw from, each as likely."""
    demonstration_error_rate: float = 0.3
    """Probability in [0, 1] that a step of a demonstration uses another operation than the question asks for."""
    system_prompt: str = ""
    """Sent before the question if it is not empty."""
    num_val_questions: int = 256
    seed: int = 0
    """Of the training questions and the demonstrations."""
    val_seed: int = 0
    """Of the validation questions: runs with different `seed` are measured on the same ones."""

    def __post_init__(self) -> None:
        """Refuse settings that have no meaning."""
        for name, least in (("num_operands", 1), ("num_digits", 1), ("num_val_questions", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"`{name}` must be at least {least}, but got {getattr(self, name)}. Raise it.")
        if not self.signs or not set(self.signs) <= set(_OPERATORS) or len(set(self.signs)) != len(self.signs):
            raise ConfigError(f"`signs` must be some of '+-*', each once, but got {self.signs!r}. Change it.")
        if not 0 <= self.demonstration_error_rate <= 1:
            rate = self.demonstration_error_rate
            raise ConfigError(f"`demonstration_error_rate` must be in [0, 1], but got {rate}. It is a probability.")

    def num_questions(self, split: Split) -> int | None:
        """Return None for training, which has no end, and `num_val_questions` for validation."""
        return self.num_val_questions if split == "val" else None

    def question(self, split: Split, index: int) -> Question:
        """Return question `index` of a split.

        Raises:
            IndexError: If the index is negative or beyond the end of the validation split.
        """
        check_index(split, index, self.num_questions(split))
        random = Random(f"arithmetic/{split}/{self.val_seed if split == 'val' else self.seed}/{index}")
        return self._question(self._draw(random), f"arithmetic-{split}-{index}")

    def demonstration(self, index: int) -> Demonstration:
        """Return demonstration `index`, which answers with the value it computed, right or wrong.

        Raises:
            IndexError: If the index is negative.
        """
        check_index("train", index, None)
        random = Random(f"arithmetic/demonstration/{self.seed}/{index}")
        chain = self._draw(random)
        turns: list[DemonstrationTurn] = []
        value, opening = chain.start, "<think> step by step </think> "
        for asked_sign, operand in chain.steps:
            is_wrong = random.random() < self.demonstration_error_rate
            sign = random.choice([other for other in _OPERATORS if other != asked_sign]) if is_wrong else asked_sign
            call = f"{opening}<python> {value}{sign}{operand} </python>"
            value, opening = _OPERATORS[sign](value, operand), ""
            turns.append(DemonstrationTurn(source=SegmentSource.POLICY, text=call))
            turns.append(DemonstrationTurn(source=SegmentSource.TOOL, text=str(value)))
        answer = f"<answer> \\boxed{{{value}}} </answer>"
        turns.append(DemonstrationTurn(source=SegmentSource.POLICY, text=answer))
        question = self._question(chain, f"arithmetic-demonstration-{index}")
        return Demonstration(question=question, turns=tuple(turns))

    def _draw(self, random: Random) -> _Chain:
        """Draw a start value and the operations."""
        low, high = 10 ** (self.num_digits - 1), 10**self.num_digits
        steps = tuple((random.choice(self.signs), random.randrange(low, high)) for _ in range(self.num_operands))
        return _Chain(start=random.randrange(low, high), steps=steps)

    def _question(self, chain: _Chain, question_id: str) -> Question:
        """Write a chain as a question."""
        return Question(
            question_id=question_id,
            messages=with_system(self.system_prompt, chain.text),
            answers=(str(chain.value),),
            metadata={"ability": "math"},
        )
