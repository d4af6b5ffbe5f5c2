"""`evaluation.benchmarks=[...]` of a run becomes a callback; without it nothing is added."""

import pytest
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra

from aepo_lightning.app.command import CONFIG_MODULE
from aepo_lightning.app.evaluation.training_benchmarks import benchmark_callbacks
from aepo_lightning.errors import ConfigError
from aepo_lightning.evaluation.evaluator import EvaluationChoices
from aepo_lightning.evaluation.in_training import BenchmarkScores
from aepo_lightning.evaluation.stamps import part_settings
from tests.support.benchmarks import Asked, SameWords, write_config
from tests.support.composed import composed


def test_benchmarks_of_a_run_are_asked_with_its_settings():
    assert benchmark_callbacks(composed()) == []
    words = ["evaluation.benchmarks=[gsm8k,bamboogle]", "evaluation.every_n_iterations=7", "seed=5"]
    (found,) = benchmark_callbacks(composed(*words, "evaluation.benchmark_questions=3"))
    assert isinstance(found, BenchmarkScores)
    assert [each.name for each in found._benchmarks] == ["gsm8k", "bamboogle"]
    own = {"num_samples": 1, "num_questions": 3, "seed": 5, "max_concurrent_questions": 512}
    assert (found._every, found._choices) == (7, EvaluationChoices(**own, on_long_prompt="count"))
    with pytest.raises(ConfigError, match=r"but got 'gsm9k'\. Did you mean gsm8k"):
        benchmark_callbacks(composed("evaluation.benchmarks=[gsm9k]"))


def test_benchmarks_of_ones_own_are_found_where_the_command_looks(tmp_path):
    cfg = composed("evaluation.benchmarks=[riddles]")
    places = create_config_search_path(f"pkg://{CONFIG_MODULE}")
    here = f"file://{write_config(tmp_path)}"
    places.prepend("command-line", here, SearchPathQuery(provider="schema"))  # as --config-dir does
    Hydra.create_main_hydra2("train", places)
    try:
        (found,) = benchmark_callbacks(cfg)
    finally:
        GlobalHydra.instance().clear()
    assert [each.name for each in found._benchmarks] == ["riddles"]


async def rule(claim):
    del claim


def test_what_checks_answers_is_named_in_the_same_words_everywhere():
    assert part_settings(rule) == {"part": "tests.app.evaluation.test_training_benchmarks.rule"}
    assert part_settings(SameWords(accepts_empty=True)) == {
        "part": "tests.support.benchmarks.SameWords",
        "accepts_empty": True,
    }
    judge = Asked()
    judge.identity = {"model": "m", "template": "paper"}
    assert part_settings(judge) == {"part": "tests.support.benchmarks.Asked", "model": "m", "template": "paper"}
