"""Normalised exact match."""

from dataclasses import dataclass
from typing import ClassVar, get_args

from aepo_lightning.contracts.checker import Claim, Verdict
from aepo_lightning.errors import ConfigError
from aepo_lightning.rewards.checkers.accepted import matches_any
from aepo_lightning.rewards.typed import RULES, Comparison


def check_comparison(comparison: str) -> None:
    """Refuse an unknown comparison.

    Raises:
        ConfigError: If it is neither `words` nor `typed`.
    """
    if comparison not in get_args(Comparison):
        raise ConfigError(f"`comparison` must be `words` or `typed`, but got {comparison!r}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExactMatch:
    """Right if the answer is the same as an accepted one after normalisation.

    Attributes:
        comparison: `words`: SQuAD's normal form, where 3.5 is 35. `typed`: numbers compare by value.

    Raises:
        ConfigError: If `comparison` is an unknown word.

    References:
        SQuAD, arXiv:1606.05250, evaluation script.
    """

    comparison: Comparison = "words"
    is_immediate: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse an unknown comparison."""
        check_comparison(self.comparison)

    async def __call__(self, claim: Claim) -> Verdict:
        """Return whether one of the accepted answers was given."""
        return matches_any(claim, RULES[self.comparison][1])
