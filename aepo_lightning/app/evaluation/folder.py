"""The folder of an evaluation: which one it is, locked while something is added, and what it says of itself."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

from aepo_lightning.app.paths import as_path, writing
from aepo_lightning.app.run_lock import RunLock
from aepo_lightning.app.saved_config import read_config, save_config
from aepo_lightning.app.targets import check_targets
from aepo_lightning.errors import ConfigError
from aepo_lightning.evaluation.results import unequal_settings
from aepo_lightning.evaluation.results_file import results_path, results_paths

CONFIG = "evaluation.yaml"
"""What tells that a folder is that of an evaluation: its configuration, and below `evaluated` whose it is."""
OUTPUT_ROOT = "runs/eval"
_SUITE = "suite"
_SHARED = ("model", "sampling", "num_samples", "seed", "rollout.chat_format", "engine.max_model_len")
"""What all benchmarks of one folder have in common: a replay takes it from the folder's configuration."""


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
    """Make a folder, hold its lock, and keep the configuration there with which its first results are made.

    Raises:
        ConfigError: If it cannot be written, another evaluation writes there, or a run does; if it is that of a run's
            own questions and benchmarks are to be asked, or the other way round.
    """
    if (folder / "config.yaml").is_file():
        raise ConfigError(f"`output_dir` must not be the folder of a run, but {folder} is. Name another folder.")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = RunLock(folder, "output_dir")
    try:
        with writing(folder):
            if not (folder / CONFIG).is_file() or not results_paths(folder):
                save_config(cfg, folder / CONFIG)
        _check_kind(folder, cfg)
        yield folder
    finally:
        lock.release()


def load_evaluation(folder: Path, allowed: Sequence[str] = (), sections: Sequence[str] = ()) -> DictConfig:
    """Read what an evaluation was made of, which may be somebody else's.

    Args:
        folder: Of the evaluation.
        allowed: What its configuration may call beside the parts of this library.
        sections: Dotted keys of the nodes that will be built; only their parts are looked at. Empty looks at all.

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
    check_targets(cfg, str(path), allowed, sections)
    return cfg


def extend_suite(folder: Path, cfg: DictConfig) -> None:
    """Keep the benchmarks that are added to an evaluation beside those that it has.

    Raises:
        ConfigError: If they are to be asked under other settings than those that are there, which are named.
    """
    saved = read_config(folder / CONFIG)
    new = [name for name in cfg.suite if name not in saved.suite or not results_path(folder, name).is_file()]
    if not new:
        return  # stamps tell what differs
    if differences := list(unequal_settings(_shared(saved), _shared(cfg))):
        listing = "\n".join(f"  {each}" for each in differences)
        raise ConfigError(
            f"Benchmarks that are added to {folder} must be asked under the settings of those that are there, but "
            f"these differ:\n{listing}\nGive the saved values, or evaluate into another folder."
        )
    with open_dict(saved):
        for name in new:
            saved.suite[name] = OmegaConf.to_container(cfg.suite[name])
    with writing(folder):
        save_config(saved, folder / CONFIG)


def _shared(cfg: DictConfig) -> dict[str, object]:
    found = {name: OmegaConf.select(cfg, name) for name in _SHARED}
    return {name: OmegaConf.to_container(each) if OmegaConf.is_config(each) else each for name, each in found.items()}


def _check_kind(folder: Path, cfg: DictConfig) -> None:
    saved = read_config(folder / CONFIG)
    if (_SUITE in saved) != (_SUITE in cfg):
        there, asked = ("benchmarks", "a run's own questions")[:: 1 if _SUITE in saved else -1]
        raise ConfigError(
            f"`output_dir` must be a folder for {asked}, but {folder} has results of {there}. Name another folder."
        )
