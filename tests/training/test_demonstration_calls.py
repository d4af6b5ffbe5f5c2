"""The calls of demonstrations must be those that the rollouts read."""

from types import SimpleNamespace

import pytest

from aepo_lightning.chat_formats import HermesFormat, TagFormat
from aepo_lightning.contracts.generation import FinishReason
from aepo_lightning.contracts.question import Demonstration, DemonstrationTurn, Message, Question, SegmentSource
from aepo_lightning.errors import ConfigError
from aepo_lightning.tasks import DeepSearchTask
from aepo_lightning.training.demonstrations import DemonstrationDataModule, check_calls
from tests.support.chatml import chatml_tokenizer
from tests.support.deep_search_parts import small_world, tools_of
from tests.support.training import TASK

SEARCH = tools_of(small_world())[0]
FORMATS = {"tags": TagFormat, "hermes": HermesFormat}
QUESTION = Question(question_id="q", messages=(Message(role="user", content="find"),), answers=("x",))


def chat_format_of(style):
    return FORMATS[style](chatml_tokenizer(), [SEARCH.spec], system_prompt="none")


def datamodule_of(style, written):
    task = DeepSearchTask(world=small_world(), search=SEARCH, depth="snippet", call_style=written)
    data = DemonstrationDataModule(task, chat_format_of(style), chatml_tokenizer(), batch_size=2)
    data.trainer = SimpleNamespace(world_size=1, global_rank=0)
    return data


def shown(*turns):
    sources = {"policy": SegmentSource.POLICY, "tool": SegmentSource.TOOL}
    made = [DemonstrationTurn(source=sources[source], text=text) for source, text in turns]
    return Demonstration(question=QUESTION, turns=tuple(made))


@pytest.mark.parametrize("style", FORMATS)
def test_demonstrations_of_deep_search_are_read_as_they_are_meant(style):
    task = DeepSearchTask(world=small_world(), search=SEARCH, depth="snippet", call_style=style)
    chat_format = chat_format_of(style)
    for index in range(10):
        plan = task._drawn("demonstration", index).plan
        turns = task.demonstration(index).turns
        calls = [chat_format.parse_calls(turn.text, FinishReason.STOP) for turn in turns[:-1:2]]
        assert all(len(each) == 1 and not each[0].problem for each in calls)
        said = [(each[0].tool, (each[0].arguments or {"query": each[0].text})["query"]) for each in calls]
        assert said == [(step.tool, step.argument) for step in plan]
    assert datamodule_of(style, style).step(0).num_tokens > 0


@pytest.mark.parametrize("style, written", [("tags", "hermes"), ("hermes", "tags")])
def test_calls_in_another_format_are_refused_before_the_first_step(style, written):
    with pytest.raises(ConfigError, match=r"must write calls as (Tag|Hermes)Format reads them, but got"):
        datamodule_of(style, written).step(0)


def test_malformed_calls_and_demonstrations_without_calls_may_be_shown():
    call = '<tool_call>\n{"name": "search", "arguments": {"query": "x"}}\n</tool_call>'
    spoilt = shown(("policy", "<tool_call> x"), ("tool", "Malformed call."), ("policy", call), ("tool", "1"))
    check_calls([spoilt], chat_format_of("hermes"))
    check_calls([shown(("policy", "no call"))], chat_format_of("tags"))
    check_calls([], chat_format_of("tags"))
    with pytest.raises(ConfigError, match="but got '<tool_call> x' before a result"):
        check_calls([shown(*[("policy", "<tool_call> x"), ("tool", "Malformed call.")])], chat_format_of("hermes"))


def test_the_demonstrations_of_the_main_job_are_read():
    check_calls([TASK.demonstration(0)], TagFormat(chatml_tokenizer(), ("search",)))
