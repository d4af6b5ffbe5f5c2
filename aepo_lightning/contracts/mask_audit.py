"""Whether a batch trains on what the policy sampled and on nothing else, by the trees that it comes from."""

from collections.abc import Sequence

from aepo_lightning.contracts.batch import TrajectoryBatch
from aepo_lightning.contracts.tree import RolloutTree, Trajectory


def mask_problem(trees: Sequence[RolloutTree], batch: TrajectoryBatch) -> str | None:
    """Return what is wrong with the mask of a batch, or None.

    Each row must be a trajectory, its mask True at the predictions of the tokens that the policy sampled, and False at
    those of the prompt, of tool results and of padding. Where it is True, the engine's log-prob must be that of the
    token.

    Args:
        trees: Finished, among them those of the batch.
        batch: A micro-batch of an update.
    """
    known: dict[tuple[int, ...], list[Trajectory]] = {}
    for trajectory in (each for tree in trees for each in tree.trajectories()):
        known.setdefault(tuple(trajectory.token_ids), []).append(trajectory)
    for row, length in enumerate(batch.lengths.tolist()):
        tokens, mask = tuple(batch.input_ids[row, :length].tolist()), batch.response_mask[row].tolist()
        if any(mask[max(length - 1, 0) :]):
            return f"Padding must not be trained on, but the mask of row {row} is true beyond its {length} tokens."
        if not length:
            continue
        found = known.get(tokens)
        if found is None:
            return f"Row {row} of a batch must be a trajectory of the iteration, but no tree has its {length} tokens."
        problems = [_in_row(row, each, mask, batch.sampler_logprobs[row].tolist()) for each in found]
        if all(problems):
            return problems[0]
    return None


def _in_row(row: int, trajectory: Trajectory, mask: Sequence[bool], logprobs: Sequence[float]) -> str | None:
    for place, is_sampled in enumerate(trajectory.is_sampled[1:]):
        if mask[place] != is_sampled:
            whose = "that the policy sampled" if is_sampled else "of the prompt or of a tool result"
            return (
                f"The mask of row {row} must be {is_sampled} at token {place + 1}, {whose}, but is {mask[place]}: "
                "the update would train on the wrong tokens."
            )
        if is_sampled and abs(logprobs[place] - trajectory.logprobs[place + 1]) > _ROUNDING:
            return (
                f"The log-prob of row {row} at token {place + 1} must be {trajectory.logprobs[place + 1]:.4g}, which "
                f"the engine has reported, but is {logprobs[place]:.4g}: log-probs and tokens are not aligned."
            )
    return None


_ROUNDING = 1e-4
"""Log-probs are float32 in a batch."""
