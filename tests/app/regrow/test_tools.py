"""What the journal answers, and what it does not."""

import asyncio

import pytest

from aepo_lightning.app.regrow.tools import JournalTools, RecordedCalls
from aepo_lightning.contracts.question import SegmentSource
from aepo_lightning.contracts.tool import ToolCall, ToolContext, ToolResult, ToolSpec, ToolState, ToolStatus
from aepo_lightning.contracts.tree import RolloutTree, UnusedCall
from aepo_lightning.tools import ToolRuntime
from tests.support.builders import make_question
from tests.support.training import make_leaf

SEARCH = ToolSpec(name="search")
SESSION = ToolSpec(name="python", state=ToolState.REPLAYABLE)
NOTES = ToolSpec(name="notes", is_history_bound=True)


def call(text, tool="search"):
    return ToolCall(tool=tool, text=text)


def result(text, status=ToolStatus.OK):
    return ToolResult(text=text, status=status)


def tree_of(*chains, unused=()):
    """A tree without branches; a chain is its calls and results."""
    tree = RolloutTree(question=make_question(), unused_calls=list(unused))
    tree.add(None, SegmentSource.PROMPT, [3])
    for number, chain in enumerate(chains):
        parent = 0
        for each, answer in chain:
            parent = tree.add(parent, SegmentSource.TOOL, [4], tool_call=each, tool_result=answer).segment_id
        tree.leaves.append(make_leaf(parent, 1.0, number))
    return tree


def recorded(tree, chain=("r", 0)):
    return RecordedCalls.of(tree, chain, (SEARCH, SESSION, NOTES))


def test_the_chains_own_answers_come_before_those_of_others():
    tree = tree_of([(call("a"), result("theirs"))], [(call("a"), result("first")), (call("a"), result("second"))])
    found = recorded(tree, ("r", 1))
    history = [(call("a"), result("first"))]
    assert found.result(call("a"), 0, []).text == "first"
    assert found.result(call("a"), 1, history).text == "second"
    assert found.result(call("a"), 2, [*history, *history]).text == "theirs"
    assert found.result(call("b"), 0, []) is None


def test_a_tool_with_a_state_is_answered_after_the_same_calls_alone():
    tree = tree_of([(call("x = 1", "python"), result("ok")), (call("x", "python"), result("1"))])
    found = recorded(tree)
    edited = (call("x = 1", "python"), result("edited"))
    searched = (call("a"), result("b"))
    assert found.result(call("x", "python"), 2, [searched, edited]).text == "1"
    assert found.result(call("x", "python"), 1, [(call("x = 2", "python"), result("ok"))]) is None
    assert found.result(call("x", "python"), 0, []) is None


def test_a_tool_that_sees_what_was_answered_is_answered_after_the_same_answers_alone():
    tree = tree_of([(call("a"), result("b")), (call("all", "notes"), result("b was found"))])
    found = recorded(tree)
    assert found.result(call("all", "notes"), 1, [(call("a"), result("b"))]).text == "b was found"
    assert found.result(call("all", "notes"), 1, [(call("a"), result("c"))]) is None


@pytest.mark.parametrize(
    "status", [ToolStatus.UNAVAILABLE, ToolStatus.BUSY, ToolStatus.CALL_LIMIT, ToolStatus.REPEATED]
)
def test_what_says_nothing_of_the_call_is_for_its_own_place_alone(status):
    found = recorded(tree_of([(call("a"), result("no", status))]))
    assert found.result(call("a"), 0, []).status is status
    assert found.result(call("a"), 1, [(call("b"), result("c"))]) is None


def test_results_that_are_in_no_trajectory_are_on_record():
    kept = {"call_index": 1, "call": call("long"), "result": result("text " * 99)}
    gone = {"call_index": 0, "call": call("probe"), "result": result("seen")}
    unused = [UnusedCall(seed_path=("r", 0), **kept), UnusedCall(seed_path=("p", 0), **gone)]
    found = recorded(tree_of([(call("a"), result("b"))], unused=unused))
    assert found.result(call("long"), 1, [(call("a"), result("b"))]).text.startswith("text")
    assert found.result(call("probe"), 0, []).text == "seen"


@pytest.mark.parametrize("is_offline", [True, False])
def test_other_calls_are_made_or_refused(is_offline):
    asked = []

    def search(text: str) -> str:
        """Look something up."""
        asked.append(text)
        return "new"

    tools = JournalTools(
        recorded=recorded(tree_of([(call("a"), result("old"))])),
        tools=ToolRuntime(tools=(search,)),
        is_offline=is_offline,
    )

    async def ask():
        await tools.start()
        context = ToolContext(question=make_question(), call_index=0)
        found = [await tools.call(call(text), context) for text in ("a", "b")]
        await tools.close()
        return [each.text for each in found]

    texts = asyncio.run(ask())
    assert texts[0] == "old"
    assert texts[1] == ("Error: no result of this call is on record." if is_offline else "new")
    assert asked == ([] if is_offline else ["b"])
    assert (tools.num_recorded, tools.num_made, tools.num_refused) == (1, not is_offline, is_offline)
