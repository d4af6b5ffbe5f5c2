"""Published numbers of benchmarks, from the configuration in the folder of an evaluation or from this library's."""

from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from aepo_lightning.app.build import build
from aepo_lightning.app.command import CONFIG_MODULE
from aepo_lightning.app.evaluation.folder import CONFIG
from aepo_lightning.app.saved_config import read_config
from aepo_lightning.app.targets import find_targets
from aepo_lightning.evaluation.benchmark import PublishedScore
from aepo_lightning.evaluation.results_file import BenchmarkResults

_GROUP = "benchmark"
ALL = "all"
"""In place of a method: every one."""
_TABLES = tuple(
    f"aepo_lightning.evaluation.benchmark.{name}" for name in ("published_scores", "PublishedScore", "Publication")
)
"""What a table of published numbers is made of. Nothing else is called of a folder that may be somebody else's."""


def saved_suite(folder: Path) -> DictConfig:
    """Return the configurations of benchmarks that the folder of an evaluation keeps, by name; empty without any.

    Raises:
        ConfigError: If the file is there and cannot be read.
    """
    path = folder / CONFIG
    found = read_config(path).get("suite") if path.is_file() else None
    return found if isinstance(found, DictConfig) else OmegaConf.create({})


def published_scores_of(benchmark: str, method: str, suite: DictConfig | None = None) -> Sequence[PublishedScore]:
    """Return what was published of a method on a benchmark.

    Args:
        benchmark: Its name. One that has a configuration in neither place, such as a run's own questions, has nothing.
        method: Such as `AEPO`, in any case; `all` is every method, and an empty text none.
        suite: Configurations of benchmarks, by name, which go before those of `conf/benchmark/`. Numbers that a
            function of the user's own would have to give are left out.
    """
    node = _node(benchmark, suite)
    plain: Any = None
    with suppress(OmegaConfBaseException):  # a reference to what is not there
        plain = None if node is None else OmegaConf.to_container(node, resolve=True).get("published")  # type: ignore[union-attr]
    if not method or not plain or set(find_targets(plain)) - set(_TABLES):
        return ()
    found: Sequence[PublishedScore] = build(plain)
    return tuple(each for each in found if method == ALL or each.method.lower() == method.lower())


def rule_note(run: BenchmarkResults, suite: DictConfig | None = None) -> str:
    """Return that published numbers are a judge's and these are a rule's; empty where that is not so.

    Args:
        run: Results on a benchmark.
        suite: As `published_scores_of` takes it.
    """
    node = _node(run.name, suite)
    judge = None if node is None else node.get("judge")
    if not judge or "template_digest" in run.stamp.checker:  # which a judge has and a rule has not
        return ""
    return f"! {run.name}: these verdicts are a rule's, published numbers are by the judge {judge!r}."


def _node(benchmark: str, suite: DictConfig | None) -> DictConfig | None:
    own = None if suite is None else suite.get(benchmark)
    if isinstance(own, DictConfig):
        return own
    return _composed(benchmark) if (files(CONFIG_MODULE) / _GROUP / f"{benchmark}.yaml").is_file() else None


@cache
def _composed(benchmark: str) -> DictConfig:
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        found: DictConfig = compose(f"{_GROUP}/{benchmark}")[_GROUP]
    return found
