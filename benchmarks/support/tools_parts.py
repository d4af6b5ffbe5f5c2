"""What the parts of the tool benchmark share."""

from collections.abc import Iterable
from itertools import accumulate
from random import Random

from aepo_lightning.contracts.question import Question
from aepo_lightning.contracts.tool import ToolContext

CONTEXT = ToolContext(question=Question(question_id="q", messages=(), answers=("x",)), call_index=0)
"""Of calls that belong to no chain."""


def percentile_ms(seconds: Iterable[float], share: float) -> float:
    """Return the milliseconds below which this share of some times lies."""
    ordered = sorted(seconds)
    return round(1e3 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)


class Words:
    """Texts of made-up words, some of them frequent and most of them rare, as in a language.

    Args:
        num_words: Size of the vocabulary.
        seed: Of everything.
    """

    def __init__(self, num_words: int = 50_000, seed: int = 0) -> None:
        self._random = Random(seed)
        letters = "abcdefghijklmnopqrstuvwxyz"
        self._words = ["".join(self._random.choices(letters, k=self._random.randint(3, 9))) for _ in range(num_words)]
        self._cumulative = list(accumulate(1 / (rank + 10) for rank in range(num_words)))

    def text(self, num_words: int) -> str:
        """Return so many words, each drawn by its frequency."""
        return " ".join(self._random.choices(self._words, cum_weights=self._cumulative, k=num_words))
