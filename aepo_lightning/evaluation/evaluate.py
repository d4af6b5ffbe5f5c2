"""An evaluation in a few lines of Python."""

from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

from aepo_lightning.contracts.checker import AnswerChecker
from aepo_lightning.contracts.engine import Engine
from aepo_lightning.contracts.policy import PolicySource
from aepo_lightning.contracts.tool import Tool, ToolRunner
from aepo_lightning.engines.transformers.engine import TransformersEngine
from aepo_lightning.evaluation.benchmark import Benchmark
from aepo_lightning.evaluation.evaluated_policy import context_of, evaluated
from aepo_lightning.evaluation.evaluator import EvaluationChoices, Evaluator
from aepo_lightning.evaluation.results import TrajectoryResult
from aepo_lightning.policy.source import PretrainedPolicy
from aepo_lightning.tools import ToolRuntime


def evaluate(
    policy: PolicySource | str,
    benchmark: Benchmark,
    *,
    engine: Engine | None = None,
    tools: ToolRunner | Sequence[Tool | Callable[..., Any]] = (),
    checker: AnswerChecker | None = None,
    choices: EvaluationChoices | None = None,
    folder: str | Path | None = None,
) -> list[TrajectoryResult]:
    """Ask a policy a benchmark's questions; return a result for each sample of each question, in this order.

    Args:
        policy: A policy, the folder of a model, or its name on the Hub.
        benchmark: What is asked, under which protocol, and the rule that looks at the answers.
        engine: What generates, built around the policy. Default: the embedded engine, on the GPU where there is one.
        tools: What may be called; a benchmark gets those that its protocol names.
        checker: Who looks at the answers instead of the rule, such as a judge.
        choices: Samples, questions, sampling and seed, where they are not the protocol's.
        folder: Where results and journal are kept, as those of `aepo-eval`: an evaluation that was cut off goes on
            there. None keeps them in memory.

    Raises:
        ConfigError: If the parts do not fit together, or the folder holds results under other settings.
        DataError: If the policy or the questions cannot be read, or a prompt does not fit.
    """
    source = PretrainedPolicy(policy) if isinstance(policy, str) else policy
    found = evaluated(source)
    with nullcontext(engine) if engine is not None else closing(_embedded(source, benchmark)) as own:
        evaluator = Evaluator(
            engine=own,
            tokenizer=source.tokenizer,
            model=found.identity,
            weights=found.stamp,
            tools=tools if isinstance(tools, ToolRunner) else ToolRuntime(tools=tuple(tools)),
            checker=lambda each: checker or each.checker,
            choices=choices or EvaluationChoices(),
            before=lambda: own.load_weights(found.weights(), found.global_step),
        )
        return evaluator.evaluate(benchmark, None if folder is None else Path(folder))


def _embedded(source: PolicySource, benchmark: Benchmark) -> TransformersEngine:
    length = context_of(source, benchmark.protocol.max_model_len)
    return TransformersEngine(source, max_model_len=length, device="auto")
