"""Token F1, the best over the accepted answers."""

from dataclasses import dataclass
from typing import ClassVar

from aepo_lightning.contracts.checker import Claim, Verdict
from aepo_lightning.rewards.checkers.accepted import NO_ANSWER, NO_GOLD, RIGHT, accepted_answers
from aepo_lightning.rewards.checkers.exact_match import check_comparison
from aepo_lightning.rewards.typed import RULES, Comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenF1:
    """The F1 of the words of the answer and of the accepted one that is nearest; right if the two are the same.

    Attributes:
        comparison: `words`: SQuAD's normal form, where 3.5 is 35. `typed`: numbers compare by value.

    Raises:
        ConfigError: If `comparison` is an unknown word.

    References:
        SQuAD, arXiv:1606.05250, section 6.1, with HotpotQA's rule for yes and no, arXiv:1809.09600.
    """

    comparison: Comparison = "words"
    is_immediate: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse an unknown comparison."""
        check_comparison(self.comparison)

    async def __call__(self, claim: Claim) -> Verdict:
        """Return the best F1 as score, and whether the answer is exactly an accepted one."""
        golds = accepted_answers(claim)
        if not golds:
            return NO_GOLD
        if not claim.answer.strip():
            return NO_ANSWER
        measure, is_same = RULES[self.comparison]
        if any(is_same(claim.answer, gold) for gold in golds):
            return RIGHT
        score = max(measure(claim.answer, gold) for gold in golds)
        return Verdict(score=score, reason="Some words are those of an accepted answer." if score else _NO_WORD)


_NO_WORD = "The answer shares no word with an accepted answer."
