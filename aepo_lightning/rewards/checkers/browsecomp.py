"""The exact match of BrowseComp."""

from dataclasses import dataclass
from typing import ClassVar

from aepo_lightning.contracts.checker import Claim, Verdict
from aepo_lightning.rewards.checkers.accepted import matches_any
from aepo_lightning.rewards.checkers.exact_form import is_same_form, labelled_answer
from aepo_lightning.rewards.typed import typed_match


@dataclass(frozen=True, slots=True, kw_only=True)
class BrowseCompMatch:
    """Right if the exact answer is an accepted one, as it stands or as the same words, with numbers by value.

    BrowseComp itself has no rule: a language model reads the exact answer from the response and compares it with the
    accepted one, within a small margin for numbers. Answers are short and asked for in an `Exact Answer:` line, which
    is read here if there is one; what is right here is right for that judge, what is wrong here is for it to decide.

    References:
        BrowseComp, arXiv:2504.12516, and its grader in OpenAI's public simple-evals.
    """

    is_immediate: ClassVar[bool] = True

    async def __call__(self, claim: Claim) -> Verdict:
        """Return whether one of the accepted answers was given."""
        return matches_any(claim, _is_same)


def _is_same(answer: str, gold: str) -> bool:
    given = labelled_answer(answer, "Exact Answer", "Final Answer")
    return is_same_form(given, gold) or typed_match(given, gold)
