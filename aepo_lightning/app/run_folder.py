"""Where a run writes, and what `ckpt_path=last` means."""

import logging
import os
from contextlib import suppress
from datetime import datetime
from itertools import count
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from aepo_lightning.app.paths import as_path, writing
from aepo_lightning.checkpoints import LAST, CheckpointSummary, find_last, verify_checkpoint
from aepo_lightning.distributed.first_process import is_first_process
from aepo_lightning.errors import ConfigError

logger = logging.getLogger(__name__)

VARIABLE = "AEPO_RUN_DIR"
"""Where the first process of a job leaves its choice for those that Lightning starts after it."""
CONFIG = "config.yaml"
"""What tells that a folder is that of a run."""
_FIRST_SPECIAL_STEP = 0xFFFFFFF0
"""SLURM's numbers of steps that nobody started, such as the batch script itself."""
# What tells when a run was last at work. Its folder exists from the first moment, a checkpoint only later.
_TRACES = (CONFIG, "checkpoints", f"checkpoints/{LAST}", "rollouts", "report.json")


def choose_run_folder(
    output_root: object, name: object, run_dir: object, ckpt_path: object, job_number: int | None = None
) -> Path:
    """Return the folder of this run, which exists; every process of a job returns the same one.

    A new run gets a folder of its own: named after the job where a launcher starts the processes one by one, else after
    the time, and made in one step, so that two runs never share one. A run that continues `last` continues in its
    folder, so its curves go on in TensorBoard: that of the job if it was started before, else the newest of the
    experiment, whether or not it came as far as a checkpoint.

    The values may be what a configuration holds: a folder named 2024 is a number there.

    Args:
        output_root: Where all runs are.
        name: Name of the experiment.
        run_dir: A folder chosen by the user, or None.
        ckpt_path: What the run starts from, or None.
        job_number: Of a sweep, from 0; None if this is none.

    Raises:
        ConfigError: If `ckpt_path` is `last` and there is no run to continue, or the folder cannot be made.
    """
    if run_dir is not None:
        return _make(as_path(run_dir, "run_dir"))
    if (inherited := os.environ.get(VARIABLE)) and not is_first_process():
        return Path(inherited)
    if not (is_first_process() or are_started_one_by_one()):
        raise ConfigError("`run_dir` must be given where nothing names the job, but got none. Add run_dir=...")
    experiment = as_path(output_root, "output_root") / _checked_name(name)
    job, suffix = _job(), "" if job_number is None else f"_{job_number}"
    named = experiment / f"job-{job}{suffix}"
    if job and named.is_dir() and (ckpt_path == "last" or is_started_again()):
        return named
    if ckpt_path == "last":
        return _newest_run(experiment)
    if job and are_started_one_by_one():
        return _make(named)
    return _make_new(named if job else experiment / f"{datetime.now():%Y-%m-%d_%H-%M-%S}{suffix}")


def _checked_name(name: object) -> str:
    parts = Path(str(name)).parts
    if not parts or name is None or ".." in parts or Path(str(name)).is_absolute():
        raise ConfigError(
            f"`name` must be the name of a folder below `output_root`, but got {name!r}. Write name=mine."
        )
    return str(name)


def _make(folder: Path) -> Path:
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _make_new(wanted: Path) -> Path:
    """Make a folder that nobody else has, under the name that is wanted or that with a number behind it."""
    _make(wanted.parent)
    for number in count(1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        with writing(folder), suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise AssertionError("numbers have no end")


def _job() -> str | None:
    """Return what the launcher calls this job, the same in all of its processes; None where there is none.

    Steps of one SLURM allocation are jobs of their own, and so are torchrun's with other ids.
    """
    names = []
    if slurm := os.environ.get("SLURM_JOB_ID"):
        step = int(os.environ.get("SLURM_STEP_ID", "0"))
        names.append(f"{slurm}.{step}" if 0 < step < _FIRST_SPECIAL_STEP else slurm)
    if (torchrun := os.environ.get("TORCHELASTIC_RUN_ID", "none")) not in ("none", "", slurm):
        names.append(torchrun)
    if not names and are_started_one_by_one():
        raise ConfigError(
            "`run_dir` must be given where torchrun has no id and nothing else names the job, but got none. Add "
            "run_dir=... or --rdzv-id."
        )
    return "-".join(names) or None


def are_started_one_by_one() -> bool:
    """Return whether something outside starts further processes of this job, which must find the same folder."""
    numbers = (os.environ.get(name) or "1" for name in ("WORLD_SIZE", "SLURM_NTASKS"))
    return max(map(int, numbers)) > 1 or "NODE_RANK" in os.environ


def is_started_again() -> bool:
    """Return whether a launcher starts this very job once more: a worker of torchrun failed, SLURM has requeued it."""
    counts = (os.environ.get(name) or "0" for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))
    return any(count.isdigit() and int(count) > 0 for count in counts)


def start_of_run(folder: Path, ckpt_path: object) -> object:
    """Return what a run starts from: what it was told to, but `last` where its launcher starts it again.

    Args:
        folder: Of the run.
        ckpt_path: As in the configuration.
    """
    if ckpt_path == "last" or not (is_started_again() and (folder / CONFIG).is_file()):
        return ckpt_path
    if ckpt_path is not None and find_last(folder / "checkpoints") is None:
        return ckpt_path  # it has not come far enough to have one of its own
    announce("The launcher has started this job again: it goes on in %s.", folder)
    return "last"


def resolve_checkpoint(folder: Path, ckpt_path: object) -> CheckpointSummary | None:
    """Return the checkpoint to continue from, checked; None if the run starts at its beginning.

    `last` in a folder without a checkpoint starts at the beginning too: a run that was killed before its first save
    is continued by the same command, and takes over its cold start and its finished rollouts.

    Raises:
        ConfigError: If what was named does not exist, or is no checkpoint but the folder of a run.
        DataError: If it is damaged or of another format.
    """
    if ckpt_path is None:
        return None
    path = find_last(folder / "checkpoints") if ckpt_path == "last" else as_path(ckpt_path, "ckpt_path")
    if path is None:
        announce("No checkpoint in %s yet: starting at the first iteration, with what the folder has.", folder)
        return None
    if not path.exists():
        raise ConfigError(f"`ckpt_path` must name a checkpoint or be 'last', but {path} does not exist. Correct it.")
    if (path / CONFIG).is_file():
        raise ConfigError(
            f"`ckpt_path` must name a checkpoint or be 'last', but {path} is the folder of a run. Write run_dir={path} "
            f"ckpt_path=last to go on there, or ckpt_path={path / 'checkpoints' / LAST} for a new run from it."
        )
    summary = verify_checkpoint(path)
    announce("Continuing after iteration %d (optimiser step %d) of %s.", summary.epoch, summary.global_step, path)
    return summary


@rank_zero_only
def announce(message: str, *values: object) -> None:
    """Say in the log, once for all ranks, what a run takes from its folder."""
    logger.info(message, *values)


def _newest_run(experiment: Path) -> Path:
    runs = [folder for folder in experiment.glob("*") if (folder / _TRACES[0]).is_file()]
    if not runs:
        raise ConfigError(f"`ckpt_path=last` needs a run below {experiment}, but got none. Start a new run.")
    return max(runs, key=_last_activity)


def _last_activity(run: Path) -> float:
    traces = (run / name for name in _TRACES)
    return max(path.lstat().st_mtime for path in traces if path.is_symlink() or path.exists())
