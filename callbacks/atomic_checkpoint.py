"""Writes checkpoints that a crash at any moment cannot spoil."""

import logging
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch.distributed.checkpoint.api import CheckpointException
from typing_extensions import override

from aepo_lightning.atomic_files import PARTIAL, put_in_place, remove
from aepo_lightning.checkpoints import find_checkpoints, point_last_to, remove_partial
from aepo_lightning.contracts.rollouts import OverlappingRollouts
from aepo_lightning.distributed.collectives import all_gather, all_reduce
from aepo_lightning.distributed.ranks import finishing, were_cut_off
from aepo_lightning.errors import ConfigError, TrainingError

logger = logging.getLogger(__name__)
_PATTERN = re.compile(r"iteration(\d+)\.ckpt")


class AtomicCheckpoint(Checkpoint):
    """Saves the whole run after an iteration, so that `ckpt_path=last` goes on as if it had never stopped.

    A checkpoint is written under a name that ends in `.partial`, flushed to the disk and renamed; only then older ones
    are removed. `last.ckpt` is a link to the newest. A checkpoint is a file or, under FSDP2, a folder of shards, which
    must be on a disk that all nodes share. If a save fails, the run stops; what was saved before stays.

    A run that ends while it waits for rollouts, by a signal or an error, is saved as it was before them. That takes all
    ranks, and with overlapped rollouts the weights that these were grown with, among those of `rollout.keep_weights`.
    Otherwise the last checkpoint and the journal have to do, and one line says so.

    Logs `time/checkpoint_s` in iterations that save.
    """

    def __init__(
        self, dirpath: str | Path, every_n_epochs: int = 10, keep: int = 2, algorithm: str | None = None
    ) -> None:
        """Keep the settings.

        Args:
            dirpath: Folder of the checkpoints.
            every_n_epochs: Iterations from one save to the next. The last iteration is saved always, and so is the one
                after which a callback, or a signal that Lightning handles, stops the run.
            keep: How many of the newest checkpoints stay; -1 keeps all. While one is written there is one more.
            algorithm: Name of the algorithm, kept for a warning if a run continues with another.

        Raises:
            ConfigError: If a number has no meaning.
        """
        super().__init__()
        if every_n_epochs < 1:
            raise ConfigError(f"`every_n_epochs` must be at least 1, but got {every_n_epochs}. Use 1 for every epoch.")
        if keep < 1 and keep != -1:
            raise ConfigError(f"`keep` must be -1 (all) or at least 1, but got {keep}. Drop the callback to save none.")
        self._folder = Path(dirpath)
        self.dirpath = str(dirpath)  # as other checkpoint callbacks of Lightning have it
        self._every_n_epochs = every_n_epochs
        self._keep = keep
        self._algorithm = algorithm
        self.kept_iteration: int | None = None
        """Whose checkpoint stays beside the newest, if there is one; None keeps the newest only."""
        self._is_asked_for = False
        self._unlogged: dict[str, float] = {}
        self._unlogged_step = 0
        self._is_resumed = False
        self._is_unsaved = False
        """Whether an iteration is over that was not saved, and none has begun since."""
        self._is_within = False
        """Whether the steps of an iteration are being taken."""
        self._num_logged_steps = 0
        """Steps by which the loggers count, at the end of the last iteration."""

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Clear away what a killed run left half written."""
        if stage == "fit" and trainer.is_global_zero:
            self._folder.mkdir(parents=True, exist_ok=True)
            if names := remove_partial(self._folder):
                logger.info("Removed what a killed run left unfinished in %s: %s.", self._folder, ", ".join(names))

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give the loggers the metrics of the saved iteration: the run may have been killed right before they came."""
        self._log_what_may_be_missing(trainer)

    @override
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Do the same where nothing is left to train."""
        self._log_what_may_be_missing(trainer)

    def _log_what_may_be_missing(self, trainer: L.Trainer) -> None:
        if self._is_resumed and trainer.is_global_zero and self._unlogged:
            for each in trainer.loggers:
                each.log_metrics(self._unlogged, self._unlogged_step)
                each.save()
        self._is_resumed = False

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save if it is due; the other callbacks are done with the iteration."""
        if getattr(trainer, "fast_dev_run", False):
            return
        self._is_unsaved, self._is_within = True, False
        self._num_logged_steps = trainer.fit_loop.epoch_loop._batches_that_stepped
        if not self._is_due(trainer):
            return
        start = perf_counter()
        settings: Any = trainer  # not all of its public attributes are declared
        if isinstance(settings.datamodule, OverlappingRollouts):
            settings.datamodule.wait_for_rollouts()  # a signal ends this wait, and `on_exception` saves what is there
        with finishing():
            self._is_unsaved = False
            self._save(trainer)
        pl_module.log("time/checkpoint_s", perf_counter() - start, sync_dist=True, rank_zero_only=True)

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note that the rollouts are there and an update begins."""
        self._is_unsaved, self._is_within = False, True

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Save the state before the rollouts that were cut off, if that is possible; else say what stands."""
        problem = self._why_not(trainer) if self._is_unsaved or self._is_within else None
        if problem is not None and trainer.is_global_zero:
            found = [path.name for path in find_checkpoints(self._folder)]
            where = f"from {found[0]}" if found else "from the beginning"
            logger.warning("The last iteration is not saved, because %s. The run goes on %s.", problem, where)
        if problem is not None or not self._is_unsaved:
            return
        self._is_unsaved = False
        progress: Any = trainer.fit_loop.epoch_progress
        was_logged = progress.current.completed == progress.current.processed
        for each in (progress.current, progress.total):  # as in a checkpoint from the end of an iteration
            each.completed = each.processed - 1
        # Lightning takes one off while it logs the end of an iteration, which is where a signal may have come.
        trainer.fit_loop.epoch_loop._batches_that_stepped = self._num_logged_steps
        try:
            with finishing():
                self._save(trainer, is_logged=was_logged)
        except TrainingError as error:
            logger.warning("The state before the rollouts that were cut off is not saved. %s", error)

    def _why_not(self, trainer: L.Trainer) -> str | None:
        """Return why there is no state to save; the same on every rank, if all were cut off together."""
        if self._is_within:
            return "the run ends in the middle of its steps"
        if not (were_cut_off() or trainer.world_size == 1):
            return "the ranks were not cut off together, and saving takes all of them"
        settings: Any = trainer  # not all of its public attributes are declared
        data = settings.datamodule
        is_complete = not isinstance(data, OverlappingRollouts) or data.make_resumable()
        if all_reduce([float(not is_complete)], "max")[0]:
            return "the weights of the overlapped rollouts are not kept (`rollout.keep_weights`)"
        return None

    def ask_for_save(self) -> None:
        """Save this iteration, or the one after if it is saved already. On every rank."""
        self._is_asked_for = True

    def saved_iterations(self) -> dict[int, Path]:
        """Return the checkpoints that lie in the folder under the numbers of their iterations, from 0."""
        found = ((_PATTERN.fullmatch(path.name), path) for path in find_checkpoints(self._folder))
        return {int(match[1]): path for match, path in found if match}

    def _is_due(self, trainer: L.Trainer) -> bool:
        number = trainer.current_epoch + 1
        is_last = number == trainer.max_epochs or 0 < trainer.max_steps <= trainer.global_step
        wanted = is_last or self._is_asked_for or number % self._every_n_epochs == 0
        self._is_asked_for = False
        # A signal may reach one rank before another, and saving takes all of them.
        return bool(all_reduce([wanted or trainer.should_stop or trainer.received_sigterm], "max")[0])

    def _save(self, trainer: L.Trainer, *, is_logged: bool = False) -> None:
        target = self._folder / f"iteration{trainer.current_epoch:04d}.ckpt"
        partial = target.with_name(target.name + PARTIAL)
        self._note_unlogged(trainer)
        if is_logged:
            self._unlogged = {}
        # What `Trainer.save_checkpoint` does, without its barrier: a rank that fails must not leave the others there.
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        attempt = _Attempt(target, _num_bytes(checkpoint), trainer.is_global_zero)
        attempt.on_rank_zero(lambda: remove(partial))
        attempt.on_all_ranks(lambda: trainer.strategy.save_checkpoint(checkpoint, partial))
        attempt.on_rank_zero(lambda: self._finish(partial, target))

    def _finish(self, partial: Path, target: Path) -> None:
        put_in_place(partial, target)
        point_last_to(target)
        kept = self.saved_iterations().get(-1 if self.kept_iteration is None else self.kept_iteration)
        others = [path for path in find_checkpoints(self._folder) if path not in (target, kept)]
        for path in others[self._keep - 1 :] if self._keep > 0 else ():
            remove(path)

    def _note_unlogged(self, trainer: L.Trainer) -> None:
        """Remember the metrics of the iteration, which Lightning hands to the loggers after all hooks of its end."""
        found: Mapping[str, Any] = trainer._logger_connector.metrics["log"]
        self._unlogged = {name: float(value) for name, value in found.items()} | {"epoch": float(trainer.current_epoch)}
        self._unlogged_step = max(trainer.fit_loop.epoch_loop._batches_that_stepped - 1, 0)

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the metrics of the saved iteration and the name of the algorithm."""
        return {"unlogged": self._unlogged, "unlogged_step": self._unlogged_step, "algorithm": self._algorithm}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the metrics, and warn about another algorithm."""
        self._unlogged = dict(state_dict["unlogged"])
        self._unlogged_step = int(state_dict["unlogged_step"])
        self._is_resumed = True
        saved = state_dict["algorithm"]
        if saved is not None and self._algorithm is not None and saved != self._algorithm:
            logger.warning("The checkpoint was trained with algorithm=%s; it goes on with %s.", saved, self._algorithm)


