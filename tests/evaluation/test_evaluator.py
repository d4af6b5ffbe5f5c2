"""A policy is asked a benchmark under its protocol: once, in order, and never under two settings in one folder."""

import logging
from dataclasses import replace

import pytest

from aepo_lightning.chat_formats import TagFormat
from aepo_lightning.contracts.generation import WeightsStamp
from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.evaluation.evaluator import EvaluationChoices, Evaluator
from aepo_lightning.evaluation.results_file import read_evaluation
from aepo_lightning.evaluation.summary import summarise
from aepo_lightning.rewards.checkers import TokenF1
from aepo_lightning.tools import DocumentSearch, ToolRuntime, tool
from tests.support.benchmarks import Asked, Counted, Riddles, protocol, riddles
from tests.support.builders import ScriptedEngine, Turn
from tests.support.evaluated import make_stamp
from tests.support.training import small_policy

POLICY = small_policy()


@tool
def compute(text: str) -> str:
    """Compute."""
    return text


def answer(text, params):
    return Turn(text="<answer> \\boxed{ e1 } </answer>", ends=True)


class HalfEngine(ScriptedEngine):
    dtype = "bfloat16"


def make_evaluator(**changes):
    usual = {
        "engine": ScriptedEngine(answer, tokenizer=POLICY.tokenizer),
        "tokenizer": POLICY.tokenizer,
        "model": {"name": "small"},
        "weights": WeightsStamp(version=0, digest="w"),
        "tools": ToolRuntime(tools=(DocumentSearch(), compute)),
        "chat_format": lambda tokenizer, specs: TagFormat(tokenizer, tuple(spec.name for spec in specs)),
        "is_shown": False,
    }
    return Evaluator(**(usual | changes))


def choices(**changes):
    return EvaluationChoices(**changes)


def test_each_sample_of_each_question_has_a_result_in_order_and_with_its_level():
    found = make_evaluator().evaluate(riddles())
    questions = Riddles().read("riddles").questions
    assert [each.pair for each in found] == [(one.question_id, i) for one in questions for i in range(2)]
    assert [each.level for each in found] == ["easy", "easy", "hard", "hard", "easy", "easy"]
    assert {each.answer for each in found} == {"e1"}
    assert [each.verdict.is_correct for each in found[::2]] == ["e1" in each.answers for each in questions]


def test_the_same_evaluation_again_generates_nothing_and_does_not_load_weights(tmp_path):
    loads = []
    first = make_evaluator(before=lambda: loads.append(1)).evaluate(riddles(), tmp_path)
    again = make_evaluator(before=lambda: loads.append(1))
    assert again.evaluate(riddles(), tmp_path) == first
    assert (again.engine.requests, loads) == ([], [1])
    (kept,) = read_evaluation(tmp_path)
    assert (kept.name, kept.stamp.num_questions, kept.stamp.num_samples, kept.stamp.metric) == (
        "riddles",
        3,
        2,
        "accuracy",
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"choices": choices(seed=1)}, "seed: 0 -> 1"),
        ({"choices": choices(num_samples=3)}, "num_samples: 2 -> 3"),
        ({"choices": choices(num_questions=2)}, "num_questions: 3 -> 2"),
        ({"choices": choices(sampling={"temperature": 0.5})}, "sampling.temperature: 1.0 -> 0.5"),
        ({"model": {"name": "other"}}, "model.name: small -> other"),
        ({"checker": lambda _: Asked()}, "checker.part: .*SameWords -> .*Asked"),
        ({"tools": ToolRuntime(tools=())}, r"tools.search: .* -> \(not there\)"),
        ({"engine": ScriptedEngine(answer, 300, POLICY.tokenizer)}, "sampling.max_model_len: 400 -> 300"),
        ({"engine": HalfEngine(answer, tokenizer=POLICY.tokenizer)}, r"model.dtype: \(not there\) -> bfloat16"),
    ],
    ids=["seed", "samples", "questions", "temperature", "model", "checker", "tools", "context", "dtype"],
)
def test_two_settings_never_mix_in_one_folder(changes, message, tmp_path):
    make_evaluator().evaluate(riddles(), tmp_path)
    with pytest.raises(ConfigError, match=rf"these differ:\n(.*\n)*  {message}"):
        make_evaluator(**changes).evaluate(riddles(), tmp_path)


def test_another_benchmark_of_the_same_folder_is_asked_of_the_same_model(tmp_path):
    make_evaluator().evaluate(riddles(), tmp_path)
    other = riddles(name="others")
    with pytest.raises(ConfigError, match=r"riddles.jsonl differs:\n  model.name: small -> other\n"):
        make_evaluator(model={"name": "other"}).evaluate(other, tmp_path)
    make_evaluator().evaluate(other, tmp_path)
    assert [each.name for each in read_evaluation(tmp_path)] == ["others", "riddles"]


