"""The folder of an evaluation: which one it is, locked while something is added, and what it says of itself."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

from aepo_lightning.app.paths import as_path, writing
from aepo_lightning.app.run_lock import RunLock
from aepo_lightning.app.saved_config import read_config, save_config
from aepo_lightning.app.targets import check_targets
from aepo_lightning.errors import ConfigError

CONFIG = "evaluation.yaml"
"""What tells that a folder is that of an evaluation: its configuration, and below `evaluated` whose it is."""
OUTPUT_ROOT = "runs/eval"


def choose_folder(output_dir: object, output_root: object, name: str) -> Path:
    """Return where an evaluation writes: the same command always means the same folder.

    Args:
        output_dir: As it was given, or None.
        output_root: Where all evaluations are.
        name: Of what is evaluated.
    """
    if output_dir is not None:
        return as_path(output_dir, "output_dir")
    return as_path(output_root, "output_root") / name.strip("/").replace("/", "-")


@contextmanager
def evaluation_folder(folder: Path, cfg: DictConfig) -> Iterator[Path]:
    """Make a folder, hold its lock, and keep the configuration there that began the evaluation.

    Raises:
        ConfigError: If it cannot be written, another evaluation writes there, or a run does.
    """
    if (folder / "config.yaml").is_file():
        raise ConfigError(f"`output_dir` must not be the folder of a run, but {folder} is. Name another folder.")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = RunLock(folder, "output_dir")
    try:
        with writing(folder):
            if not (folder / CONFIG).is_file():
                save_config(cfg, folder / CONFIG)
        yield folder
    finally:
        lock.release()


def load_evaluation(folder: Path, allowed: tuple[str, ...] = ()) -> DictConfig:
    """Read what an evaluation was made of, which may be somebody else's.

    Raises:
        ConfigError: If the folder is not that of an evaluation, or its configuration would call what is not allowed.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise ConfigError(
            f"The folder of an evaluation must have an {CONFIG}, but {folder} has none. Name a folder that aepo-eval "
            "wrote to."
        )
    cfg = read_config(path)
    check_targets(cfg, str(path), allowed)
    return cfg


def extend_suite(folder: Path, cfg: DictConfig) -> None:
    """Keep the benchmarks that are added to an evaluation beside those that it has."""
    saved = read_config(folder / CONFIG)
    missing = [name for name in cfg.suite if name not in saved.suite]
    if missing:
        with open_dict(saved):
            for name in missing:
                saved.suite[name] = OmegaConf.to_container(cfg.suite[name])
        with writing(folder):
            save_config(saved, folder / CONFIG)
