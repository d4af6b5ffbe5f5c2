"""Calls in the spellings that models have learnt: they are read, or what is wrong with them is said."""

import json

import pytest

from aepo_lightning.chat_formats.calls import read_calls, unwrapped
from aepo_lightning.chat_formats.hermes import HermesFormat
from aepo_lightning.chat_formats.tags import TagFormat
from aepo_lightning.contracts.generation import FinishReason
from aepo_lightning.contracts.tool import ToolSpec
from aepo_lightning.policy.tokenizers import build_byte_tokenizer
from tests.support.chatml import chatml_tokenizer

SPEC = ToolSpec(
    name="f",
    parameters={"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "string"}}},
    text_parameter="a",
)
GIVEN = {"a": 2, "b": "x"}


def read(value):
    return read_calls(value if isinstance(value, str) else json.dumps(value), {"f": SPEC})


@pytest.mark.parametrize("key", ["arguments", "parameters", "args", "params", "kwargs", "input", "tool_input"])
@pytest.mark.parametrize(
    "write", [dict, json.dumps, lambda value: json.dumps(json.dumps(value))], ids=["object", "text", "twice"]
)
def test_arguments_are_found_under_the_names_that_models_use(key, write):
    (call,) = read({"name": "f", key: write(GIVEN)})
    assert (call.tool, call.arguments, call.problem) == ("f", GIVEN, "")


@pytest.mark.parametrize(
    "written",
    [
        {"function": {"name": "f", "arguments": GIVEN}},
        {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": json.dumps(GIVEN)}},
        {"function_call": {"name": "f", "parameters": GIVEN}},
        {"function": "f", "arguments": GIVEN},
        {"tool": "f", "args": GIVEN},
        {"action": "f", "action_input": GIVEN},
        {"f": GIVEN},
        {"name": "f", "arguments": GIVEN, "thought": "hm"},
        {"name": "f", "arguments": GIVEN, "function": {}},
        [{"name": "f", "arguments": GIVEN}],
        "<function=f>\n<parameter=a>\n2\n</parameter>\n<parameter=b>\nx\n</parameter>\n</function>",
    ],
    ids=str,
)
def test_nested_and_renamed_calls_are_read(written):
    (call,) = read(written)
    assert (call.tool, call.arguments, call.problem) == ("f", GIVEN, "")


def test_a_parameter_that_is_text_stays_text():
    (call,) = read("<function=f><parameter=a>2.5</parameter><parameter=b>2.50</parameter></function>")
    assert call.arguments == {"a": 2.5, "b": "2.50"}


def test_a_list_is_several_calls():
    calls = read([{"name": "f", "arguments": {"a": n}} for n in range(2)])
    assert [(call.tool, call.arguments) for call in calls] == [("f", {"a": 0}), ("f", {"a": 1})]


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ({"name": "f", **GIVEN}, 'arguments must stand inside "arguments", but "a", "b" stand beside the name'),
        ({"name": "f", "arguments": {}, "payload": GIVEN}, '"payload" stand beside'),
        ({"name": "f", "arguments": {"a": 1}, "parameters": {"a": 2}}, "both hold something"),
        ({"name": "f", "arguments": "a=2"}, '"arguments" must be an object'),
        ({"g": GIVEN}, 'an object with a "name"'),
        ({}, 'an object with a "name"'),
        ([], 'an object with a "name"'),
        ("<function=f>a=2</function>", "must be <parameter=...> blocks"),
        ("f(a=2)", "the call is not JSON"),
        ("{'name': 'f', 'arguments': {'a': 2}}", "the call is not JSON"),
    ],
    ids=str,
)
def test_what_cannot_be_read_is_named_and_never_a_call_without_arguments(written, problem):
    (call,) = read(written)
    assert problem in call.problem
    assert call.arguments is None


@pytest.mark.parametrize("nothing", [{}, {"arguments": {}}, {"arguments": None}, {"parameters": ""}])
def test_a_call_without_arguments_is_one_only_if_nothing_was_written(nothing):
    (call,) = read({"name": "f", **nothing})
    assert (call.arguments, call.problem) == ({}, "")


@pytest.mark.parametrize(
    "written",
    [
        GIVEN,
        json.dumps(GIVEN),
        {"name": "f", "arguments": GIVEN},
        {"name": "f", "parameters": json.dumps(GIVEN)},
        {"arguments": GIVEN},
        {"function": {"name": "f", "arguments": GIVEN}},
    ],
    ids=str,
)
def test_a_whole_call_between_tags_is_the_call(written):
    chat_format = TagFormat(build_byte_tokenizer(), [SPEC])
    (call,) = chat_format.parse_calls(f"<f>{json.dumps(written)}</f>", FinishReason.STOP)
    assert (call.arguments, call.problem) == (GIVEN, "")


@pytest.mark.parametrize("own", [{"name": "f", "args": {}}, {"arguments": "x"}, {"a": 1, "arguments": {"a": 2}}])
def test_parameters_that_are_called_so_are_left_alone(own):
    assert unwrapped(own, "f", dict.fromkeys(own)) == own


HERMES = HermesFormat(chatml_tokenizer(), [SPEC])


@pytest.mark.parametrize(
    "written",
    [
        '{"name": "f", "parameters": {"a": 2, "b": "x"}}',
        ' [{"name": "f", "arguments": {"a": 2, "b": "x"}}]\n',
        '<think> so </think> {"type": "function", "function": {"name": "f", "arguments": {"a": 2, "b": "x"}}}',
    ],
)
def test_a_turn_that_is_a_call_and_nothing_else_is_read_without_tags(written):
    (call,) = HERMES.parse_calls(written, FinishReason.EOS)
    assert (call.tool, call.arguments, call.problem) == ("f", GIVEN, "")


@pytest.mark.parametrize(
    "written",
    [
        '<|tool_call>call:f{b:<|"|>x<|"|>}<tool_call|>',
        '[TOOL_CALLS][{"name": "f", "arguments": {"a": 2}}]',
        'I look. <function=f>{"a": 2}</function>',
        "<|python_tag|>f.call(a=2)",
        '<function_calls><invoke name="f"></invoke></function_calls>',
        "<\uff5ctool\u2581calls\u2581begin\uff5c>f",
    ],
)
def test_a_call_in_the_marks_of_another_model_is_a_problem_with_a_name(written):
    (call,) = HERMES.parse_calls(written, FinishReason.EOS)
    assert "begins no call here" in call.problem
    assert call.arguments is None


@pytest.mark.parametrize(
    "written",
    [
        "<answer> f takes [TOOL_CALLS] </answer>",
        "<think> <function=f> </think> I know it.",
        '{"name": "g", "arguments": {}}',
        "[1, 2]",
        "{broken",
        "",
    ],
)
def test_what_is_no_call_ends_the_turn(written):
    assert HERMES.parse_calls(written, FinishReason.EOS) == ()
