"""`evaluation.benchmarks=[...]` of a run: benchmarks that are asked while it trains."""

from collections.abc import Sequence
from functools import partial

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from lightning import Callback
from omegaconf import DictConfig, OmegaConf

from aepo_lightning.app.build import build, build_chat_format
from aepo_lightning.app.evaluation.composing import BENCHMARKS, EVAL, compose_suite, named_benchmarks
from aepo_lightning.evaluation.benchmark import Benchmark
from aepo_lightning.evaluation.evaluator import EvaluationChoices
from aepo_lightning.evaluation.in_training import BenchmarkScores


def benchmark_callbacks(cfg: DictConfig) -> list[Callback]:
    """Return what asks the benchmarks of a run; empty if it has none.

    Args:
        cfg: Of the run.

    Raises:
        ConfigError: If a benchmark is unknown or does not fit.
    """
    names = OmegaConf.to_container(cfg.evaluation.benchmarks)
    if not names:
        return []
    return [
        BenchmarkScores(
            _composed(names if isinstance(names, list) else [names]),
            cfg.evaluation.every_n_iterations,
            choices=EvaluationChoices(
                num_samples=cfg.evaluation.benchmark_samples,
                num_questions=cfg.evaluation.benchmark_questions,
                seed=cfg.seed,
                max_concurrent_questions=cfg.data.max_concurrent_questions,
                on_long_prompt="count",
            ),
            chat_format=partial(build_chat_format, cfg),
        )
    ]


def _composed(names: Sequence[object]) -> list[Benchmark]:
    """Compose benchmarks with the search path of the command, where one runs."""
    if not GlobalHydra.instance().is_initialized():
        suite = compose_suite([f"benchmarks=[{','.join(map(str, names))}]"]).suite
        return [build(suite[name]) for name in suite]
    known = [each for each in GlobalHydra.instance().config_loader().get_group_options(BENCHMARKS) if each[0] != "_"]
    chosen = [f"+{BENCHMARKS}@suite.{name}={name}" for name in named_benchmarks(list(names), known)]
    suite = compose(EVAL, [*chosen, "benchmarks=[]"]).suite
    return [build(suite[name]) for name in suite]
