"""The paper's reward, case by case."""

import asyncio
import math

import pytest

from aepo_lightning.contracts.question import Message, Question
from aepo_lightning.contracts.reward import Reward, RewardInput
from aepo_lightning.contracts.tool import ToolCall, ToolResult, ToolStatus
from aepo_lightning.errors import DataError, RewardError
from aepo_lightning.rewards import PaperReward
from tests.support import rule_reference
from tests.support.slow import first_quick

SEARCH = "<search>q</search><result>r</result>"
PYTHON = "<python>c</python><result>r</result>"


def make_sample(text, answers=("new york city",), calls=()):
    """`calls` are (tool, status) pairs; status None is a call that never got a result."""
    return RewardInput(
        question=Question(
            question_id="q-7", messages=(Message(role="user", content="Where?"),), answers=tuple(answers)
        ),
        response_text=text,
        tool_calls=tuple(ToolCall(tool=tool, text="x") for tool, _ in calls),
        tool_results=tuple(ToolResult(text="r", status=status) for _, status in calls if status is not None),
    )


def respond(answer, tools=""):
    return rf"<think>t</think>{tools}<think>t</think><answer>It is \boxed{{{answer}}}.</answer>"


@pytest.mark.parametrize(
    "answer, tools, reward",
    [
        pytest.param("New York City", "", 1.0, id="right"),
        # 2 common words of 2 and 3: 2 * 2 / 5 = 0.8
        pytest.param("New York", "", 0.8, id="partial"),
        pytest.param("Boston", "", 0.0, id="wrong"),
        pytest.param("", "", 0.0, id="empty-box"),
        pytest.param("New York City", SEARCH, 1.0, id="one-tool-earns-nothing"),
        pytest.param("New York City", SEARCH + PYTHON, 1.1, id="both-tools"),
        pytest.param("New York", SEARCH + PYTHON, 0.9, id="partial-with-both-tools"),
        pytest.param("Boston", SEARCH + PYTHON, 0.0, id="no-bonus-for-a-wrong-answer"),
        pytest.param("New York City", "</search></python>", 1.1, id="closing-tags-alone-earn-the-bonus"),
    ],
)
def test_reward_is_f1_plus_the_bonus(answer, tools, reward):
    output = PaperReward().score(make_sample(respond(answer, tools)))
    assert output.reward == pytest.approx(reward, rel=1e-15)
    assert output.is_well_formed
    assert output.answer == answer
    assert output.is_correct == (answer == "New York City")
    assert (output.reason == "") == (reward > 0)


@pytest.mark.parametrize(
    "text, reason",
    [
        pytest.param(r"<answer>\boxed{new york city}</answer>", "no <think> block", id="no-think"),
        pytest.param("<think>t</think>", "<answer> occurs 0 times", id="no-answer"),
        pytest.param(respond("x", "<search>q</search>"), "A <search> call lacks", id="search"),
        pytest.param(respond("x", "<python>q</python>"), "A <python> call lacks", id="python"),
        pytest.param("<think>t</think><answer>new york city</answer>", "holds no", id="no-box"),
        pytest.param(r"<think>t</think><answer>} \boxed{new york city</answer>", "do not close", id="open-box"),
        pytest.param(r"<think>t</think><answer>\boxed{new york city}\boxed{</answer>", "do not close", id="last-open"),
        pytest.param(
            respond("new york city", "<search>q</search><result>see <answer> here</result>"),
            "<answer> occurs 2 times",
            id="tag-in-a-tool-result",
        ),
    ],
)
def test_a_malformed_response_costs_one(text, reason):
    output = PaperReward().score(make_sample(text))
    assert (output.reward, output.f1, output.is_correct, output.is_well_formed) == (-1.0, 0.0, False, False)
    assert reason in output.reason


def test_the_best_answer_counts():
    output = PaperReward().score(make_sample(respond("NYC"), answers=("new york", "nyc", "big apple")))
    assert (output.reward, output.is_correct) == (1.0, True)


def test_same_words_in_another_order_score_but_are_not_correct():
    output = PaperReward().score(make_sample(respond("city new york")))
    assert (output.f1, output.is_correct) == (1.0, False)


def test_spaces_between_words_and_tags_change_nothing():
    output = PaperReward().score(make_sample(r"<think> e1 </think> <answer> \boxed{ e5 } </answer>", answers=("e5",)))
    assert (output.reward, output.is_correct, output.answer) == (1.0, True, "e5")


@pytest.mark.parametrize(
    ("written", "strict", "official"),
    [
        (r"$\boxed 7$ or \boxed{8}", 0.0, 1.0),
        (r"\boxed 7 or \boxed{8}", 0.0, 0.5),  # the whole rest is the answer: one word of three
        (r"\boxed{8} or \boxed7", 0.0, -1.0),
        (r"\boxed{7} or \boxed7", 1.0, -1.0),
        (r"\boxed{8} or \boxed{7}", 1.0, 1.0),
        (r"\boxed 7", -1.0, -1.0),  # the format asks for a box with braces under both
    ],
)
def test_the_box_is_read_as_was_asked_for(written, strict, official):
    sample = make_sample(f"<think>t</think><answer>{written}</answer>", ("7",))
    found = [PaperReward(box=box).score(sample).reward for box in ("strict", "official")]
    assert found == [strict, official]


