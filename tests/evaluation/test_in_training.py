"""Benchmarks in training: asked when it is time, logged by name, kept below the run, and neutral to what is trained."""

import pytest
import torch

from aepo_lightning.contracts.checker import Verdict
from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.evaluation.evaluator import EvaluationChoices
from aepo_lightning.evaluation.in_training import AskableRollouts, BenchmarkScores, is_due, scores
from aepo_lightning.evaluation.results_file import read_evaluation
from tests.support.benchmarks import Counted, Riddles, protocol, riddles
from tests.support.evaluated import make_result, make_results
from tests.support.training import make_datamodule, make_module, make_run, make_trainer, small_policy


def test_scores_are_means_over_questions_of_what_was_scored():
    found = scores(riddles(), make_results("11", "10", "0?", "??"))
    # Questions: 1, 1/2, 0 of one scored sample; the last has none. pass@1 alone: the third has one sample.
    assert found == pytest.approx(
        {
            "benchmark/riddles/score": 0.5,
            "benchmark/riddles/pass@1": 0.5,
            "benchmark/riddles/unscored_fraction": 3 / 8,
            "benchmark/riddles/num_tool_calls": 0.0,
            "benchmark/riddles/num_generated_tokens": 0.0,
        }
    )
    assert scores(riddles(), make_results("11", "10", "00"))["benchmark/riddles/pass@2"] == pytest.approx(2 / 3)
    nothing = scores(riddles(), make_results("?"))
    assert nothing["benchmark/riddles/unscored_fraction"] == 1.0
    assert "benchmark/riddles/score" not in nothing


@pytest.mark.parametrize(("metric", "score"), [("accuracy", 0.5), ("f1", 0.75)])
def test_a_score_is_that_of_the_metric_as_in_the_report(metric, score):
    found = scores(riddles(metric=metric), [make_result("a"), make_result("b", verdict=Verdict(score=0.5))])
    assert (found["benchmark/riddles/score"], found["benchmark/riddles/pass@1"]) == (score, 0.5)


@pytest.mark.parametrize(("every", "names"), [(0, 1), (1, 2)], ids=["never", "twice"])
def test_what_cannot_be_logged_is_refused(every, names):
    with pytest.raises(ConfigError, match=r"must be at least 1 and `benchmarks` have distinct names"):
        BenchmarkScores([riddles()] * names, every)


def test_data_that_cannot_be_asked_are_refused_before_training(tmp_path):
    with pytest.raises(
        ConfigError, match=r"must be a `RolloutDataModule` for benchmarks in training, but got NoneType"
    ):
        BenchmarkScores([riddles()]).on_fit_start(make_trainer(tmp_path), make_module())
    assert isinstance(make_datamodule(small_policy()), AskableRollouts)


def test_benchmarks_are_asked_every_so_often_and_after_the_last_iteration():
    assert [iteration for iteration in range(1, 8) if is_due(iteration, 3, 7)] == [3, 6, 7]
    assert [iteration for iteration in range(1, 8) if is_due(iteration, 3, -1)] == [3, 6]


def test_a_prompt_that_does_not_fit_ends_the_run_before_it_is_trained(tmp_path):
    asked = riddles(source=Riddles(words="e1 " * 80))
    run = make_run(tmp_path, callbacks=[BenchmarkScores([asked])])
    with pytest.raises(DataError, match=r"A prompt of riddles must leave room"):
        run.fit()
    assert run.trainer.global_step == 0


def asked_run(folder, max_epochs, **changes):
    benchmark = riddles(**changes, protocol=protocol(num_samples=1))
    callback = BenchmarkScores([benchmark], choices=EvaluationChoices(num_questions=2), every_n_iterations=1)
    return make_run(folder, max_epochs=max_epochs, callbacks=[callback]).fit()


def test_what_was_asked_is_logged_and_kept_below_the_run(tmp_path):
    run = asked_run(tmp_path, 1, source=(source := Counted()))
    (values,) = [values for _, values in run.logger.rows if "benchmark/riddles/score" in values]
    assert values["benchmark/riddles/unscored_fraction"] == 0.0
    (kept,) = read_evaluation(tmp_path / "benchmarks" / "00001")
    assert len(kept.results) == 2
    assert source.reads == ["riddles"]
    assert kept.stamp.model["global_step"] == run.trainer.global_step


@pytest.mark.slow
def test_benchmarks_change_nothing_of_what_is_trained(tmp_path):
    plain = make_run(tmp_path / "plain", max_epochs=2).fit()
    asked = asked_run(tmp_path / "asked", 2)
    assert all(map(torch.equal, plain.network.parameters(), asked.network.parameters()))
    assert sorted(path.name for path in (tmp_path / "asked" / "benchmarks").iterdir()) == ["00001", "00002"]
