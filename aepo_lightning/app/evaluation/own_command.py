"""`aepo-eval RUN` as a command: settings, folder, and the table beside what training printed."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Group
from rich.table import Table

from aepo_lightning.app.command import CONFIG_NAME, config_groups
from aepo_lightning.app.evaluation.composing import composed_config
from aepo_lightning.app.evaluation.folder import OUTPUT_ROOT, choose_folder, evaluation_folder
from aepo_lightning.app.evaluation.own_questions import evaluate_run, printed_by_training
from aepo_lightning.app.evaluation.run_policy import run_of
from aepo_lightning.app.evaluation.show import make_report
from aepo_lightning.app.overrides import config_keys, suggest
from aepo_lightning.app.printed import plain_console, print_text
from aepo_lightning.app.saved_run import load_config
from aepo_lightning.app.words import parse
from aepo_lightning.atomic_files import write_json
from aepo_lightning.errors import ConfigError

BUILT = ("model", "engine", "algorithm", "data", "tools", "reward", "rollout", "experience", "publication_check")
"""What an evaluation builds of the configuration of a run."""
FIGURES = "held_out.json"
_PLACES = ("output_dir", "output_root")
"""Settings of the command itself."""
_TIME = "_s"
"""How names of what a clock measured end: no two evaluations share it."""
_SHOWN = ("reward", "pass@", "f1", "entropy", "num_tool_calls", "format_error_fraction", "truncated_fraction")


def evaluate_own(
    source: str,
    words: Sequence[str],
    allowed: Sequence[str] = (),
    config_dir: str | None = None,
    *,
    strict: bool = False,
) -> dict[str, float]:
    """Evaluate a run, or one of its checkpoints, on its own questions; print and keep the figures.

    Args:
        source: Folder of the run, or the checkpoint.
        words: `key=value` of the run's configuration, `engine=vllm` and its like, `output_dir=` and `output_root=`.
        allowed: What the configuration in the folder may call beside the parts of this library.
        config_dir: A folder with options of the user's own.
        strict: Refuse a score that is in doubt. It is kept all the same.

    Raises:
        ConfigError: If it is no run, or a setting does not fit.
        DataError: With `strict`, if the score is in doubt.
    """
    folder, checkpoint = run_of(Path(source).expanduser())
    cfg, places = _settled(load_config(folder, allowed, BUILT), words, config_dir)
    name = f"{folder.resolve().parent.name}-{folder.resolve().name}"
    name = name if checkpoint is None else f"{name}-{checkpoint.stem}"
    target = choose_folder(places.get("output_dir"), places.get("output_root", OUTPUT_ROOT), name)
    with open_dict(cfg):
        cfg.evaluated = {"run": str(folder), "checkpoint": None if checkpoint is None else str(checkpoint)}
    with evaluation_folder(target, cfg):
        found = evaluate_run(cfg, folder, target, checkpoint)
        write_json(target / FIGURES, found)
    is_as_trained = checkpoint is None and all(word.partition("=")[0] in _PLACES for word in words)
    printed = printed_by_training(folder) if is_as_trained else {}
    plain_console().print(render_own(name, found, printed))
    print_text(f"results  {target}")
    if strict:
        make_report(target).check()
    return found


def render_own(name: str, found: Mapping[str, float], printed: Mapping[str, float]) -> Group:
    """Return the table of held-out figures beside those that training printed."""
    table = Table(title=name, title_justify="left")
    for heading in ("held out", "now", *(["training"] if printed else [])):
        table.add_column(heading, justify="left" if heading == "held out" else "right")
    for key, value in found.items():
        label = key.removeprefix("val/")
        if label.startswith(_SHOWN):
            then = [f"{printed[key]:.4f}" if key in printed else "-"] if printed else []
            table.add_row(label, f"{value:.4f}", *then)
    return Group(table, *_verdict(found, printed))


def _verdict(found: Mapping[str, float], printed: Mapping[str, float]) -> list[str]:
    if not printed:
        return []
    differing = unequal(found, printed)
    if not differing:
        return ["Every figure is what training printed, to the last digit."]
    listing = ", ".join(name.removeprefix("val/") for name in differing[:5])
    return [f"{len(differing)} figures differ from what training printed, such as {listing}."]


def unequal(found: Mapping[str, float], printed: Mapping[str, float]) -> list[str]:
    """Return the names of figures, times apart, that are not the same in both to the last digit."""
    names = [name for name in printed if name.startswith("val/") and not name.endswith(_TIME)]
    return [name for name in names if found.get(name) != printed[name]]


def _settled(cfg: DictConfig, words: Sequence[str], config_dir: str | None) -> tuple[DictConfig, dict[str, object]]:
    """Return the configuration with what was said, and where the evaluation goes."""
    places: dict[str, object] = {}
    groups = [line.split()[0] for line in config_groups().splitlines()]
    keys = config_keys(OmegaConf.to_container(cfg, resolve=False))  # type: ignore[arg-type]
    for word in words:
        override = parse(word)
        key = word.partition("=")[0]
        if override is None or "=" not in word or key.startswith(("+", "~")):
            raise ConfigError(f"A setting must read key=value, but got {word!r}. Write evaluation.num_samples=8.")
        if key in _PLACES:
            places[key] = override.value()
        elif key in groups and not OmegaConf.is_dict(override.value()):
            cfg[key] = composed_config(CONFIG_NAME, [word], config_dir)[key]
        elif key in keys:
            OmegaConf.update(cfg, key, override.value(), merge=True)
        else:
            near = suggest(key, keys)
            advice = f"Did you mean {' or '.join(f'`{each}`' for each in near)}?" if near else "Take it out."
            raise ConfigError(f"`{key}` must be a key of the run's configuration, but there is none. {advice}")
    return cfg, places