def test_only_the_box_inside_the_answer_counts():
    text = r"<think>\boxed{boston}</think><answer>\boxed{new york city}</answer>\boxed{boston}"
    assert PaperReward().score(make_sample(text)).reward == 1.0


@pytest.mark.parametrize(
    "calls, reward",
    [
        pytest.param([], 1.0, id="no-calls"),
        pytest.param([("search", ToolStatus.OK), ("python", ToolStatus.OK)], 1.1, id="both-ran"),
        pytest.param([("search", ToolStatus.EMPTY), ("python", ToolStatus.ERROR)], 1.1, id="ran-without-success"),
        pytest.param([("python", ToolStatus.TIMEOUT), ("search", ToolStatus.OK)], 1.1, id="ran-out-of-time"),
        pytest.param([("search", ToolStatus.OK), ("python", ToolStatus.MALFORMED)], 1.0, id="malformed-did-not-run"),
        pytest.param([("search", ToolStatus.OK), ("python", ToolStatus.UNKNOWN_TOOL)], 1.0, id="unknown-did-not-run"),
        pytest.param([("search", ToolStatus.OK), ("python", None)], 1.0, id="refused-by-the-call-limit"),
        pytest.param([("search", ToolStatus.OK), ("search", ToolStatus.OK)], 1.0, id="one-tool-twice"),
    ],
)
def test_executed_calls_alone_earn_the_bonus_if_asked_for(calls, reward):
    sample = make_sample(respond("New York City", "</search></python>"), calls=calls)
    assert PaperReward(bonus_from_executed_calls=True).score(sample).reward == pytest.approx(reward, rel=1e-15)
    assert PaperReward().score(sample).reward == pytest.approx(1.1, rel=1e-15)


def test_names_and_bonus_can_be_chosen():
    reward = PaperReward(multi_tool_bonus=0.5, search_tag="lookup", python_tag="calc")
    tools = "<lookup>q</lookup><result>r</result><calc>c</calc><result>r</result>"
    assert reward.score(make_sample(respond("New York City", tools))).reward == 1.5
    assert reward.score(make_sample(respond("New York City", SEARCH + PYTHON))).reward == 1.0


def test_the_protocol_call_equals_the_synchronous_score():
    sample, reward = make_sample(respond("New York")), PaperReward()
    assert isinstance(reward, Reward)
    assert asyncio.run(reward(sample)) == reward.score(sample)


def test_a_question_without_answers_is_refused():
    with pytest.raises(RewardError, match="`answers` of question 'q-7' must not be empty"):
        PaperReward().score(make_sample(respond("x"), answers=()))


def test_more_results_than_calls_are_refused():
    sample = make_sample(respond("x"))
    orphan = RewardInput(
        question=sample.question, response_text=sample.response_text, tool_results=(ToolResult(text="r"),)
    )
    with pytest.raises(RewardError, match="must not outnumber `tool_calls`, but got 1 for 0"):
        PaperReward().score(orphan)


@pytest.mark.parametrize(
    "settings, message",
    [
        pytest.param({"multi_tool_bonus": -0.1}, "`multi_tool_bonus` must be at least 0", id="negative"),
        pytest.param({"multi_tool_bonus": math.nan}, "`multi_tool_bonus` must be at least 0", id="nan"),
        pytest.param({"search_tag": "Search"}, "`search_tag` must match", id="upper-case"),
        pytest.param({"python_tag": ""}, "`python_tag` must match", id="empty"),
        pytest.param({"python_tag": "search"}, "must differ", id="same"),
        pytest.param({"box": "any"}, "`box` must be one of strict, official, but got 'any'", id="box"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_settings_without_meaning_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PaperReward(**settings)


@pytest.mark.parametrize(
    ("golds", "error", "problem"),
    [
        ((), RewardError, "must not be empty or blank"),
        (("", " \n"), RewardError, "must not be empty or blank"),
        ("new york", DataError, "must be a tuple of texts, but got 'new york'"),
        ((7,), DataError, r"must be a tuple of texts, but got \(7,\)"),
        ((["nyc", "new york"],), DataError, "must be a tuple of texts"),
    ],
    ids=["none", "blank", "text", "number", "list"],
)
@pytest.mark.usefixtures("without_type_checks")
def test_accepted_answers_that_are_none_are_refused(golds, error, problem):
    question = Question(question_id="q-7", messages=(), answers=golds)
    with pytest.raises(error, match=f"`answers` of question 'q-7' {problem}"):
        PaperReward().score(RewardInput(question=question, response_text=respond("new york")))


@pytest.mark.parametrize("number", first_quick([500, 10_000]))
def test_format_and_reward_agree_with_a_slow_reference(number):
    reward, kinds = PaperReward(match="words"), {-1.0: 0, 0.0: 0, 1.0: 0}
    for text, gold in rule_reference.generated_trajectories(number, seed=number):
        golds = (gold if gold.strip() else "york", "new york")
        output, expected = reward.score(make_sample(text, golds)), rule_reference.paper_reward(text, golds)
        assert output.reward == pytest.approx(expected, rel=1e-15), (text, golds)
        assert output.is_well_formed == (expected >= 0), text
        kinds[float(math.copysign(expected != 0, expected))] += 1
    assert min(kinds.values()) > number / 20, "each kind of response is among them"
