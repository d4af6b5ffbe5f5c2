"""Scores that tokens are drawn from where requests lower those of tokens that were there before."""

from jaxtyping import Float
from torch import Tensor

from aepo_lightning.engines.request import Request
from aepo_lightning.engines.sampling import penalise_repetition


def is_penalised(request: Request) -> bool:
    """Return whether a request lowers the scores of tokens that were there before."""
    return request.params.repetition_penalty != 1


def drawing_scores(
    logits: Float[Tensor, "batch vocab"], requests: list[Request]
) -> Float[Tensor, "batch vocab"] | None:
    """Return the scores that the next token of each request is drawn from, or None if they are the logits."""
    if not any(map(is_penalised, requests)):
        return None
    return penalise_repetition(
        logits, [each.tokens for each in requests], [each.params.repetition_penalty for each in requests]
    )
