"""A reward that is a sum of terms: what it adds up, whom it asks when, and what a failure of one term means."""

import asyncio
import math
from functools import partial

import numpy as np
import pytest

from aepo_lightning.contracts.question import Message, Question
from aepo_lightning.contracts.reward import Reward, RewardInput, RewardLimits, RewardOutput
from aepo_lightning.contracts.reward_term import TermOutput
from aepo_lightning.errors import ConfigError, RewardError
from aepo_lightning.rewards import FormatTerm, FunctionReward, PaperReward, RewardSum, as_reward, reward
from aepo_lightning.rewards.process import ProcessReward
from aepo_lightning.rollout import ScoringSettings, summarise_trees
from aepo_lightning.rollout.plain import tree_from_dict, tree_to_dict
from aepo_lightning.rollout.scoring import score
from tests.support.builders import ScriptedEngine, calls_then_answer, grow
from tests.support.skipped_time import run_skipping

QUESTION = Question(question_id="q-7", messages=(Message(role="user", content="?"),), answers=("x",))
SAMPLE = RewardInput(question=QUESTION, response_text="x y z")


class Says:
    """A term that is arithmetic alone."""

    is_immediate = True

    def __init__(self, value=0.0, **fields):
        self.output = TermOutput(value=value, **fields)

    async def __call__(self, sample):  # noqa: ARG002
        return self.output


def length(sample):
    return len(sample.response_text.split())


def ask(terms, **settings):
    return asyncio.run(RewardSum(terms=terms, **settings)(SAMPLE))


def later(value, seconds=40.0, log=None):
    async def answers(sample):
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            if log is not None:
                log.append("cancelled")
            raise
        return value

    return answers


@pytest.mark.parametrize(
    ("clip", "expected"),
    [(None, 1.0 - 0.5 * 3), ([0.0, None], 0.0), ([-0.2, 0.2], -0.2), ([None, -0.7], -0.7)],
    ids=str,
)
def test_it_adds_up_what_terms_give_by_their_weights_and_keeps_within_its_bounds(clip, expected):
    found = ask({"right": Says(1.0), "length": length}, weights={"length": -0.5}, clip=clip)
    assert found.reward == pytest.approx(expected)
    assert found.terms == {"right": 1.0, "length": 3.0}, "as they were given"


def test_the_order_of_terms_changes_no_bit():
    terms = {"a": Says(0.1), "b": Says(0.2), "c": Says(0.3), "d": Says(-1e10), "e": Says(1e10)}
    orders = [list(terms), list(terms)[::-1], ["d", "b", "e", "a", "c"]]
    found = {ask({name: terms[name] for name in order}).reward for order in orders}
    assert found == {0.6}, "where 0.1 + 0.2 + 0.3 is not"


def test_what_terms_know_is_put_together():
    found = ask(
        {
            "right": Says(0.4, is_correct=True, f1=0.4, answer="x", reason="Half of it."),
            "form": Says(0.0, is_well_formed=True),
            "length": length,
            "strict": Says(0.0, is_correct=False, f1=0.9, answer="y", reason="Too long."),
        },
        weights={"length": 0.0},
    )
    assert (found.is_correct, found.is_well_formed, found.f1, found.answer) == (False, True, 0.4, "x")
    assert found.reason == "Half of it. Too long."


@pytest.mark.parametrize(("value", "is_correct"), [(1.0, True), (0.9, False)])
@pytest.mark.parametrize("wrap", [lambda function: function, FunctionReward], ids=["function", "reward"])
def test_where_no_term_knows_what_is_right_a_reward_of_1_is(value, is_correct, wrap):
    found = ask({"own": wrap(lambda _: value), "bonus": wrap(lambda _: 1.0)}, weights={"bonus": 0.0})
    assert found.is_correct is is_correct


def test_rewards_are_terms():
    found = ask({"paper": PaperReward(), "length": length}, weights={"length": 0.5})
    assert (found.reward, found.is_well_formed, found.terms) == (0.5, False, {"paper": -1.0, "length": 3.0})
    assert "no <think> block" in found.reason


def test_a_final_term_decides_alone_and_slow_ones_are_not_asked():
    asked = []
    terms = {"slow": lambda sample: asked.append(sample) or 5.0, "one": Says(1.0), "form": FormatTerm()}
    found = ask(terms)
    assert (found.reward, found.is_well_formed, found.is_correct, asked) == (-1.0, False, False, [])
    assert found.terms == {"slow": 0.0, "one": 0.0, "form": -1.0}
    assert ask({"form": FormatTerm(is_final=False, penalty=-0.5), "one": Says(1.0)}).reward == 0.5
    assert ask({"form": FormatTerm(penalty=0.0), "one": Says(1.0)}).reward == 0.0
    assert ask({"slow": lambda _: TermOutput(value=-2.0, is_final=True), "one": Says(1.0)}).reward == -2.0


