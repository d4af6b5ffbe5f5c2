"""Lightning callbacks: what may be added to a run or left out. Import them as `aepo_lightning.callbacks`.

    atomic_checkpoint.py  `AtomicCheckpoint`: saves the run so that a crash at any moment cannot spoil it
    branch_penalty.py     `BranchPenalty`: steers the penalty for branches in a row; schedules, hence changes rollouts
    branch_places.py      `BranchPlaces`: how often chains branch where the next step matters, and where it does not
    dashboard.py          `Dashboard`: the first screen of a run in TensorBoard, and its hyper-parameters
    device_figures.py     memory of process and GPU, and how much of the GPU is used
    drawing.py            pictures of rollouts
    entropy_monitor.py    `EntropyMonitor`: the entropy curve of the run as a picture beside the checkpoints
    entropy_guard.py      `EntropyGuard`: warns when a run becomes unstable, and acts if it is told to
    entropy_target.py     `EntropyTarget`: steers the weight of the entropy bonus; schedules, hence changes updates
    guard_acts.py         what it can do
    guard_settings.py     what it is told to do, and what that needs
    guard_steering.py     the weight of the entropy bonus, towards a schedule
    layout.py             which charts stand in which group of the first screen
    learning_curve.py     `LearningCurve`: a table and a picture of the run, complete after every iteration
    logger_media.py       texts, pictures and tables for whatever logger takes them
    rank_guard.py         `RankGuard`: ends the whole job when one rank fails, dies or hangs
    rollout_logger.py     `RolloutLogger`: some trajectories as readable text
    rollout_pictures.py   `RolloutPictures`: trees, entropies and histograms as pictures, drawn beside the update
    run_log.py            `RunLog`: the run as plain lines, and `choose_progress`: a bar instead on a terminal
    sample_budget.py      `SampleBudget`: ends training at a budget of generated tokens and tool calls
    stability.py          whether a run is stable, from a few numbers of each iteration; knows of no trainer
    stability_limits.py   those numbers, and every threshold
    step_range.py         how far a setting may be moved that a callback steers
    throughput.py         `Throughput`: where the time of an iteration goes, and tokens per second
    trackio_logger.py     `TrackioLogger`: a logger for Trackio, since Lightning has none
    update_checks.py      `UpdateChecks`: whether the first steps train on the right tokens, and clip any
    trainer_parts.py      what they ask of the trainer

Each uses the public Trainer API only. `BranchPenalty` and `EntropyTarget` with a target and `EntropyGuard` with acts
change what is trained, and `SampleBudget` for how long; without any of the others a run computes the same numbers. The
names that they log stand in `docs/metrics.md`.
"""

from aepo_lightning.callbacks.atomic_checkpoint import AtomicCheckpoint
from aepo_lightning.callbacks.branch_penalty import BranchPenalty
from aepo_lightning.callbacks.branch_places import BranchPlaces
from aepo_lightning.callbacks.dashboard import Dashboard
from aepo_lightning.callbacks.entropy_guard import EntropyGuard
from aepo_lightning.callbacks.entropy_monitor import EntropyMonitor
from aepo_lightning.callbacks.entropy_target import EntropyTarget
from aepo_lightning.callbacks.guard_settings import GuardSettings
from aepo_lightning.callbacks.learning_curve import LearningCurve
from aepo_lightning.callbacks.rank_guard import RankGuard
from aepo_lightning.callbacks.rollout_logger import RolloutLogger
from aepo_lightning.callbacks.rollout_pictures import RolloutPictures
from aepo_lightning.callbacks.run_log import RunLog, choose_progress
from aepo_lightning.callbacks.sample_budget import SampleBudget
from aepo_lightning.callbacks.stability_limits import Limits
from aepo_lightning.callbacks.throughput import Throughput
from aepo_lightning.callbacks.trackio_logger import TrackioLogger
from aepo_lightning.callbacks.update_checks import UpdateChecks

__all__ = [
    "AtomicCheckpoint",
    "BranchPenalty",
    "BranchPlaces",
    "Dashboard",
    "EntropyGuard",
    "EntropyMonitor",
    "EntropyTarget",
    "GuardSettings",
    "LearningCurve",
    "Limits",
    "RankGuard",
    "RolloutLogger",
    "RolloutPictures",
    "RunLog",
    "SampleBudget",
    "Throughput",
    "TrackioLogger",
    "UpdateChecks",
    "choose_progress",
]