def test_questions_are_read_once_and_the_checker_is_built_once(tmp_path):
    source, built = Counted(), []
    evaluator = make_evaluator(checker=lambda benchmark: built.append(benchmark.name) or benchmark.checker)
    found = evaluator.evaluate(riddles(source=source), tmp_path)
    assert (len(found), source.reads, built) == (6, ["riddles"], ["riddles"])


def test_the_scores_of_further_rules_stand_beside_each_verdict():
    assert all(
        each.scores == dict.fromkeys(("em", "f1", "acc"), float(each.golds == ("e1",)))
        for each in make_evaluator().evaluate(riddles())
    )


def test_a_benchmark_gets_the_tools_of_its_protocol_and_a_missing_one_is_said(caplog):
    evaluator = make_evaluator()
    assert evaluator.parts(riddles()).tools.tool_names == ("search",)
    assert evaluator.parts(riddles(protocol=protocol(prompt="base"))).tools.tool_names == ()
    with caplog.at_level(logging.WARNING):
        evaluator.evaluate(riddles(protocol=protocol(prompt="code_search")))
    assert "riddles offers search and python, but python is not there" in caplog.text


class WithChoices(Riddles):
    def read(self, name):
        found = super().read(name)
        questions = [replace(each, metadata={**each.metadata, "choices": "Paris"}) for each in found.questions]
        return replace(found, questions=tuple(questions))


class WithoutGold(Riddles):
    def read(self, name):
        found = super().read(name)
        return replace(found, questions=tuple(replace(each, answers=()) for each in found.questions))


def test_choices_that_are_no_list_are_refused_before_anything_is_generated():
    with pytest.raises(DataError, match=r"`choices` of question '.+' must be a list of texts"):
        make_evaluator().evaluate(riddles(source=WithChoices()))


class Repeated(Riddles):
    def read(self, name):
        found = super().read(name)
        return replace(found, questions=found.questions + found.questions[:1])


def test_ids_that_come_twice_are_refused_before_anything_is_generated(tmp_path):
    evaluator = make_evaluator()
    with pytest.raises(DataError, match=r"The id of a question of riddles must be its own, but '.+' stands for 2"):
        evaluator.evaluate(riddles(source=Repeated()), tmp_path)
    assert (evaluator.engine.requests, list(tmp_path.iterdir())) == ([], [])


def test_questions_without_an_accepted_answer_are_counted_as_unscored():
    found = make_evaluator(checker=lambda _: TokenF1()).evaluate(riddles(source=WithoutGold()))
    assert {str(each.verdict.outcome) for each in found} == {"unscored"}
    assert summarise(make_stamp(num_samples=2), found).score.value is None


def test_a_prompt_that_leaves_no_room_is_an_error_or_counts_as_cut_off(caplog):
    engine = ScriptedEngine(answer, 3, POLICY.tokenizer)
    with pytest.raises(DataError, match=r"within 3 tokens, but 3 of 3 do not, such as .*on_long_prompt=count"):
        make_evaluator(engine=engine).evaluate(riddles())
    with caplog.at_level(logging.WARNING):
        found = make_evaluator(engine=engine, choices=choices(on_long_prompt="count")).evaluate(riddles())
    assert {str(each.stop_reason) for each in found} == {"length"}
    assert "They count as cut off" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_samples": 0}, "`num_samples` must be at least 1"),
        ({"num_questions": 0}, "`num_questions` must be at least 1"),
        ({"on_long_prompt": "drop"}, "`on_long_prompt` must be 'error' or 'count'"),
    ],
)
def test_choices_without_meaning_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        choices(**changes)


def test_settings_that_do_not_fit_a_benchmark_are_named():
    with pytest.raises(ConfigError, match=r"`sampling` must have fields .* but got \['heat'\]"):
        make_evaluator(choices=choices(sampling={"heat": 1})).evaluate(riddles())
    with pytest.raises(DataError, match=r"riddles must have a question"):
        make_evaluator().evaluate(riddles(source=Riddles(num_questions=0)))


def test_ranks_share_the_questions():
    shares = [make_evaluator(choices=choices(share=(rank, 2))).evaluate(riddles()) for rank in range(2)]
    whole = make_evaluator().evaluate(riddles())
    assert [len(each) for each in shares] == [4, 2]
    assert sorted(each.pair for share in shares for each in share) == sorted(each.pair for each in whole)


def test_another_checker_looks_at_the_answers():
    judge = Asked()
    found = make_evaluator(checker=lambda _: judge).evaluate(riddles())
    assert len(judge.claims) == len(found)
    assert all(each.verdict.is_correct for each in found)
