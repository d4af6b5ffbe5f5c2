"""The exact match of Humanity's Last Exam."""

import re
from dataclasses import dataclass
from typing import ClassVar

from aepo_lightning.contracts.checker import Claim, Verdict
from aepo_lightning.rewards.checkers.accepted import matches_any
from aepo_lightning.rewards.checkers.exact_form import is_same_form, labelled_answer
from aepo_lightning.rewards.checkers.multiple_choice import is_same_choice

_LETTER = re.compile(r"\s*[A-Z]\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class HLEMatch:
    """Right if the answer is an accepted one: the same choice where that is a letter, else the same as it stands.

    HLE's official scorer has no rule: a language model reads the final answer from the response, for both of its kinds
    of questions (exact match and multiple choice), and compares it with the accepted one, within a small margin for
    numbers. What is right here is right for that judge; what is wrong here is for it to decide. The exam asks for lines
    `Exact Answer:` or `Answer:`, which are read if there are any.

    References:
        Humanity's Last Exam, arXiv:2501.14249, by the copies of its judge's prompt in public evaluation code; its own
        repository was not read.
    """

    is_immediate: ClassVar[bool] = True

    async def __call__(self, claim: Claim) -> Verdict:
        """Return whether one of the accepted answers was given."""

        def is_same(answer: str, gold: str) -> bool:
            given = labelled_answer(answer, "Exact Answer", "Final Answer", "Answer")
            if _LETTER.fullmatch(gold):
                return is_same_choice(given, gold, claim.choices)
            return is_same_form(given, gold)

        return matches_any(claim, is_same)