@pytest.mark.parametrize(("answer", "expected"), [(0.6, 0.7), (0.0, 0.0), (-1.0, -1.0)])
def test_a_term_may_count_only_where_another_gave_something(answer, expected):
    terms = {"tools": Says(1.0), "answer": lambda _: answer}
    found = ask(terms, weights={"tools": 0.1}, only_with={"tools": "answer"})
    assert found.reward == pytest.approx(expected)
    assert found.terms["tools"] == float(answer > 0)


def test_slow_terms_are_asked_side_by_side():
    async def timed():
        found = await RewardSum(terms={"a": later(1.0), "b": later(2.0), "c": Says(4.0)})(SAMPLE)
        return found.reward, asyncio.get_running_loop().time()

    assert run_skipping(timed()) == (7.0, 40)


def raises(sample):
    return sample.question.metadata["level"]


@pytest.mark.parametrize(
    ("term", "problem"),
    [
        (raises, r"must not fail, but raised KeyError: 'level' \(test_sum\.py, line \d+\), for question 'q-7'"),
        (lambda _: math.nan, "must return a finite number .* got float nan for question 'q-7'"),
        (lambda _: None, "must return a finite number .* got NoneType"),
        (Says(math.inf), "must return a finite number .* in `value`, but got float inf"),
        (Says(0.0, f1="1"), "must .* in `f1`, but got str"),
        (Says(0.0, is_scored=None), "must return a truth value in `is_scored`, but got NoneType"),
        (Says(0.0, is_correct=0.5), "must return a truth value or None in `is_correct`, but got float"),
    ],
    ids=["raises", "nan", "none", "inf", "f1", "is_scored", "is_correct"],
)
def test_a_term_that_fails_is_named(term, problem):
    named = rf"term `own` of `aepo_lightning\.rewards\.sum\.RewardSum` {problem}"
    with pytest.raises(RewardError, match=named):
        ask({"own": term})
    with pytest.raises(RewardError, match=named + r".*`rollout\.scoring\.on_error`"):
        asyncio.run(score(RewardSum(terms={"own": term}), SAMPLE, ScoringSettings()))


@pytest.mark.parametrize(
    ("on_error", "weight", "expected"),
    [
        ("abstain", 1.0, (False, 2.0)),
        ("abstain", 0.0, (True, 2.0)),  # a term that is only logged costs nobody his reward
        (-0.5, 1.0, (True, 1.5)),
    ],
)
def test_a_term_may_say_what_its_failure_means(on_error, weight, expected):
    terms = {"own": raises, "rest": Says(2.0)}
    found = ask(terms, weights={"own": weight}, limits={"own": {"on_error": on_error}})
    assert (found.is_scored, found.reward) == expected
    assert found.has_failed
    assert "raised KeyError" in found.reason


def test_a_trajectory_that_a_term_cannot_score_has_no_reward():
    unsure = Says(0.0, is_scored=False, reason="The judge is down.")
    assert not ask({"judge": unsure, "rest": Says(1.0)}).is_scored
    found = ask({"judge": unsure, "rest": Says(1.0)}, weights={"judge": 0.0})
    assert (found.is_scored, found.reward) == (True, 1.0)


def test_a_failure_cancels_the_other_terms():
    log = []
    with pytest.raises(RewardError, match="term `own`"):
        run_skipping(RewardSum(terms={"slow": later(1.0, log=log), "own": later(math.nan, 1.0)})(SAMPLE))
    assert log == ["cancelled"]


def both(terms, settings, **limits):
    total = as_reward(RewardSum(terms=terms, limits=limits), settings.isolation, settings.deadline_s)

    async def run():
        return await asyncio.gather(*(score(total, SAMPLE, settings) for _ in range(3)))

    return run_skipping(run())


def test_waiting_for_the_place_of_a_term_is_not_part_of_a_deadline():
    judge = {"judge": {"max_concurrent": 1, "deadline_s": 50.0}}
    found = both({"judge": later(1.0), "length": later(0.0, 1.0)}, ScoringSettings(deadline_s=60.0), **judge)
    assert [output.reward for output in found] == [1.0] * 3
    with pytest.raises(RewardError, match=r"term `judge` .* must answer within 30 s"):
        both({"judge": later(1.0)}, ScoringSettings(deadline_s=60.0), judge={"deadline_s": 30.0})


def test_terms_without_limits_have_those_of_the_run():
    found = both({"slow": later(1.0)}, ScoringSettings(deadline_s=30.0, on_error="abstain"))
    assert {(output.is_scored, output.has_failed) for output in found} == {(False, True)}
    assert "term `slow`" in found[0].reason
    assert "within 30 s" in found[0].reason
    alone = score(RewardSum(terms={"slow": later(1.0)}), SAMPLE, ScoringSettings(deadline_s=30.0, on_error=0.25))
    assert run_skipping(alone).reward == 0.25


