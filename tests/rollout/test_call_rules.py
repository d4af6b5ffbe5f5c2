"""Limits of single tools and repeated calls: which calls of a turn no tool gets, and what stands in their place."""

import pytest

from aepo_lightning.contracts.tool import ToolCall, ToolResult, ToolStatus
from aepo_lightning.errors import ConfigError
from aepo_lightning.rollout import RolloutSettings, SamplingSettings
from aepo_lightning.rollout.call_rules import refused_calls
from tests.support.builders import ScriptedEngine, calls_then_answer, grow


def search(text, **fields):
    return ToolCall(tool="search", text=text, **fields)


def python(text):
    return ToolCall(tool="python", text=text)


def answered(call, status=ToolStatus.OK):
    return call, ToolResult(text="a", status=status)


def refused(history, calls, **settings):
    found = refused_calls(history, calls, SamplingSettings(max_tool_calls=99, **settings))
    return {place: result.status.value for place, result in found.items()}


def test_without_rules_only_the_limit_of_all_calls_is_looked_at():
    assert refused([answered(search("a"))] * 9, [search("a"), python("a")]) == {}


def test_each_tool_has_a_limit_of_its_own_within_a_turn_too():
    history = [answered(python("1")), answered(search("a"), ToolStatus.ERROR), answered(python("2"))]
    calls = [search("b"), python("3"), search("c"), search("d"), ToolCall(tool="browse", text="e")]
    limits = {"python": 2, "search": 3}
    assert refused(history, calls, max_calls=limits) == {1: "call_limit", 3: "call_limit"}
    assert refused(history, calls, max_calls={**limits, "python": None}) == {3: "call_limit"}


@pytest.mark.parametrize("status", ["call_limit", "repeated", "malformed", "unknown_tool"])
def test_what_was_not_run_does_not_count(status):
    assert refused([answered(search("a"), ToolStatus(status))] * 3, [search("b")], max_calls={"search": 1}) == {}


def test_a_call_that_was_answered_is_not_made_again():
    history = [answered(search("a")), answered(search("b"), ToolStatus.EMPTY), answered(search("c"), ToolStatus.ERROR)]
    calls = [search(" a "), search("b"), search("c"), search("d"), search("d"), python("a"), search("A")]
    assert refused(history, calls, ask_once=["search"]) == {0: "repeated", 1: "repeated", 4: "repeated"}


def test_named_arguments_are_compared_whatever_their_order():
    history = [answered(search("", arguments={"query": "a", "k": 3}))]
    calls = [search("", arguments={"k": 3, "query": "a"}), search("", arguments={"k": 4, "query": "a"})]
    assert refused(history, calls, ask_once=["search"]) == {0: "repeated"}


def test_a_call_that_cannot_be_read_is_left_to_the_tools():
    broken = search("a", problem="no opening tag")
    assert refused([answered(search("a"))], [broken, broken], ask_once=["search"], max_calls={"search": 1}) == {}


def test_the_policy_reads_what_the_settings_say_and_goes_on():
    (tree,) = grow(
        ScriptedEngine(calls_then_answer(3)),
        budget=1,
        ask_once=["search"],
        ask_once_message="{tool}: see above.",
        max_calls={"search": 1},
        max_calls_message="{tool}: {limit} at most.",
        on_call_limit="tell",
    )
    results = [segment.tool_result for segment in tree.segments if segment.tool_result]
    assert [result.text for result in results[1:]] == ["search: 1 at most."] * 2
    assert tree.leaves[0].stop_reason == "eos"
    (tree,) = grow(ScriptedEngine(calls_then_answer(3)), budget=1, ask_once=["search"])
    results = [segment.tool_result for segment in tree.segments if segment.tool_result]
    assert [result.status for result in results] == ["ok", "repeated", "repeated"]
    assert results[1].text == "This call of search was made before. Read its result above."


def test_under_stop_one_call_of_a_tool_too_many_ends_the_trajectory():
    (tree,) = grow(ScriptedEngine(calls_then_answer(3)), budget=1, max_calls={"search": 2})
    assert (tree.leaves[0].stop_reason, tree.leaves[0].num_tool_calls) == ("call_limit", 2)


@pytest.mark.parametrize(
    "fields, told",
    [
        ({"max_calls": {"python": -1}}, "`max_calls` must not be negative, but got -1 for 'python'"),
        ({"max_calls_message": "{tool.x}"}, r"`max_calls_message` must name {tool} or {limit} alone in braces"),
        ({"max_calls_message": "{limit[0]}"}, r"`max_calls_message` must name {tool} or {limit} alone in braces"),
        ({"ask_once_message": "{limit}"}, r"`ask_once_message` must name {tool} alone in braces"),
        ({"max_calls_message": "{tools}"}, r"`max_calls_message` must name {tool} or {limit} alone in braces"),
        ({"ask_once_message": "{"}, "`ask_once_message` must name"),
        ({"ask_once_message": " "}, "`ask_once_message` must not be empty"),
        ({"stop": ["", "</answer>"]}, "`stop` must be a list of non-empty texts"),
        ({"ask_once": "search"}, "`ask_once` must be a list of non-empty texts, but got 'search'"),
        ({"max_turn_tokens": 0}, "`max_turn_tokens` must be at least 1 or null, but got 0"),
        ({"timeout_s": 0.0}, "`timeout_s` must be positive or null, but got 0.0"),
        ({"repetition_penalty": 0.0}, "`repetition_penalty` must be positive, but got 0.0"),
        ({"repetition_penalty": float("inf")}, "`repetition_penalty` must be positive, but got inf"),
    ],
    ids=str,
)
def test_rules_without_meaning_are_refused(fields, told):
    with pytest.raises(ConfigError, match=told):
        RolloutSettings(**fields)
