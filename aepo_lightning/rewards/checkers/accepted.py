"""One answer against all that are accepted, for rules that compare two texts."""

from collections.abc import Callable

from aepo_lightning.contracts.checker import Claim, Outcome, Verdict

NO_GOLD = Verdict(outcome=Outcome.UNSCORED, reason="The question has no accepted answer to compare with.")
NO_ANSWER = Verdict(reason="The response gives no answer.")
RIGHT = Verdict(score=1.0, is_correct=True)
WRONG = Verdict(reason="The answer is none of the accepted ones.")


def accepted_answers(claim: Claim) -> list[str]:
    """Return the accepted answers that are not blank."""
    return [gold for gold in claim.golds if gold.strip()]


def matches_any(claim: Claim, is_same: Callable[[str, str], bool]) -> Verdict:
    """Return whether the answer is the same as one of the accepted ones.

    Args:
        claim: What is compared.
        is_same: Of the answer and an accepted one.

    Returns:
        Score 1 or 0; unscored if no answer is accepted.
    """
    golds = accepted_answers(claim)
    if not golds:
        return NO_GOLD
    if not claim.answer.strip():
        return NO_ANSWER
    return RIGHT if any(is_same(claim.answer, gold) for gold in golds) else WRONG
