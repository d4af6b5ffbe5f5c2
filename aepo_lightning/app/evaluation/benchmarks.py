"""`aepo-eval PATH_OR_HUB_ID benchmarks=[...]`: any model or run on benchmarks, one after another."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf, open_dict

from aepo_lightning.app.build import build, build_chat_format, build_tools
from aepo_lightning.app.evaluation.composing import compose_suite
from aepo_lightning.app.evaluation.folder import choose_folder, evaluation_folder, extend_suite
from aepo_lightning.app.evaluation.judges import ChosenCheckers
from aepo_lightning.app.evaluation.run_policy import is_of_run, named_model, policy_of_run, run_of
from aepo_lightning.app.evaluation.saved_tools import save_tools
from aepo_lightning.app.evaluation.show import make_report
from aepo_lightning.app.evaluation.tables import print_tables
from aepo_lightning.app.paths import writing
from aepo_lightning.app.saved_run import load_config
from aepo_lightning.app.threads import set_threads
from aepo_lightning.contracts.checker import AnswerChecker
from aepo_lightning.contracts.engine import Engine
from aepo_lightning.contracts.policy import PolicySource
from aepo_lightning.contracts.tool import ToolRunner
from aepo_lightning.errors import ConfigError
from aepo_lightning.evaluation.benchmark import Benchmark
from aepo_lightning.evaluation.evaluated_policy import EvaluatedPolicy, context_of, evaluated
from aepo_lightning.evaluation.evaluator import EvaluationChoices, Evaluator
from aepo_lightning.evaluation.results import TrajectoryResult
from aepo_lightning.policy.source import PretrainedPolicy

_EMBEDDED = "aepo_lightning.engines.TransformersEngine"


def evaluate_benchmarks(
    source: str,
    words: Sequence[str],
    allowed: Sequence[str] = (),
    config_dir: str | None = None,
    *,
    strict: bool = False,
) -> dict[str, list[TrajectoryResult]]:
    """Evaluate a model on benchmarks; print and keep what comes of it.

    Args:
        source: Folder of a model, of a run or of its checkpoint, or a name of the Hub.
        words: Overrides of `conf/eval.yaml`, `benchmarks=[...]` among them.
        allowed: What the configuration of a run may call beside the parts of this library.
        config_dir: A folder with configuration files of the user's own.
        strict: Refuse scores that are in doubt. They are kept all the same.

    Raises:
        ConfigError: If a setting does not fit, or the folder holds results under other settings.
        DataError: If a model or a benchmark cannot be read; with `strict`, if a score is in doubt.
    """
    cfg = compose_suite(words, config_dir)
    set_threads(cfg.num_threads)
    suite = [each.loaded() for each in build_suite(cfg)]  # what is missing is said before anything is generated
    policy = named_policy(source, cfg, allowed)
    with open_dict(cfg):
        cfg.evaluated = {"source": source}
        settle_context(cfg, suite, policy.source)
    target = choose_folder(cfg.output_dir, cfg.output_root, policy.name)
    found: dict[str, list[TrajectoryResult]] = {}
    checkers = ChosenCheckers(cfg)
    with evaluation_folder(target, cfg):
        extend_suite(target, cfg)
        engine: Engine = build(cfg.engine, policy=policy.source)
        try:
            tools = build_tools(cfg.tools)
            save_tools(target, tools.specs)
            evaluator = build_evaluator(cfg, engine, policy, tools, checkers)
            for benchmark in suite:
                found[benchmark.name] = evaluator.evaluate(benchmark, target)
        finally:
            engine.close()
    report = make_report(target)
    with writing(target):
        report.write(target)
    print_tables(report.tables, [*report.notes, *checkers.work(), f"results  {target}"])
    if strict:
        report.check()
    return found


def build_suite(cfg: DictConfig) -> list[Benchmark]:
    """Build the benchmarks of an evaluation, in the order in which they were named."""
    return [build(cfg.suite[name]) for name in cfg.benchmarks]


def named_policy(source: str, cfg: DictConfig, allowed: Sequence[str] = ()) -> EvaluatedPolicy:
    """Return the policy that a path or a name of the Hub stands for.

    Raises:
        ConfigError: If there is none.
        DataError: If a part of it is missing.
    """
    path = Path(source).expanduser()
    if is_of_run(path):
        folder, checkpoint = run_of(path)
        return policy_of_run(load_config(folder, allowed, ("model", "module.adapter")), folder, checkpoint)
    model = named_model(source, cfg)
    return evaluated(replace(model, dtype=_precision(cfg, model)))


def _precision(cfg: DictConfig, model: PretrainedPolicy) -> str:
    if cfg.model.dtype != "auto":
        return str(cfg.model.dtype)
    if cfg.engine._target_ == _EMBEDDED and not torch.cuda.is_available():
        return "float32"
    return str(getattr(model.config, "dtype", None) or "bfloat16").removeprefix("torch.")


def settle_context(cfg: DictConfig, suite: Sequence[Benchmark], source: PolicySource) -> None:
    """Write down how long a sequence may be, where that was left to protocols and model."""
    if cfg.engine.get("max_model_len") is None:
        asked = max(benchmark.protocol.max_model_len for benchmark in suite)
        cfg.engine.max_model_len = context_of(source, asked)


def build_evaluator(
    cfg: DictConfig,
    engine: Engine,
    policy: EvaluatedPolicy,
    tools: ToolRunner,
    checker: Callable[[Benchmark], AnswerChecker] | None = None,
) -> Evaluator:
    """Build what asks benchmarks of a policy. The engine gets the weights when something is missing."""
    is_ready = False

    def load() -> None:
        nonlocal is_ready
        if not is_ready:
            engine.load_weights(policy.weights(), policy.global_step)
            is_ready = True

    return Evaluator(
        engine=engine,
        tokenizer=policy.source.tokenizer,
        model=policy.identity,
        weights=policy.stamp,
        tools=tools,
        chat_format=partial(build_chat_format, cfg),
        checker=checker or ChosenCheckers(cfg),
        choices=build_choices(cfg),
        before=load,
    )


def build_choices(cfg: DictConfig) -> EvaluationChoices:
    """Build what was chosen beside the protocols."""
    names = ("num_samples", "num_questions", "seed", "max_concurrent_questions", "on_long_prompt")
    sampling = OmegaConf.to_container(cfg.sampling, resolve=True)
    if not isinstance(sampling, dict):
        raise ConfigError(f"`sampling` must be a mapping, but got {sampling!r}. Write +sampling.temperature=1.0.")
    return EvaluationChoices(**{name: cfg[name] for name in names}, sampling={str(k): v for k, v in sampling.items()})