def test_plain_functions_run_where_the_run_says():
    total = as_reward(RewardSum(terms={"plain": length, "other": later(1.0), "form": FormatTerm()}), "process", 5.0)
    places = {name: getattr(asked._call, "__self__", None) for name, asked in total._asked.items()}
    assert [name for name, place in places.items() if isinstance(place, ProcessReward)] == ["plain"]
    assert total.keeps_deadline
    assert isinstance(total, Reward)


def test_a_sum_of_arithmetic_is_arithmetic():
    assert RewardSum(terms={"form": FormatTerm(), "one": Says(1.0)}).is_immediate
    assert not RewardSum(terms={"form": FormatTerm(), "own": length}).is_immediate


ONE = {"answer": Says(1.0)}


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"terms": {}}, "`terms` must have at least one"),
        (
            {"terms": {"my term": length}},
            "`terms` must have names of letters, digits and underscores, but got 'my term'",
        ),
        ({"terms": {"own": FormatTerm}}, r"`terms\.own` must be a term, a reward or a function, but got <class"),
        ({"terms": {"own": None}}, r"`terms\.own` must be a term"),
        (
            {"terms": [length, length]},
            r"`terms` must have different names, but got 'length' twice\. Name one with `@rew",
        ),
        ({"terms": [FormatTerm()]}, "`terms` must name what is no function"),
        ({"terms": [lambda _: 1.0]}, "`terms` must name what is no function"),
        (
            {"weights": {"anwser": 2.0}},
            r"`weights` must name terms of the reward, but got 'anwser'\. Did you mean `answer`",
        ),
        ({"weights": {"answer": math.nan}}, r"`weights\.answer` must be a finite number, but got nan"),
        ({"weights": {"answer": "1"}}, r"`weights\.answer` must be a finite number"),
        (
            {"only_with": {"answer": "tools"}},
            r"`only_with` must name terms of the reward, but got 'tools'\. There are ans",
        ),
        ({"only_with": {"answer": "answer"}}, r"`only_with\.answer` must name a term that always counts"),
        ({"limits": {"judge": {}}}, "`limits` must name terms of the reward, but got 'judge'"),
        (
            {"limits": {"answer": {"deadline": 1.0}}},
            r"must have keys of RewardLimits, but got 'deadline'\. Did you mean",
        ),
        ({"clip": [0.0]}, "`clip` must be a lower and an upper bound or null"),
        ({"clip": [0.0, math.nan]}, "`clip` must be a lower and an upper bound"),
        ({"clip": [1.0, -1.0]}, "`clip` must have a lower bound below the upper one, but got 1.0 and -1.0"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:40],
)
@pytest.mark.usefixtures("without_type_checks")
def test_settings_that_do_not_fit_the_terms_are_refused(settings, problem):
    with pytest.raises(ConfigError, match=problem):
        RewardSum(**{"terms": ONE} | settings)


def test_functions_in_a_list_bear_their_names():
    @reward(name="brevity")
    def short(sample, most=2):
        return -float(len(sample.response_text.split()) > most)

    @reward
    async def constant(sample):
        return np.float32(0.5)

    found = ask([short, constant, length], weights={"length": 0.0})
    assert (found.reward, found.terms) == (-0.5, {"brevity": -1.0, "constant": 0.5, "length": 3.0})
    assert ask([partial(short, most=3)]).terms == {"brevity": 0.0}
    assert short(SAMPLE, most=9) == 0, "it stays a function"


@pytest.mark.parametrize(
    "wrong",
    [FormatTerm, PaperReward(), lambda: 1.0, lambda **_: 1.0],
    ids=["a class", "a reward", "no argument", "keywords alone"],
)
def test_only_functions_of_a_trajectory_are_named(wrong):
    with pytest.raises(ConfigError, match="`@reward` must stand above a function"):
        reward(wrong)
    with pytest.raises(ConfigError, match="`name` must be made of letters"):
        reward(name="a b")(length)


def test_terms_are_in_trees_in_what_is_kept_of_them_and_in_the_figures():
    total = RewardSum(terms={"calls": lambda sample: len(sample.tool_calls), "paper": PaperReward()})
    trees = grow(ScriptedEngine(calls_then_answer(2)), reward=total)
    again = tree_from_dict(tree_to_dict(trees[0]))
    assert [leaf.reward for leaf in again.leaves] == [leaf.reward for leaf in trees[0].leaves]
    assert {tuple(leaf.reward.terms.items()) for leaf in again.leaves} == {(("calls", 2.0), ("paper", 1.0))}
    means = summarise_trees([again]).means()
    assert (means["reward_calls"], means["reward_paper"], means["reward"]) == (2.0, 1.0, 3.0)


def test_limits_of_the_run_change_no_word_of_its_description():
    total = RewardSum(terms={"own": length})
    assert as_reward(total, "thread", 3.0) == total
    assert "Run" not in repr(total)
    assert "RewardLimits" not in repr(as_reward(total, "thread", 3.0))
    assert RewardLimits() != RewardLimits(deadline_s=3.0)
    assert isinstance(ask({"own": length}), RewardOutput)
