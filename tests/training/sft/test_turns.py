"""Conversations as demonstrations: which turns there are, how calls are written, and what no rollout looks like."""

import pytest

from aepo_lightning.tasks.conversations import Fault, UnusableRowError
from tests.support.chatml import CHATML
from tests.support.conversations import CALL, hermes, row_of, shown, sources_and_texts, tags

USER = ("user", "q")


@pytest.fixture(scope="module")
def formats():
    return {"tags": tags()[1], "hermes": hermes()[1]}


def structured(*names, **message):
    calls = [{"id": name, "function": {"name": "search", "arguments": {"query": name}}} for name in names]
    return {"role": "assistant", "content": "", "tool_calls": calls, **message}


def test_results_in_an_assistants_text_are_turns_of_tools(formats):
    text = "<think>t</think><search> x </search>\n<result>\nr1\n\nr2\n</result>\n<think>u</think> <answer>a</answer>"
    [found] = shown(row_of(("system", "s"), USER, ("assistant", text)), formats["tags"])
    assert [(each.role, each.content) for each in found.question.messages] == [("system", "s"), USER]
    assert sources_and_texts(found) == [
        ("policy", "<think>t</think><search> x </search>"),
        ("tool", "r1\n\nr2"),
        ("policy", "\n<think>u</think> <answer>a</answer>"),
    ]


WRITTEN = {
    "tags": "<think>t</think>\n<search> x </search>",
    "hermes": f"<think>t</think>\n{CALL}",
}


@pytest.mark.parametrize("style", WRITTEN)
def test_calls_beside_a_text_are_written_as_the_format_writes_them(formats, style):
    row = {
        "messages": [
            {"role": "user", "content": "q"},
            structured("x", content="<think>t</think>"),
            {"role": "tool", "content": "r", "tool_call_id": "x"},
            {"role": "assistant", "content": "a"},
        ]
    }
    [found] = shown(row, formats[style])
    assert sources_and_texts(found) == [("policy", WRITTEN[style]), ("tool", "r"), ("policy", "a")]


def test_results_stand_in_the_order_of_their_calls(formats):
    results = [{"role": "tool", "content": name, "tool_call_id": name} for name in ("b", "a")]
    row = {
        "messages": [
            {"role": "user", "content": "q"},
            structured("a", "b"),
            *results,
            {"role": "assistant", "content": "done"},
        ]
    }
    [found] = shown(row, formats["hermes"])
    assert [text for source, text in sources_and_texts(found) if source == "tool"] == ["a", "b"]


@pytest.mark.parametrize(
    ("style", "earlier"),
    [
        ("tags", [("assistant", "<search> x </search> <result>\nr\n</result>a")]),
        ("hermes", [("assistant", CALL), ("tool", "r"), ("assistant", "a")]),
    ],
)
def test_a_conversation_is_a_demonstration_for_each_question(formats, style, earlier):
    call = "<search> x </search>" if style == "tags" else CALL
    row = row_of(
        USER,
        ("assistant", call),
        ("tool", "r"),
        ("assistant", "a"),
        ("user", "more"),
        ("assistant", "b"),
        ("user", "unanswered"),
    )
    first, second = shown(row, formats[style])
    assert sources_and_texts(first) == [("policy", call), ("tool", "r"), ("policy", "a")]
    assert [(each.role, each.content) for each in second.question.messages] == [USER, *earlier, ("user", "more")]
    assert sources_and_texts(second) == [("policy", "b")]
    assert first.question.question_id != second.question.question_id


