"""The exact match of xbench-DeepSearch."""

from dataclasses import dataclass
from typing import ClassVar

from aepo_lightning.contracts.checker import Claim, Verdict
from aepo_lightning.rewards.checkers.accepted import matches_any
from aepo_lightning.rewards.checkers.exact_form import is_same_form, labelled_answer

_LABEL = "\u6700\u7ec8\u7b54\u6848"  # "final answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class XBenchMatch:
    """Right if the final answer is an accepted one as it stands.

    This is the part of xbench's scoring that is a rule: a final answer that equals the accepted one needs no judge. All
    others go to a language model, which also accepts numbers within a small margin: what is wrong here is not yet wrong
    there. Beyond the public scorer, which asks for the same characters, the same number in another spelling is right,
    and the last `final answer` line counts, not the first.

    References:
        xbench, arXiv:2506.13651, and `eval_grader.py` of its public evaluation code.
    """

    is_immediate: ClassVar[bool] = True

    async def __call__(self, claim: Claim) -> Verdict:
        """Return whether one of the accepted answers was given."""
        return matches_any(claim, lambda answer, gold: is_same_form(labelled_answer(answer, _LABEL), gold))
