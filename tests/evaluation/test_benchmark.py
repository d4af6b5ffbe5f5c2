"""Benchmarks as data: what fits together, and what a checker is shown of a question."""

import pytest

from aepo_lightning.chat_formats.instructions import tag_instructions
from aepo_lightning.contracts.checker import AnswerChecker, Claim, Verdict
from aepo_lightning.contracts.question import Message, Question
from aepo_lightning.contracts.tool import ToolSpec
from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.evaluation.benchmark import (
    Benchmark,
    BenchmarkQuestions,
    BenchmarkSource,
    Publication,
    PublishedScore,
    published_scores,
)
from aepo_lightning.evaluation.protocol import PROMPT_TOOLS, EvaluationProtocol
from aepo_lightning.evaluation.task_questions import TaskQuestions


class NoQuestions:
    def read(self, name):
        return BenchmarkQuestions(questions=(), origin=name)


class AlwaysRight:
    async def __call__(self, claim):
        assert claim.golds
        return Verdict(score=1.0, is_correct=True)


def make(**others):
    return Benchmark(name="tiny", title="Tiny", source=NoQuestions(), checker=AlwaysRight(), **others)


def test_the_parts_satisfy_their_protocols():
    assert isinstance(NoQuestions(), BenchmarkSource)
    assert isinstance(AlwaysRight(), AnswerChecker)
    assert make().questions().origin == "tiny"


class Sized:
    def __init__(self, size):
        self.size = size

    def num_questions(self, _):
        return self.size

    def question(self, _, index):
        return Question(question_id=f"q{index}", messages=(Message(role="user", content="?"),), answers=("a",))


@pytest.mark.parametrize(("size", "asked"), [(0, "no val questions"), (2, 2), (9, 3)])
def test_a_task_is_asked_as_many_questions_as_were_chosen_where_it_has_them(size, asked):
    source = TaskQuestions(task=Sized(size), num_questions=3)
    if isinstance(asked, int):
        assert len(source.read("own").questions) == asked
    else:
        with pytest.raises(DataError, match=asked):
            source.read("own")


def test_published_numbers_must_be_of_a_level_that_is_there():
    score = PublishedScore(method="AEPO", model="Qwen3-14B", value=1.0, source="paper", level="4")
    with pytest.raises(ConfigError, match=r"`published` of tiny must name levels among \['1', '2'\], but got '4'"):
        make(levels=["1", "2"], published=[score])


@pytest.mark.parametrize(
    "build, told",
    [
        (lambda: make(metric="bleu"), "`metric` must be one of accuracy, f1, but got 'bleu'"),
        (lambda: EvaluationProtocol(prompt="poem"), "`prompt` must be one of code_search, .*, but got 'poem'"),
        (lambda: EvaluationProtocol(extraction="last"), "`extraction` must be one of paper, .*, but got 'last'"),
        (lambda: EvaluationProtocol(num_samples=0), "`num_samples` must be at least 1, but got 0"),
    ],
)
def test_what_has_no_meaning_is_refused(build, told, without_type_checks):
    with pytest.raises(ConfigError, match=told):
        build()


def test_published_numbers_are_rows_of_a_table_with_their_source():
    sources = {"paper": Publication(source="A paper, table 1", note="other tools")}
    (found,) = published_scores([["AEPO", "Qwen3-14B", "pass@5", "", 65, "paper"]], sources)
    assert found == PublishedScore(
        method="AEPO", model="Qwen3-14B", value=65.0, source="A paper, table 1", metric="pass@5", note="other tools"
    )


@pytest.mark.parametrize(
    "row",
    [["AEPO", "m", "pass@1", "", 1.0], ["AEPO", "m", "pass@1", "", "1", "paper"], ["AEPO", "m", "f1", "", 1.0, "p"]],
    ids=["short", "no number", "unknown source"],
)
def test_a_row_of_another_shape_is_refused(row):
    with pytest.raises(ConfigError, match=r"`published` must have rows \[method, .*a source among \['paper'\]"):
        published_scores([row], {"paper": Publication(source="s")})


def test_each_prompt_offers_its_tools():
    assert {name: EvaluationProtocol(prompt=name).tools for name in PROMPT_TOOLS} == {
        "code_search": ("search", "python"),
        "search": ("search",),
        "math": ("python",),
        "base": (),
    }


@pytest.mark.parametrize("prompt", PROMPT_TOOLS)
def test_each_prompt_tells_of_its_tools_alone_and_of_the_answer(prompt):
    tools = EvaluationProtocol(prompt=prompt).tools
    told = tag_instructions([ToolSpec(name=name, description=f"What {name} does.") for name in tools], str)
    assert [name for name in ("search", "python", "browse") if f"<{name}>" in told] == list(tools)
    assert all(tag in told for tag in ("<think>", "<answer>", "\\boxed{"))


def test_a_checker_sees_what_the_user_asked_and_not_what_the_system_said():
    messages = (Message(role="system", content="Use tools."), Message(role="user", content="2 + 2?"))
    question = Question(question_id="q", messages=messages, answers=("4", "four"), metadata={"choices": ["3", "4"]})
    claim = Claim(question="2 + 2?", golds=("4", "four"), answer="4", question_id="q", choices=("3", "4"))
    assert Claim.of(question, "4") == claim
