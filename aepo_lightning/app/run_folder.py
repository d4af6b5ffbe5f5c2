"""Where a run writes, and what `ckpt_path=last` means."""

import logging
import os
from datetime import datetime
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from aepo_lightning.checkpoints import LAST, CheckpointSummary, find_last, verify_checkpoint
from aepo_lightning.errors import ConfigError

logger = logging.getLogger(__name__)

_VARIABLE = "AEPO_RUN_DIR"
# What tells when a run was last at work. Its folder exists from the first moment, a checkpoint only later.
_TRACES = ("config.yaml", "checkpoints", f"checkpoints/{LAST}", "rollouts", "report.json")


def choose_run_folder(output_root: str, name: str, run_dir: str | None, ckpt_path: str | None) -> Path:
    """Return the folder of this run; every process of a job returns the same one.

    A run that continues `last` continues in its folder, so its curves go on in TensorBoard. That is the folder of the
    job where a launcher starts the processes one by one and starts them again, else the newest of the experiment,
    whether or not it came as far as a checkpoint. A new run gets a folder named after the time, or after the job.

    Args:
        output_root: Where all runs are.
        name: Name of the experiment.
        run_dir: A folder chosen by the user, or None.
        ckpt_path: What the run starts from, or None.

    Raises:
        ConfigError: If `ckpt_path` is `last` and there is no run to continue.
    """
    if run_dir is not None:
        return Path(run_dir)
    if inherited := os.environ.get(_VARIABLE):
        return Path(inherited)
    experiment = Path(output_root) / name
    job = _job()
    folder = experiment / (f"job-{job}" if job else datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
    if ckpt_path == "last" and not folder.is_dir():
        folder = _newest_run(experiment)
    # Processes that Lightning starts inherit the choice, so that all ranks write to one folder.
    os.environ[_VARIABLE] = str(folder)
    return folder


def _job() -> str | None:
    """Return what the launcher calls this job, the same in all of its processes; None where there is none."""
    job = os.environ.get("SLURM_JOB_ID") or os.environ.get("TORCHELASTIC_RUN_ID")
    if job != "none":
        return job
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "`run_dir` must be given where torchrun has no id, but got none. Add run_dir=... or --rdzv-id."
        )
    return None


def resolve_checkpoint(folder: Path, ckpt_path: str | None) -> CheckpointSummary | None:
    """Return the checkpoint to continue from, checked; None if the run starts at its beginning.

    `last` in a folder without a checkpoint starts at the beginning too: a run that was killed before its first save
    is continued by the same command, and takes over its cold start and its finished rollouts.

    Raises:
        ConfigError: If a checkpoint that was named does not exist.
        DataError: If it is damaged or of another format.
    """
    if ckpt_path is None:
        return None
    path = find_last(folder / "checkpoints") if ckpt_path == "last" else Path(ckpt_path)
    if path is None:
        _announce("No checkpoint in %s yet: starting at the first iteration, with what the folder has.", folder)
        return None
    if not path.exists():
        raise ConfigError(f"`ckpt_path` must name a checkpoint or be 'last', but {path} does not exist.")
    summary = verify_checkpoint(path)
    _announce("Continuing after iteration %d (optimiser step %d) of %s.", summary.epoch, summary.global_step, path)
    return summary


@rank_zero_only
def _announce(message: str, *values: object) -> None:
    logger.info(message, *values)


def _newest_run(experiment: Path) -> Path:
    runs = [folder for folder in experiment.glob("*") if (folder / _TRACES[0]).is_file()]
    if not runs:
        raise ConfigError(f"`ckpt_path=last` needs a run below {experiment}, but got none. Start a new run.")
    return max(runs, key=_last_activity)


def _last_activity(run: Path) -> float:
    traces = (run / name for name in _TRACES)
    return max(path.lstat().st_mtime for path in traces if path.is_symlink() or path.exists())
