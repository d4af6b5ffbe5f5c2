"""The KL penalty as a part of the reward."""

from collections.abc import Sequence

from aepo_lightning.contracts.batch import TrajectoryBatch
from aepo_lightning.objectives import KLPenalty
from aepo_lightning.training.step_normalization import token_advantages


def penalise(batches: Sequence[TrajectoryBatch], penalty: KLPenalty) -> None:
    """Subtract from the advantage of every response token the penalties of itself and of those after it in its row.

    Args:
        batches: With old and reference log-probs. `token_advantages` is replaced.
        penalty: Under the policy before the update.

    References:
        REINFORCE++, arXiv:2501.03262, eq. 8: A_t = R - beta sum over i >= t of KL(i). Departure: with a baseline, the
        penalty is subtracted after it.
    """
    for batch in batches:
        assert batch.old_logprobs is not None, "the trainer has scored the tokens"
        assert batch.ref_logprobs is not None, "so has the reference policy"
        cost = penalty(batch.old_logprobs, batch.ref_logprobs, batch.response_mask)
        to_go = cost.flip(-1).cumsum(-1).flip(-1)
        batch.token_advantages = token_advantages(batch) - to_go * batch.response_mask
