"""Substring accuracy: the `acc` of the paper's evaluation."""

from dataclasses import dataclass
from typing import ClassVar

from aepo_lightning.contracts.checker import Claim, Verdict
from aepo_lightning.rewards.checkers.accepted import matches_any
from aepo_lightning.rewards.f1 import normalize_answer


@dataclass(frozen=True, slots=True, kw_only=True)
class SubstringAccuracy:
    """Right if an accepted answer occurs in the given one, both after SQuAD's normalisation.

    An accepted answer of which normalisation leaves nothing would occur in every answer; it occurs in none here.

    Attributes:
        whole_words: Ask for the words of the accepted answer one after another, so that 12 does not occur in 2012. The
            `acc` of the released evaluation does not.

    References:
        The released evaluation of AEPO and ARPO, arXiv:2507.19849, by its public description (`acc`).
    """

    whole_words: bool = False
    is_immediate: ClassVar[bool] = True

    async def __call__(self, claim: Claim) -> Verdict:
        """Return whether one of the accepted answers occurs in the given one."""
        given = self._framed(normalize_answer(claim.answer))

        def occurs(_: str, gold: str) -> bool:
            normal = normalize_answer(gold)
            return bool(normal) and self._framed(normal) in given

        return matches_any(claim, occurs)

    def _framed(self, words: str) -> str:
        return f" {words} " if self.whole_words else words
