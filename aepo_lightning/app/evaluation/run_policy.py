"""Which policy a path stands for: that of a run, that of one of its checkpoints, or none."""

from pathlib import Path

from omegaconf import DictConfig

from aepo_lightning.app.run_folder import CONFIG
from aepo_lightning.app.saved_run import SavedPolicy, first_policy, saved_adapter
from aepo_lightning.checkpoints import find_last
from aepo_lightning.errors import ConfigError
from aepo_lightning.evaluation.evaluated_policy import EvaluatedPolicy, files_digest, parameters
from aepo_lightning.policy.source import PretrainedPolicy


def policy_of_run(cfg: DictConfig, folder: Path, checkpoint: Path | None = None) -> EvaluatedPolicy:
    """Return what a run has trained so far.

    Args:
        cfg: Of the run.
        folder: Of the run.
        checkpoint: One of its checkpoints. Default: the newest; of a run without any, what it started from.

    Raises:
        DataError: If the checkpoint is damaged or of another model.
    """
    source, name = first_policy(cfg, folder), f"{folder.resolve().parent.name}/{folder.resolve().name}"
    path = checkpoint or find_last(folder / "checkpoints")
    if path is None:
        files = sorted((folder / "coldstart").glob("*.safetensors")) or [folder / CONFIG]
        return EvaluatedPolicy(source=source, weights=lambda: parameters(source), name=name, digest=files_digest(files))
    saved = SavedPolicy.open(path, saved_adapter(cfg), source)
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    return EvaluatedPolicy(
        source=source,
        weights=saved.weights,
        name=name,
        digest=files_digest(files),
        global_step=saved.summary.global_step,
    )


def is_of_run(source: Path) -> bool:
    """Return whether a path that was named beside benchmarks is that of a run or of a checkpoint, not of a model."""
    return (source / CONFIG).is_file() or source.suffix == ".ckpt"


def named_model(source: str, cfg: DictConfig) -> PretrainedPolicy:
    """Return the model in a folder or under a name of the Hub, read as `model` of an evaluation says.

    Raises:
        ConfigError: If there is none.
    """
    return PretrainedPolicy(
        name_or_path=source, eos_tokens=list(cfg.model.eos_tokens), trust_remote_code=cfg.model.trust_remote_code
    )


def run_of(source: Path) -> tuple[Path, Path | None]:
    """Return the folder of a run, and one of its checkpoints if that is what was named.

    Raises:
        ConfigError: If it is neither.
    """
    if (source / CONFIG).is_file():
        return source, None
    if not source.exists():
        raise ConfigError(f"The folder of a run, or a model with `benchmarks=`, must be named, but got {source}.")
    folder = source.resolve().parent.parent
    if (folder / CONFIG).is_file():
        return folder, source
    what = "is a model" if (source / "config.json").is_file() else f"has no {CONFIG}"
    raise ConfigError(
        f"The folder of a run must be named, but {source} {what}. Name a run's folder or a checkpoint in it, or say "
        "what a model is asked: benchmarks=[gsm8k]."
    )
