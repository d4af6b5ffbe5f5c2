import asyncio
import re

import pytest

from aepo_lightning.contracts.question import SegmentSource
from aepo_lightning.contracts.reward import RewardInput
from aepo_lightning.contracts.tool import ToolCall, ToolContext, ToolStatus
from aepo_lightning.errors import ConfigError
from aepo_lightning.rewards import PaperReward
from aepo_lightning.tasks import DeepSearchTask, Imperfection
from aepo_lightning.tools import DocumentSearch, ToolRuntime
from tests.support.deep_search_parts import small_world, task_with_tools, tools_of

WORLD = small_world()


def response(demonstration):
    """The text of a demonstration as the paper's format writes it."""
    pieces = []
    for turn in demonstration.turns:
        is_tool = turn.source is SegmentSource.TOOL
        pieces.append(f" <result>\n{turn.text}\n</result>" if is_tool else turn.text)
    return "".join(pieces)


def test_clean_demonstrations_earn_the_full_reward_within_the_least_number_of_calls():
    task, reward = task_with_tools(WORLD), PaperReward()
    for index in range(20):
        shown = task.demonstration(index)
        output = reward.score(RewardInput(question=shown.question, response_text=response(shown)))
        assert (output.reward, output.is_correct) == (1.0, True), output.reason
        calls = [turn for turn in shown.turns if turn.source is SegmentSource.TOOL]
        assert len(calls) == shown.question.metadata["least_calls"]


def test_results_of_demonstrations_are_those_of_the_runtime():
    task = task_with_tools(WORLD)
    runtime = ToolRuntime(tools=tools_of(WORLD))

    async def replay(shown):
        turns = zip(shown.turns[::2], shown.turns[1::2], strict=False)
        for number, (call, result) in enumerate(turns):
            tool, _, rest = call.text.partition("</think> <")[2].partition("> ")
            context = ToolContext(question=shown.question, call_index=number)
            answered = await runtime.call(ToolCall(tool=tool, text=rest.removesuffix(f" </{tool}>")), context)
            assert (answered.text, answered.status) == (result.text, ToolStatus.OK)

    async def replay_all():
        for index in range(10):
            await replay(task.demonstration(index))

    asyncio.run(replay_all())


def test_calls_can_be_written_as_hermes_models_do():
    shown = task_with_tools(WORLD, call_style="hermes", levels=["one_hop"], depth="snippet").demonstration(0)
    start, call = shown.turns[0].text.split("<tool_call>\n")
    assert start.startswith("<think> ")
    assert call.startswith('{"name": "search", "arguments": {"query": "')
    assert call.endswith('"}}\n</tool_call>')


def test_demonstrations_need_the_tools_of_the_world():
    with pytest.raises(ConfigError, match="`search` must be a tool for demonstrations to call"):
        DeepSearchTask(world=WORLD).demonstration(0)
    with pytest.raises(ConfigError, match=r"`search` must show 'Record of .*Set tools=deep_search"):
        DeepSearchTask(world=WORLD, search=DocumentSearch()).demonstration(0)


def calls_of(shown):
    return [turn for turn in shown.turns if turn.source is SegmentSource.TOOL]


def graded(shown):
    return PaperReward().score(RewardInput(question=shown.question, response_text=response(shown)))


def shown_with(count=24, levels=("one_hop", "two_hops", "count", "comparison"), **rates):
    task = task_with_tools(WORLD, levels=levels, imperfection=Imperfection(**rates))
    return [task.demonstration(index) for index in range(count)]


def test_answers_are_wrong_at_the_stated_rate_and_well_formed():
    outputs = [graded(shown) for shown in shown_with(wrong_answer=0.4)]
    assert sum(not output.is_correct for output in outputs) / 24 == pytest.approx(0.4, abs=0.2)
    assert all(output.is_well_formed for output in outputs)


def test_every_answer_can_be_wrong():
    for shown in shown_with(wrong_answer=1.0):
        output = graded(shown)
        assert not output.is_correct
        assert shown.question.answers[0] not in shown.turns[-1].text.split("</think>")[1]


def test_names_are_misspelt_before_the_right_search_at_the_stated_rate():
    spoilt, clean = shown_with(wrong_query=1.0), shown_with()
    for one, other in zip(spoilt, clean, strict=True):
        queries, right = [re.findall(r"<search> (.+) </search>", response(shown)) for shown in (one, other)]
        assert queries[1::2] == right
        assert not set(queries[::2]) & set(right)
        assert graded(one).is_correct
    some = [
        len(calls_of(one)) > len(calls_of(other)) for one, other in zip(shown_with(wrong_query=0.3), clean, strict=True)
    ]
    assert 0.2 < sum(some) / 24 < 0.6


def test_calls_that_are_not_needed_follow_those_that_are():
    for one, other in zip(shown_with(superfluous_call=1.0), shown_with(), strict=True):
        assert [turn.text for turn in calls_of(one)[::2]] == [turn.text for turn in calls_of(other)]
        assert graded(one).is_correct


def test_without_browse_the_same_search_is_made_again():
    task = DeepSearchTask(
        world=WORLD, search=tools_of(WORLD)[0], depth="snippet", imperfection=Imperfection(superfluous_call=1.0)
    )
    texts = [turn.text for turn in calls_of(task.demonstration(0))]
    assert texts[::2] == texts[1::2]


def test_a_dead_link_is_answered_as_the_runtime_answers_it():
    task = task_with_tools(WORLD, imperfection=Imperfection(superfluous_call=1.0))
    failures = [
        turn.text
        for index in range(20)
        for turn in calls_of(task.demonstration(index))
        if turn.text.startswith("Error")
    ]
    assert set(failures) == {"Error: Tool(browse) failed: the server answered with status 404."}


def test_the_first_demonstrations_are_flawless_and_the_others_are_not():
    task = task_with_tools(WORLD, imperfection=Imperfection(wrong_answer=1.0), num_flawless_demonstrations=10)
    assert [graded(task.demonstration(index)).is_correct for index in range(8, 12)] == [True, True, False, False]


@pytest.mark.parametrize("wrong_answer", [0.0, 1.0])
def test_sums_are_calls_of_python_where_it_is_there(wrong_answer):
    imperfection = Imperfection(wrong_answer=wrong_answer)
    task = task_with_tools(WORLD, levels=["count"], uses_python=True, imperfection=imperfection)
    for index in range(10):
        shown = task.demonstration(index)
        code = re.search(r"<python> ([\d +]+) </python>", shown.turns[-3].text)[1]
        assert str(sum(map(int, code.split(" + ")))) == shown.turns[-2].text
        assert shown.turns[-1].text.endswith(f"\\boxed{{{shown.turns[-2].text}}} </answer>")
        assert graded(shown).is_correct == (wrong_answer == 0)


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
@pytest.mark.parametrize("name", ["wrong_query", "superfluous_call", "wrong_answer"])
def test_rates_are_probabilities(name, rate):
    with pytest.raises(ConfigError, match=f"`{name}` must be in"):
        Imperfection(**{name: rate})
