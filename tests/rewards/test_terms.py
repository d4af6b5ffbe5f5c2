"""The terms of a reward, one by one."""

import asyncio

import pytest

from aepo_lightning.advantages import OverlongPenalty
from aepo_lightning.contracts.generation import StopReason
from aepo_lightning.contracts.question import Message, Question
from aepo_lightning.contracts.reward import RewardInput
from aepo_lightning.contracts.tool import ToolCall, ToolResult, ToolStatus
from aepo_lightning.errors import ConfigError, RewardError
from aepo_lightning.rewards import FormatTerm, LengthTerm, OverlongTerm, RewardSum, ToolTerm

RIGHT = r"<think>t</think><answer>\boxed{ NYC }</answer>"


def sample(text=RIGHT, **fields):
    question = Question(question_id="q-7", messages=(Message(role="user", content="Where?"),), answers=("NYC",))
    return RewardInput(question=question, response_text=text, **fields)


def ask(term, *args, **fields):
    return asyncio.run(term(sample(*args, **fields)))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (RIGHT, ""),
        (r"<answer>\boxed{NYC}</answer>", "no <think> block"),
        (RIGHT.replace("<answer>", "<look>q</look><answer>"), "A <look> call lacks"),
        (r"<think>t</think><answer>\boxed{NYC} \boxed{</answer>", "do not close"),
    ],
    ids=["good", "think", "tool", "box"],
)
def test_a_malformed_response_gets_the_penalty_alone(text, reason):
    found = ask(FormatTerm(tool_tags=("look",), penalty=-0.5), text)
    is_good = not reason
    assert (found.value, found.is_well_formed, found.is_final) == (0.0 if is_good else -0.5, is_good, not is_good)
    assert found.is_correct is (None if is_good else False)
    assert reason in found.reason
    assert not ask(FormatTerm(tool_tags=("look",), is_final=False), text).is_final


@pytest.mark.parametrize(("gold", "is_good"), [("NYC", True), ("{", False), ("</answer>", False)])
def test_an_accepted_answer_that_no_well_formed_response_can_give_is_found(gold, is_good):
    problem = FormatTerm().gold_problem(sample().question, gold)
    assert (problem is None) == is_good
    assert is_good or "a response that gives exactly it is malformed" in problem


def test_the_box_may_be_that_of_the_released_reward():
    text = r"<think>t</think><answer>\boxed{7} or \boxed7</answer>"
    assert [ask(FormatTerm(box=box), text).value for box in ("strict", "official")] == [0.0, -1.0]


@pytest.mark.parametrize(
    ("text", "statuses", "from_text", "from_calls"),
    [
        ("</look></run>", (), 1.0, 0.0),
        ("</look>", (ToolStatus.OK, ToolStatus.TIMEOUT), 0.0, 1.0),
        ("</look></run>", (ToolStatus.OK, ToolStatus.UNAVAILABLE), 1.0, 0.0),
    ],
)
def test_all_of_the_tools_must_be_used(text, statuses, from_text, from_calls):
    results = tuple(ToolResult(text="r", status=status) for status in statuses)
    fields = {"tool_calls": tuple(ToolCall(tool=name, text="x") for name in ("look", "run")), "tool_results": results}
    tools = ("look", "run")
    assert ask(ToolTerm(tools=tools), text, **fields).value == from_text
    assert ask(ToolTerm(tools=tools, from_executed_calls=True), text, **fields).value == from_calls


@pytest.mark.parametrize(("longest", "buffer"), [(None, None), (20, None), (20, 7), (None, 1)])
def test_long_trajectories_are_punished_as_the_advantages_of_dapo_punish_them(longest, buffer):
    penalty = OverlongPenalty(max_tokens=longest, buffer_tokens=buffer).within(30)
    term = OverlongTerm(max_tokens=longest, buffer_tokens=buffer)
    for length in range(0, 33, 3):
        for reason in (StopReason.EOS, StopReason.LENGTH):
            given = {"num_response_tokens": length, "max_response_tokens": 30, "stop_reason": reason}
            assert ask(term, **given).value == penalty(length, reason is StopReason.LENGTH)


@pytest.mark.parametrize(
    ("longest", "length", "value"), [(None, 10, -0.25), (20, 10, -0.5), (20, 30, -1.0), (20, 0, 0)]
)
def test_a_length_is_a_share_of_the_longest(longest, length, value):
    found = ask(LengthTerm(max_tokens=longest), num_response_tokens=length, max_response_tokens=40)
    assert found.value == value


@pytest.mark.parametrize("term", [LengthTerm(), OverlongTerm()], ids=["length", "overlong"])
def test_a_limit_that_nobody_knows_is_an_error(term):
    with pytest.raises(RewardError, match=r"`max_tokens` must be set .* for question 'q-7'"):
        ask(term)


@pytest.mark.parametrize("longest", [{"max_tokens": 31}, {"buffer_tokens": 30}], ids=["max", "buffer"])
def test_a_punishment_that_no_trajectory_can_meet_is_refused(longest):
    total = RewardSum(terms={"form": FormatTerm(), "overlong": OverlongTerm(**longest)})
    total.check_response_limit(31)
    with pytest.raises(ConfigError, match=r"`OverlongTerm\.\w+_tokens` must be .*\b30\b.*, but got 3"):
        total.check_response_limit(30)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: FormatTerm(penalty=0.5), "`penalty` must be 0 or negative and finite, but got 0.5"),
        (lambda: FormatTerm(penalty=float("-inf")), "`penalty` must be 0 or negative and finite"),
        (lambda: FormatTerm(tool_tags="search"), "`tool_tags` must be a list of names of tools, but got 'search'"),
        (lambda: FormatTerm(box="round"), "`box` must be one of strict, official, but got 'round'"),
        (lambda: ToolTerm(tools=()), "`tools` must name at least one tool"),
        (lambda: ToolTerm(tools=("a b",)), "`tools` must be a list of names"),
        (lambda: OverlongTerm(max_tokens=0), "`max_tokens` must be at least 1 or null"),
        (lambda: OverlongTerm(max_tokens=5, buffer_tokens=5), "`buffer_tokens` must be less than the 5 tokens"),
        (lambda: LengthTerm(max_tokens=-1), "`max_tokens` must be at least 1 or null"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_settings_without_meaning_are_refused(make, problem):
    with pytest.raises(ConfigError, match=problem):
        make()
