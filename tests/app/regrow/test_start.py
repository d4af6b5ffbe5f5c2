"""From a node and an edit to where a chain goes on."""

from dataclasses import replace

import pytest

from aepo_lightning.app.node import Node
from aepo_lightning.app.regrow.start import find_start
from aepo_lightning.chat_formats.hermes import HermesFormat
from aepo_lightning.contracts.question import SegmentSource
from aepo_lightning.contracts.tool import ToolCall, ToolResult, ToolSpec, ToolStatus
from aepo_lightning.errors import ConfigError
from tests.support.builders import ScriptedEngine, calls_then_answer, grow, make_parts, make_question
from tests.support.chatml import chatml_tokenizer

ENGINE = ScriptedEngine(calls_then_answer(2))
PARTS = make_parts(ENGINE)
(TREE,) = grow(ENGINE)
DECODE = ENGINE.tokenizer.decode


def node(place, token=None):
    """A place on the first trajectory: prompt, turn, result, turn, result, turn."""
    return Node(rollout="train-00000", tree=TREE, leaf=TREE.leaves[0], place=place, token=token)


END = ENGINE.tokenizer.eos_token


def start(place, edit=None, token=None, parts=PARTS):
    end_ids = (ENGINE.tokenizer.eos_token_id,)
    return find_start(node(place, token), make_question(), edit, parts, end_ids)


PATH = node(0).path


@pytest.mark.parametrize(
    ("place", "kept", "shown", "written"), [(0, 0, 1, 1), (1, 0, 1, 1), (2, 2, 3, 3), (3, 2, 3, 3), (5, 4, 5, 5)]
)
def test_without_an_edit_all_up_to_the_node_is_kept(place, kept, shown, written):
    found = start(place)
    assert list(found.continuation.segments) == list(PATH[1 : 1 + kept])
    assert found.continuation.seed_path == ("r", 0)
    assert found.continuation.begun is None
    assert (found.first_shown, found.first_written) == (shown, written)


def test_a_turn_is_begun_up_to_the_token():
    begun = start(3, token=2).continuation.begun
    assert begun.token_ids == PATH[3].token_ids[:2]
    assert begun.logprobs == PATH[3].logprobs[:2]
    assert begun.entropies == PATH[3].entropies[:2]


def test_an_edit_takes_the_place_of_a_result():
    found = start(2, "go e5")
    *kept, result = found.continuation.segments
    assert kept == [PATH[1]]
    assert DECODE(result.token_ids) == "<result> go e5 </result>"
    assert result.tool_call == PATH[2].tool_call
    assert (result.tool_result.text, result.tool_result.status) == ("go e5", ToolStatus.OK)
    assert (found.first_shown, found.first_written) == (2, 3)


def test_tags_in_an_edited_result_are_as_harmless_as_in_one_of_a_tool():
    (_, result) = start(2, "</result> <answer> e5").continuation.segments
    assert PARTS.chat_format.encode_results(["</result> <answer> e5"]) == [result.token_ids]


def test_an_edit_is_what_a_turn_begins_with():
    found = start(3, "<search> e5 </search>", token=1)
    begun = found.continuation.begun
    assert begun.token_ids == PATH[3].token_ids[:1] + PARTS.chat_format.encode_text("<search> e5 </search>")
    assert begun.logprobs[1:] == [0.0] * 3
    assert (found.first_shown, found.first_written) == (3, 3)


@pytest.mark.parametrize(("edit", "is_over"), [(f"go {END}", True), ("go", False)])
def test_an_edit_that_ends_the_message_is_the_whole_turn(edit, is_over):
    assert start(3, edit).continuation.begun.is_over == is_over
    assert not start(3, token=2).continuation.begun.is_over


def test_an_edit_of_the_prompt_is_another_question():
    found = start(0, "find e7")
    assert found.question.messages[-1].content == "find e7"
    assert found.question.answers == make_question().answers
    assert (found.first_shown, found.first_written) == (0, 1)


def test_of_several_results_of_a_turn_one_is_edited_and_all_are_kept():
    engine = ScriptedEngine(calls_then_answer(1), tokenizer=chatml_tokenizer())
    chat_format = HermesFormat(engine.tokenizer, [ToolSpec(name="search")])
    tree = replace(TREE, segments=[], leaves=list(TREE.leaves))
    tree.add(None, SegmentSource.PROMPT, chat_format.encode_prompt(make_question().messages))
    tree.add(0, SegmentSource.POLICY, [5], logprobs=[0.0], entropies=[0.0])
    for text, ids in zip("abc", chat_format.encode_results(["a", "b", "c"]), strict=True):
        call, result = ToolCall(tool="search", text=text), ToolResult(text=text)
        tree.add(len(tree.segments) - 1, SegmentSource.TOOL, ids, tool_call=call, tool_result=result)
    tree.add(4, SegmentSource.POLICY, [6], logprobs=[0.0], entropies=[0.0])
    leaf = replace(TREE.leaves[0], segment_id=5)
    place = Node(rollout="train-00000", tree=tree, leaf=leaf, place=3)
    parts = make_parts(engine, chat_format=chat_format)
    assert list(find_start(place, make_question(), None, parts).continuation.segments) == tree.segments[1:5]
    found = find_start(place, make_question(), "new", parts).continuation.segments
    assert [each.tool_result.text for each in found[1:]] == ["a", "new", "c"]
    assert [each.token_ids for each in found[1:]] == chat_format.encode_results(["a", "new", "c"])


@pytest.mark.parametrize(
    ("place", "edit", "changes", "message"),
    [
        (2, " ", {}, "`--edit` must be a text, but got an empty one"),
        (3, "<search> e1 </search> go", {}, "must end where the turn does, but goes on after '</search>'"),
        (3, f"go {END} go", {}, "must end where the turn does, but goes on after the end of the message"),
        (2, "go \udcff", {}, r"`--edit` must be a text in UTF-8, but got 'go \\udcff'"),
        (3, "go e1", {"stop": ("go",)}, "goes on after 'go'"),
        (2, "go " * 400, {}, r"40\d tokens stand before what it would write, and the context of the engine is 400"),
        (2, "go " * 50, {"max_response_tokens": 40}, "rollout.sampling.max_response_tokens is 40"),
        (3, "go " * 9, {"max_turn_tokens": 8}, "9 tokens stand before .* rollout.sampling.max_turn_tokens is 8"),
        (0, "go " * 400, {}, "the context of the engine is 400"),
    ],
    ids=[
        "empty",
        "after a stop",
        "after the end",
        "undecoded",
        "after a stop of the settings",
        "context",
        "response",
        "turn",
        "prompt",
    ],
)
def test_an_edit_that_cannot_stand_there_is_refused(place, edit, changes, message):
    with pytest.raises(ConfigError, match=message):
        start(place, edit, parts=make_parts(ENGINE, **changes))


def test_a_prompt_that_is_written_in_another_way_is_refused():
    with pytest.raises(ConfigError, match="The prompt must be written as it was"):
        find_start(node(2), make_question(text="find e0 e1"), None, PARTS)
    assert find_start(node(0), make_question(text="find e0 e1"), "find e2", PARTS)
