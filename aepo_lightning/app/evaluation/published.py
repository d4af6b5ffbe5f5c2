"""Published numbers of benchmarks, from their configurations."""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from aepo_lightning.app.command import CONFIG_MODULE
from aepo_lightning.evaluation.benchmark import PublishedScore

_GROUP = "benchmark"
ALL = "all"
"""In place of a method: every one."""


def published_scores_of(benchmark: str, method: str) -> Sequence[PublishedScore]:
    """Return what was published of a method on a benchmark.

    Args:
        benchmark: Its name. One without a file in `conf/benchmark/`, such as a run's own questions, has nothing.
        method: Such as `AEPO`, in any case; `all` is every method, and an empty text none.
    """
    if not method or not (files(CONFIG_MODULE) / _GROUP / f"{benchmark}.yaml").is_file():
        return ()
    return tuple(each for each in _read(benchmark) if method == ALL or each.method.lower() == method.lower())


@cache
def _read(benchmark: str) -> Sequence[PublishedScore]:
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        cfg = compose(f"{_GROUP}/{benchmark}")
    found: Sequence[PublishedScore] = instantiate(cfg[_GROUP].published, _convert_="all")
    return found