SEARCHED = ("assistant", "<search> x </search>")
CALLED = ("assistant", CALL)
RESULT, DONE = ("tool", "r"), ("assistant", "a")
FAULTS = {
    "nobody answers": ("tags", [USER], Fault.NO_ASSISTANT),
    "nobody asks": ("tags", [DONE], Fault.NO_QUESTION),
    "blank": ("tags", [USER, ("assistant", " \n")], Fault.EMPTY),
    "blank after a result": ("tags", [USER, SEARCHED, RESULT, ("assistant", "")], Fault.EMPTY),
    "twice": ("tags", [USER, DONE, DONE], Fault.TWO_TURNS),
    "open think": ("tags", [USER, ("assistant", "<think>t <answer>a</answer>")], Fault.BROKEN_TAGS),
    "closed think": ("tags", [USER, ("assistant", "t</think> a")], Fault.BROKEN_TAGS),
    "think in think": ("tags", [USER, ("assistant", "<think><think>t</think></think>")], Fault.BROKEN_TAGS),
    "open result": ("tags", [USER, ("assistant", "<search> x </search><result>r")], Fault.BROKEN_TAGS),
    "open call": ("tags", [USER, ("assistant", "<search> x")], Fault.BROKEN_TAGS),
    "own response": ("hermes", [USER, ("assistant", "<tool_response>r</tool_response>")], Fault.BROKEN_TAGS),
    "tags in JSON format": (
        "hermes",
        [USER, ("assistant", "<search> x </search><result>\nr\n</result>a")],
        Fault.BROKEN_TAGS,
    ),
    "call at the end": ("tags", [USER, SEARCHED], Fault.CALL_WITHOUT_RESULT),
    "JSON call at the end": ("hermes", [USER, CALLED], Fault.CALL_WITHOUT_RESULT),
    "one result of two": ("hermes", [USER, ("assistant", CALL * 2), RESULT, DONE], Fault.CALL_WITHOUT_RESULT),
    "goes on after a call": (
        "tags",
        [USER, ("assistant", "<search> x </search> then"), RESULT, DONE],
        Fault.CALL_WITHOUT_RESULT,
    ),
    "no call": ("tags", [USER, DONE, RESULT, DONE], Fault.RESULT_WITHOUT_CALL),
    "no JSON call": ("hermes", [USER, DONE, RESULT, DONE], Fault.RESULT_WITHOUT_CALL),
    "result first": ("tags", [USER, RESULT, DONE], Fault.RESULT_WITHOUT_CALL),
    "result in a text first": ("tags", [USER, ("assistant", "t <result>r</result> a")], Fault.RESULT_WITHOUT_CALL),
    "two results": ("tags", [USER, SEARCHED, RESULT, RESULT, DONE], Fault.RESULT_WITHOUT_CALL),
    "ends with a result": ("tags", [USER, SEARCHED, RESULT], Fault.UNFINISHED),
    "ends with a result in a text": (
        "tags",
        [USER, ("assistant", "<search> x </search><result>r</result>")],
        Fault.UNFINISHED,
    ),
}


@pytest.mark.parametrize(("style", "pairs", "fault"), FAULTS.values(), ids=FAULTS)
def test_what_no_rollout_looks_like_is_told_by_its_reason(formats, style, pairs, fault):
    with pytest.raises(UnusableRowError, match=f"^{fault}"):
        shown(row_of(*pairs), formats[style])


OF_CALLS = {
    "unknown tool": ("hermes", structured("x", tool_calls=[{"function": {"name": "buy"}}]), Fault.UNKNOWN_TOOL),
    "missing argument": (
        "tags",
        structured("x", tool_calls=[{"function": {"name": "search", "arguments": {}}}]),
        Fault.UNWRITABLE_CALL,
    ),
    "two in tags": ("tags", structured("x", "y"), Fault.UNWRITABLE_CALL),
}


@pytest.mark.parametrize(("style", "message", "fault"), OF_CALLS.values(), ids=OF_CALLS)
def test_calls_that_cannot_be_written_are_told_by_their_reason(formats, style, message, fault):
    with pytest.raises(UnusableRowError, match=f"^{fault}"):
        shown({"messages": [{"role": "user", "content": "q"}, message]}, formats[style])


@pytest.mark.parametrize("ids", [("z",), ("x", "x")], ids=["of another call", "twice"])
def test_a_result_must_name_a_call_of_the_turn_that_has_none_yet(formats, ids):
    results = [{"role": "tool", "content": "r", "tool_call_id": each} for each in ids]
    row = {
        "messages": [{"role": "user", "content": "q"}, structured("x"), *results, {"role": "assistant", "content": "a"}]
    }
    with pytest.raises(UnusableRowError, match=f"^{Fault.RESULT_WITHOUT_CALL}"):
        shown(row, formats["hermes"])


def test_thoughts_that_the_template_opens_need_not_be_opened():
    chat_format = hermes(template=CHATML.replace("assistant\\n", "assistant\\n<think>\\n"))[1]
    for text in ("t</think> a", "<think>\nt</think> a"):
        assert len(shown(row_of(USER, ("assistant", text)), chat_format)) == 1
