"""Who looks at answers: the judge or rule of a configuration, with the benchmark's own rule where it takes one."""

import inspect

from omegaconf import DictConfig

from aepo_lightning.app.build import build
from aepo_lightning.app.user_parts import find_target
from aepo_lightning.contracts.checker import AnswerChecker
from aepo_lightning.errors import ConfigError
from aepo_lightning.evaluation.benchmark import Benchmark
from aepo_lightning.rewards.judge import JudgeCounts


def choose_checker(cfg: DictConfig, benchmark: Benchmark) -> AnswerChecker:
    """Return the configured judge where the benchmark has one, else the benchmark's rule."""
    if cfg.judge is None or not benchmark.judge:
        return benchmark.checker
    return build_judge(cfg.judge, benchmark)


class ChosenCheckers:
    """Who looks at the answers to each benchmark: chosen once, and asked at the end what it took.

    Args:
        cfg: Of the evaluation; see `choose_checker`.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self._cfg = cfg
        self._chosen: dict[str, AnswerChecker] = {}

    def __call__(self, benchmark: Benchmark) -> AnswerChecker:
        """Return who looks at the answers to a benchmark."""
        if benchmark.name not in self._chosen:
            self._chosen[benchmark.name] = choose_checker(self._cfg, benchmark)
        return self._chosen[benchmark.name]

    def work(self) -> list[str]:
        """Return what judges took so far, a line for each benchmark that has one."""
        return [line for name, checker in self._chosen.items() for line in judge_work(name, checker)]


def judge_work(name: str, checker: AnswerChecker) -> list[str]:
    """Return in a line what a judge took for a benchmark; none for a rule."""
    counts = getattr(checker, "counts", None)
    return [f"{name}: its judge took {describe_work(counts)}."] if isinstance(counts, JudgeCounts) else []


def describe_work(counts: JudgeCounts) -> str:
    """Return calls, tokens and cost in words."""
    cost = "" if counts.cost is None else f", cost {counts.cost:.4g}"
    tokens = f"{counts.prompt_tokens:,} + {counts.completion_tokens:,} tokens"
    return f"{counts.num_calls} calls ({counts.num_kept} verdicts were kept), {tokens}{cost}"


def build_judge(node: DictConfig, benchmark: Benchmark) -> AnswerChecker:
    """Build a judge or a rule. One that takes a `rule`, to be asked first, gets that of the benchmark.

    Raises:
        ConfigError: If it cannot be built, or is nothing that checks answers.
    """
    target = find_target(node.get("_target_"), "judge")
    takes_rule = "rule" in inspect.signature(target).parameters and node.get("rule") is None
    found = build(node, rule=benchmark.checker) if takes_rule else build(node)
    if not isinstance(found, AnswerChecker):
        raise ConfigError(f"`judge` must be an `AnswerChecker`, but its `_target_` gave {found!r:.80}.")
    return found
