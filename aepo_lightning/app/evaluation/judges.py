"""Who looks at answers: the judge or rule of a configuration, with the benchmark's own rule where it takes one."""

import inspect

from omegaconf import DictConfig

from aepo_lightning.app.build import build
from aepo_lightning.app.user_parts import find_target
from aepo_lightning.contracts.checker import AnswerChecker
from aepo_lightning.errors import ConfigError
from aepo_lightning.evaluation.benchmark import Benchmark


def choose_checker(cfg: DictConfig, benchmark: Benchmark) -> AnswerChecker:
    """Return the configured judge where the benchmark has one, else the benchmark's rule."""
    if cfg.judge is None or not benchmark.judge:
        return benchmark.checker
    return build_judge(cfg.judge, benchmark)


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
