"""One row as a conversation, in the spellings that are published, and why a row is none."""

import pytest

from aepo_lightning.tasks.conversations import ChatMessage, Fault, UnusableRowError, WrittenCall, read_conversation

CALL = WrittenCall(name="search", arguments={"query": "x"})
ASKED = ChatMessage(role="user", text="q")
RESULT = ChatMessage(role="tool", text="r")
DONE = ChatMessage(role="assistant", text="a")
CALLING = ChatMessage(role="assistant", text="", calls=(CALL,))


def messages(*pairs):
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


def sharegpt(*pairs, **beside):
    return {"conversations": [{"from": role, "value": content} for role, content in pairs], **beside}


def calling(arguments, **message):
    call = {"id": "c1", "type": "function", "function": {"name": "search", "arguments": arguments}}
    return {"messages": [{"role": "assistant", "content": None, "tool_calls": [call], **message}]}


SPELLINGS = {
    "openai": (messages(("user", "q"), ("assistant", "a")), (ASKED, DONE)),
    "openai parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}]},
        (ASKED,),
    ),
    "sharegpt": (
        sharegpt(
            ("human", "q"),
            ("function_call", '{"name": "search", "arguments": {"query": "x"}}'),
            ("observation", "r"),
            ("gpt", "a"),
        ),
        (ASKED, CALLING, RESULT, DONE),
    ),
    "swift": (
        messages(
            ("user", "q"),
            ("tool_call", '{"name": "search", "arguments": "{\\"query\\": \\"x\\"}"}'),
            ("tool_response", "r"),
            ("assistant", "a"),
        ),
        (ASKED, CALLING, RESULT, DONE),
    ),
    "calls in a row": (
        sharegpt(
            ("human", "q"), ("gpt", "t"), *[("function_call", '{"name": "search", "arguments": {"query": "x"}}')] * 2
        ),
        (ASKED, ChatMessage(role="assistant", text="t", calls=(CALL, CALL))),
    ),
    "list of calls": (
        sharegpt(("function_call", '[{"name": "search", "arguments": {"query": "x"}}, {"name": "f"}]')),
        (ChatMessage(role="assistant", text="", calls=(CALL, WrittenCall(name="f", arguments={}))),),
    ),
    "system beside": (sharegpt(("human", "q"), system="s"), (ChatMessage(role="system", text="s"), ASKED)),
    "system in it": (
        {**messages(("developer", "own"), ("user", "q")), "system": "other"},
        (ChatMessage(role="system", text="own"), ASKED),
    ),
    "instruction": ({"instruction": "q", "input": "", "output": "a"}, (ASKED, DONE)),
    "thoughts": (
        {"messages": [{"role": "assistant", "content": "a", "reasoning_content": " t\n"}]},
        (ChatMessage(role="assistant", text="<think>\nt\n</think>\n\na"),),
    ),
}


@pytest.mark.parametrize(("row", "expected"), SPELLINGS.values(), ids=SPELLINGS)
def test_every_spelling_is_read(row, expected):
    assert read_conversation(row) == expected


@pytest.mark.parametrize("arguments", ['{"query": "x"}', {"query": "x"}, {"query": "x", "of_others": None}])
def test_arguments_may_be_text_or_an_object(arguments):
    [message] = read_conversation(calling(arguments))
    assert message.calls == (WrittenCall(name="search", arguments={"query": "x"}, call_id="c1"),)


def test_a_field_can_be_named():
    assert read_conversation({"messages": [], "chat": [{"role": "user", "content": "q"}]}, "chat") == (ASKED,)


FAULTS = {
    "no list": ({"text": "q"}, Fault.NO_MESSAGES),
    "empty list": ({"messages": []}, Fault.NO_MESSAGES),
    "other type": ({"messages": "q"}, Fault.NO_MESSAGES),
    "role": (messages(("narrator", "x")), Fault.UNKNOWN_ROLE),
    "no role": ({"messages": [{"content": "x"}]}, Fault.UNKNOWN_ROLE),
    "no object": ({"messages": ["q"]}, Fault.UNKNOWN_ROLE),
    "number": (messages(("user", 3)), Fault.NOT_TEXT),
    "nothing": (messages(("assistant", None)), Fault.NOT_TEXT),
    "picture": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, Fault.NOT_TEXT),
    "half a pair": (messages(("user", "\ud83d")), Fault.NOT_TEXT),
    "call without name": (sharegpt(("function_call", '{"arguments": {}}')), Fault.BROKEN_CALL),
    "call as prose": (sharegpt(("function_call", "search for x")), Fault.BROKEN_CALL),
    "broken arguments": (calling('{"query": '), Fault.BROKEN_CALL),
    "arguments as list": (calling("[1]"), Fault.BROKEN_CALL),
    "calls as text": (calling("{}", tool_calls="search"), Fault.BROKEN_CALL),
}


@pytest.mark.parametrize(("row", "fault"), FAULTS.values(), ids=FAULTS)
def test_what_cannot_be_read_is_told_by_its_reason(row, fault):
    with pytest.raises(UnusableRowError, match=f"^{fault}"):
        read_conversation(row)
