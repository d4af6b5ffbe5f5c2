"""Published numbers of benchmarks, from their configurations."""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import DictConfig

from aepo_lightning.app.command import CONFIG_MODULE
from aepo_lightning.evaluation.benchmark import PublishedScore
from aepo_lightning.evaluation.results_file import BenchmarkResults

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
    found: Sequence[PublishedScore] = instantiate(_composed(benchmark).published, _convert_="all")
    return tuple(each for each in found if method == ALL or each.method.lower() == method.lower())


def judge_note(run: BenchmarkResults) -> str:
    """Return that published numbers are a judge's and these are not; empty where that is not so.

    Args:
        run: Results on a benchmark that has a file in `conf/benchmark/`.
    """
    judge = _composed(run.name).judge
    if not judge or "template_digest" in run.stamp.checker:  # which a judge has and a rule has not
        return ""
    return f"! {run.name}: these verdicts are a rule's, published numbers are by the judge {judge!r}."


@cache
def _composed(benchmark: str) -> DictConfig:
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        found: DictConfig = compose(f"{_GROUP}/{benchmark}")[_GROUP]
    return found
