"""What `EntropyGuard` can do about an alarm. Each returns one line that says what it did, the same on every rank."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
from torch.optim.lr_scheduler import LRScheduler

from aepo_lightning.callbacks.atomic_checkpoint import AtomicCheckpoint
from aepo_lightning.callbacks.trainer_parts import republishing_rollouts_of
from aepo_lightning.checkpoints import take_back
from aepo_lightning.contracts.branching import PenalisedBranchPolicy
from aepo_lightning.contracts.rollouts import BranchingRollouts
from aepo_lightning.distributed.collectives import from_rank_zero
from aepo_lightning.errors import ConfigError

LOWER_RATE, RAISE_PENALTY, STEER_ENTROPY = "lower_rate", "raise_penalty", "steer_entropy"
ROLL_BACK, STOP = "roll_back", "stop"
ACTS = (LOWER_RATE, RAISE_PENALTY, STEER_ENTROPY, ROLL_BACK, STOP)
"""In the order of the codes that are logged, from 1."""
_MOST_PENALTY = 1.0
"""Per consecutive branch; more changes nothing."""

Schedule = Sequence[tuple[int, float]]
"""Pairs of an iteration and the entropy that is wanted from there on, in nats; straight lines between them."""


def lower_rates(trainer: L.Trainer, factor: float) -> str:
    """Multiply every learning rate by a factor, and what its schedule goes on from."""
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    before = float(groups[0]["lr"])
    for group in groups:
        for name in ("lr", "initial_lr"):
            if name in group:
                group[name] = group[name] * factor
    for config in trainer.lr_scheduler_configs:
        for scheduler in _with_inner(config.scheduler):
            scheduler.base_lrs = [rate * factor for rate in scheduler.base_lrs]
            scheduler._last_lr = [float(group["lr"]) for group in scheduler.optimizer.param_groups]
    return f"the learning rate goes from {before:.3g} to {float(groups[0]['lr']):.3g}"


def _with_inner(scheduler: Any) -> Iterator[LRScheduler]:
    """Yield a scheduler, and those that it chains."""
    if hasattr(scheduler, "base_lrs"):
        yield scheduler
    for each in getattr(scheduler, "_schedulers", ()):
        yield from _with_inner(each)


def raise_penalty(rollouts: BranchingRollouts, step: float) -> tuple[str, float]:
    """Raise the penalty per consecutive branch of the next rollouts; return what it is then, too."""
    policy = rollouts.branch_policy
    assert isinstance(policy, PenalisedBranchPolicy), "`setup` has checked it"
    raised = min(policy.penalty_per_step + step, max(_MOST_PENALTY, policy.penalty_per_step))
    rollouts.branch_policy = policy.with_penalty(raised)
    return f"the branch penalty goes from {policy.penalty_per_step:.3g} to {raised:.3g}", raised


def saver_of(trainer: L.Trainer) -> AtomicCheckpoint:
    """Return the callback whose checkpoints a run is rolled back to.

    Raises:
        ConfigError: If there is none.
    """
    for each in trainer.checkpoint_callbacks:
        if isinstance(each, AtomicCheckpoint):
            return each
    raise ConfigError("`acts` may hold 'roll_back' beside an AtomicCheckpoint only, but there is none. Add one.")


def newest_good(saver: AtomicCheckpoint, good: Sequence[int]) -> tuple[int, Path] | None:
    """Return iteration and path of the newest checkpoint that is known to be good, the same on every rank."""
    saved = saver.saved_iterations()
    return from_rank_zero(max(((each, saved[each]) for each in good if each in saved), default=None))


def roll_back(trainer: L.Trainer, iteration: int, path: Path) -> str:
    """Go back to the weights after an iteration; its successors are not made again, the run goes on. Collective."""
    take_back(trainer, path)
    republishing_rollouts_of(trainer).weights_were_replaced()
    saver_of(trainer).ask_for_save()
    return f"weights and optimiser go back to {path.name}, after iteration {iteration}"


def wanted_entropy(schedule: Schedule, iteration: int) -> float:
    """Return the entropy that a schedule wants at an iteration, in nats."""
    first, last = schedule[0], schedule[-1]
    if iteration <= first[0]:
        return first[1]
    for (start, low), (end, high) in pairwise(schedule):
        if iteration <= end:
            return low + (high - low) * (iteration - start) / (end - start)
    return last[1]


def read_schedule(target: float | Sequence[Sequence[float | int]] | None) -> Schedule | None:
    """Return a target as a schedule; None stays None.

    Raises:
        ConfigError: If it has no meaning.
    """
    if target is None:
        return None
    pairs = [(0, float(target))] if isinstance(target, (int, float)) else [(int(at), float(h)) for at, h in target]
    is_rising = all(one[0] < other[0] for one, other in pairwise(pairs))
    if not pairs or not is_rising or not all(0 < nats < math.inf for _, nats in pairs):
        raise ConfigError(
            f"`target_nats` must be None, positive, or pairs of a rising iteration and a positive entropy, but got "
            f"{target}. Write [[0, 0.5], [100, 0.3]], for example."
        )
    return pairs