class _Attempt:
    """Steps of a save that may fail on any rank. All ranks learn of it, and stop with one message."""

    def __init__(self, target: Path, num_bytes: int, is_global_zero: bool) -> None:
        self._target = target
        self._num_bytes = num_bytes
        self._is_global_zero = is_global_zero

    def on_rank_zero(self, step: Callable[[], object]) -> None:
        """Do a step on rank zero; the others wait for it."""
        self.on_all_ranks(step if self._is_global_zero else lambda: None)

    def on_all_ranks(self, step: Callable[[], object]) -> None:
        """Do a step on every rank.

        Raises:
            TrainingError: On every rank, if it failed on one.
        """
        failure: BaseException | None = None
        try:
            step()
        except (OSError, RuntimeError, CheckpointException) as error:
            failure = error
        problems = all_gather(None if failure is None else _reason(failure))
        if any(problems):
            if self._is_global_zero:
                with suppress(OSError):
                    remove(self._target.with_name(self._target.name + PARTIAL))
            raise TrainingError(self._message(next(each for each in problems if each))) from failure

    def _message(self, problem: str) -> str:
        folder = self._target.parent
        free = shutil.disk_usage(folder).free if folder.is_dir() else 0
        found = [path for path in find_checkpoints(folder) if path != self._target]
        intact = f"{found[0]} is intact" if found else "there is none before it, but finished rollouts are kept"
        return (
            f"{self._target} must be written, but: {problem}. It takes {_gigabytes(self._num_bytes)} and the disk has "
            f"{_gigabytes(free)} left; {intact}. Make space, then continue with ckpt_path=last."
        )


def _reason(error: BaseException) -> str:
    """Return one line; a failure on several ranks is told by the first of them."""
    inner = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
    return (str(inner).splitlines() or [""])[0] or type(inner).__name__


def _num_bytes(state: Any) -> int:
    """Return the size of all tensors in a nest of containers; of a sharded tensor the whole of it."""
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, Mapping):
        return sum(_num_bytes(value) for value in state.values())
    return sum(_num_bytes(value) for value in state) if isinstance(state, (list, tuple)) else 0


def _gigabytes(number: int) -> str:
    return f"{number / 1e9:.3g} GB"
