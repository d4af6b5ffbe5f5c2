"""Where a run writes, and what `ckpt_path=last` means."""

import os
from datetime import datetime
from pathlib import Path

from aepo_lightning.errors import ConfigError

_VARIABLE = "AEPO_RUN_DIR"


def choose_run_folder(output_root: str, name: str, run_dir: str | None, ckpt_path: str | None) -> Path:
    """Return the folder of this run; every process of a job returns the same one.

    A run that continues `last` continues in the folder of that checkpoint, so its curves go on in TensorBoard. A new
    run gets a folder named after the time, or after the job where a launcher starts the processes one by one.

    Args:
        output_root: Where all runs are.
        name: Name of the experiment.
        run_dir: A folder chosen by the user, or None.
        ckpt_path: What the run starts from, or None.

    Raises:
        ConfigError: If `ckpt_path` is `last` and there is no checkpoint to continue.
    """
    if run_dir is not None:
        return Path(run_dir)
    if ckpt_path == "last":
        return _newest_checkpoint(Path(output_root) / name).parent.parent
    if inherited := os.environ.get(_VARIABLE):
        return Path(inherited)
    job = os.environ.get("SLURM_JOB_ID") or os.environ.get("TORCHELASTIC_RUN_ID")
    folder = Path(output_root) / name / (f"job-{job}" if job else datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
    # Processes that Lightning starts inherit the choice, so that all ranks write to one folder.
    os.environ[_VARIABLE] = str(folder)
    return folder


def resolve_checkpoint(folder: Path, ckpt_path: str | None) -> Path | None:
    """Return the checkpoint to continue from.

    Raises:
        ConfigError: If it does not exist.
    """
    if ckpt_path is None:
        return None
    path = folder / "checkpoints" / "last.ckpt" if ckpt_path == "last" else Path(ckpt_path)
    if not path.exists():
        raise ConfigError(f"`ckpt_path` must name a checkpoint or be 'last', but {path} does not exist.")
    return path


def _newest_checkpoint(experiment: Path) -> Path:
    found = sorted(experiment.glob("*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ConfigError(f"`ckpt_path=last` needs a checkpoint below {experiment}, but got none. Start a new run.")
    return found[-1]
