"""The Hermes format: frames come from the chat template, calls from JSON, and no tool result can steer either."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aepo_lightning.chat_formats.hermes import HermesFormat, function_schema
from aepo_lightning.contracts.chat_format import ChatFormat
from aepo_lightning.contracts.generation import FinishReason
from aepo_lightning.contracts.question import Message
from aepo_lightning.contracts.tool import ToolCall, ToolSpec
from aepo_lightning.errors import ConfigError
from tests.support.chatml import WORDS, chatml_tokenizer

SPEC = ToolSpec(name="search", description="Search.")


TOKENIZER = chatml_tokenizer()
FORMAT = HermesFormat(TOKENIZER, [SPEC])


def call(name="search", **arguments):
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def parse(text):
    return FORMAT.parse_calls(text, FinishReason.EOS)


def test_it_is_a_chat_format():
    assert isinstance(FORMAT, ChatFormat)
    assert FORMAT.stop == ()


def test_the_prompt_lists_the_tools():
    text = TOKENIZER.decode(FORMAT.encode_prompt([Message(role="user", content="hi")]))
    assert json.dumps(function_schema(SPEC)["function"]["name"]) in text
    assert text.endswith("<|im_start|>user\nhi<eos>\n<|im_start|>assistant\n")


def test_turns_and_results_one_after_another_are_what_the_template_writes():
    """The tokens of the whole conversation, piece by piece, are those of the template applied to all of it at once."""
    turn, results = "let me see " + call(query="x") + call(query="y"), ["found x", "found y"]
    pieces = FORMAT.encode_prompt([Message(role="user", content="hi")])
    pieces += TOKENIZER.encode(turn + "<eos>", add_special_tokens=False)
    for ids in FORMAT.encode_results(results):
        pieces += ids
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": turn}]
    chat += [{"role": "tool", "content": text} for text in results]
    tools = [function_schema(SPEC)]
    whole = TOKENIZER.apply_chat_template(chat, tools=tools, add_generation_prompt=True, return_dict=False)
    assert pieces == list(whole)


def test_several_calls_of_a_turn_are_read_in_order():
    found = parse(f"<think>which?</think>{call(query='a')}\n{call('python', code='1')}<eos>")
    assert [(each.tool, each.arguments, each.problem) for each in found] == [
        ("search", {"query": "a"}, ""),
        ("python", {"code": "1"}, ""),
    ]


@pytest.mark.parametrize(
    "text", ["The answer is 4.", "", "<think><tool_call>{}</tool_call></think>done", "</tool_call>"]
)
def test_a_turn_without_calls_ends_the_trajectory(text):
    assert parse(text) == ()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("<tool_call>{broken</tool_call>", "the call is not JSON"),
        ("<tool_call>[1]</tool_call>", 'an object with a "name"'),
        ('<tool_call>{"name": 3}</tool_call>', 'an object with a "name"'),
        ('<tool_call>{"name": "search", "arguments": [1]}</tool_call>', '"arguments" must be an object'),
        ('<tool_call>{"name": "search", "arguments": "{"}</tool_call>', '"arguments" must be an object'),
        ('<tool_call>{"name": "search"', "without </tool_call>"),
        ("<tool_call>" + "[" * 100_000 + "</tool_call>", "the call is not JSON"),
    ],
    ids=["broken", "list", "number", "list-arguments", "broken-arguments", "open", "deep"],
)
def test_a_call_that_cannot_be_read_says_why(text, problem):
    (found,) = parse(text)
    assert problem in found.problem


@pytest.mark.parametrize(
    ("value", "problem"),
    [("1" * 5000, "a number that is too long"), ("[" * 900 + "]" * 900, "nested too deeply")],
    ids=["digits", "depth"],
)
@pytest.mark.parametrize("is_text", [False, True], ids=["arguments", "json_in_json"])
def test_json_that_python_cannot_handle_is_a_malformed_call(value, problem, is_text):
    arguments = f'{{"x": {value}}}'
    body = f'{{"name": "f", "arguments": {json.dumps(arguments) if is_text else arguments}}}'
    (call,) = FORMAT.parse_calls(f"<tool_call>{body}</tool_call>", FinishReason.EOS)
    assert ("must be an object" if is_text else problem) in call.problem


def test_arguments_may_be_nested_as_deeply_as_anybody_writes_them():
    arguments = json.loads('{"x": ' + "[" * 40 + "]" * 40 + "}")
    body = json.dumps({"name": "f", "arguments": arguments})
    (call,) = FORMAT.parse_calls(f"<tool_call>{body}</tool_call>", FinishReason.EOS)
    assert (call.problem, call.arguments) == ("", arguments)


def test_an_open_call_before_a_good_one_hides_nothing():
    found = parse("<tool_call>{" + call(query="a"))
    assert [bool(each.problem) for each in found] == [True, False]


def test_arguments_written_as_a_string_are_read():
    assert parse('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>') == (
        ToolCall(tool="f", text='{"name": "f", "arguments": "{\\"a\\": 1}"}', arguments={"a": 1}),
    )


def control_ids():
    return {TOKENIZER.convert_tokens_to_ids(word) for word in (*WORDS, "<eos>", "<pad>")}


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([*WORDS, "<eos>", "<", ">", "|", "tool_call", "/", "&#60;", "\n"]), max_size=8))
def test_no_result_contains_a_control_token(pieces):
    (quiet,) = FORMAT.encode_results([""])
    (ids,) = FORMAT.encode_results(["".join(pieces)])
    controls = control_ids()
    assert [token for token in ids if token in controls] == [token for token in quiet if token in controls]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.text(max_size=60))
def test_any_text_is_parsed_without_an_error(text):
    for found in parse(f"<tool_call>{text}"):
        assert found.problem or found.tool


def test_a_template_that_hides_tool_messages_is_refused():
    with pytest.raises(ConfigError, match="must write assistant and tool messages once each"):
        HermesFormat(chatml_tokenizer("{% for m in messages if m.role != 'tool' %}{{ m.content }}{% endfor %}"))


def test_special_tags_are_refused():
    tokenizer = chatml_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<tool_call>"]})
    with pytest.raises(ConfigError, match="must not be special tokens"):
        HermesFormat(tokenizer)
