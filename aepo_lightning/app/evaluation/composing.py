"""Configurations of evaluations, composed as those of `train.py` are, and what is said where they do not compose."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import yaml
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from aepo_lightning.app.command import CONFIG_MODULE, CONFIG_NAME, known_keys
from aepo_lightning.app.config_dir import explain_file, folder_problem, search_path
from aepo_lightning.app.overrides import explain_missing, explain_override_error, suggest
from aepo_lightning.app.paths import expand_paths
from aepo_lightning.app.words import parse
from aepo_lightning.errors import ConfigError

EVAL = "eval"
"""The configuration of an evaluation on benchmarks: `conf/eval.yaml`."""
BENCHMARKS = "benchmark"
"""The group that has a file for each benchmark."""
_ALL = "all"


def composed_config(name: str, words: Sequence[str], config_dir: str | None = None) -> DictConfig:
    """Compose a configuration with overrides.

    Args:
        name: `train`, whose missing values are left to the caller, or another configuration such as `eval`.
        words: As Hydra reads them.
        config_dir: A folder that is searched as well.

    Raises:
        ConfigError: If they do not fit, with the nearest keys or options.
    """
    if problem := folder_problem(config_dir):
        raise ConfigError(problem)
    extra = search_path(config_dir)
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        try:
            cfg = compose(name, [*words, *extra])
            OmegaConf.to_container(cfg, resolve=True)
            if name != CONFIG_NAME and (problem := explain_missing(OmegaConf.missing_keys(cfg))):
                raise ConfigError(problem)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(explain_file(error, config_dir)) from error
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise ConfigError(explain_override_error(error, known_keys(name, words, extra))) from error
        finally:
            GlobalHydra.instance().clear()
    expand_paths(cfg)
    return cfg


def known_benchmarks(config_dir: str | None = None) -> list[str]:
    """Return the names of all benchmarks that have a file, those of a folder of one's own included."""
    group = files(CONFIG_MODULE) / BENCHMARKS
    names = [each.name for each in group.iterdir()] if group.is_dir() else []
    if config_dir is not None:
        names += [path.name for path in (Path(config_dir) / BENCHMARKS).glob("*.yaml")]
    return sorted({name.removesuffix(".yaml") for name in names if name.endswith(".yaml") and name[0] != "_"})


def named_benchmarks(value: object, known: Sequence[str]) -> list[str]:
    """Return the benchmarks that a list, or one name, asks for.

    Args:
        value: As it was given; `all` is every one.
        known: Those that there are.

    Raises:
        ConfigError: If one is unknown, with the nearest names.
    """
    names = [str(each) for each in value] if isinstance(value, list | tuple) else [str(value)]
    names = list(known) if names == [_ALL] else list(dict.fromkeys(names))
    if not names:
        raise ConfigError("`benchmarks` must name one at least, but got none. Write benchmarks=[gsm8k].")
    for name in names:
        if name not in known:
            near = suggest(name, known)
            advice = f"Did you mean {' or '.join(near)}?" if near else f"Choose from {', '.join(known)}."
            raise ConfigError(f"`benchmarks` must name files of conf/{BENCHMARKS}, but got {name!r}. {advice}")
    return names


def compose_suite(words: Sequence[str], config_dir: str | None = None) -> DictConfig:
    """Compose an evaluation whose `benchmarks=[...]` stand in full below `suite`.

    Raises:
        ConfigError: If a benchmark is unknown or an override does not fit.
    """
    asked = [parse(word) for word in words if word.partition("=")[0] == "benchmarks"]
    if not asked or asked[-1] is None:
        raise ConfigError("`benchmarks` must be a list of names. Write benchmarks=[gsm8k,hotpotqa].")
    names = named_benchmarks(asked[-1].value(), known_benchmarks(config_dir))
    chosen = [f"+{BENCHMARKS}@suite.{name}={name}" for name in names]
    own = [word for word in words if word.partition("=")[0] != "benchmarks"]
    return composed_config(EVAL, [*chosen, f"benchmarks=[{','.join(names)}]", *own], config_dir)
