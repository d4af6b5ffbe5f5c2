"""Rewards in processes of their own: they answer, fail and end whatever they do."""

import asyncio
import math
import os
import threading

import pytest

from aepo_lightning.contracts.question import Message, Question
from aepo_lightning.contracts.reward import RewardInput
from aepo_lightning.errors import ConfigError, RewardError
from aepo_lightning.rewards import FunctionReward, PaperReward, RewardSum, as_reward
from aepo_lightning.rewards.process import ProcessReward
from aepo_lightning.rollout.scoring import ScoringSettings, score
from tests.support import plain_functions
from tests.support.processes import is_running, wait_until


def sample(text):
    question = Question(question_id="q-7", messages=(Message(role="user", content="?"),), answers=("x",))
    return RewardInput(question=question, response_text=text)


def scored(reward, *texts):
    async def run():
        return [(await score(reward, sample(text), ScoringSettings())).reward for text in texts]

    return asyncio.run(run())


async def waits(given):
    return plain_functions.score(given)


def test_a_process_scores_in_its_main_thread_and_is_kept():
    in_main_thread, first, again = scored(as_reward(plain_functions.score, "process"), "main thread?", "pid", "pid")
    assert in_main_thread == 1.0
    assert first == again != os.getpid()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("key", r"raised KeyError: 'k' \(plain_functions\.py, line \d+\)"),
        ("lock", "raised TypeError: an answer that cannot be sent, lock: cannot pickle"),
        ("segfault", "its process ended before it answered"),
        ("leave", "raised RuntimeError: the function tried to end the process"),
    ],
)
def test_a_failure_names_the_function_and_the_question_and_the_next_one_is_scored(text, problem):
    reward = as_reward(plain_functions.score, "process")
    for call in (reward, lambda given: score(reward, given, ScoringSettings())):
        with pytest.raises(RewardError, match=rf"plain_functions\.score` must not fail, but {problem}.*'q-7'"):
            asyncio.run(call(sample(text)))
    assert scored(reward, "main thread?") == [1.0]


def test_a_deadline_ends_a_function_that_holds_the_interpreter():
    endless, short = (as_reward(plain_functions.score, "process", deadline_s) for deadline_s in (math.inf, 0.2))
    (held,) = scored(endless, "pid")  # they share processes
    with pytest.raises(RewardError, match=r"plain_functions\.score` must answer within 0.2 s"):
        asyncio.run(score(short, sample("hold"), ScoringSettings(deadline_s=0.2)))
    assert scored(endless, "pid") != [held]
    wait_until(lambda: not is_running(int(held)))


def test_a_closure_scores_with_what_it_closes_over():
    bonus = 0.25
    assert scored(as_reward(lambda given: bonus * len(given.response_text), "process"), "ab") == [0.5]


def test_only_plain_functions_that_can_be_sent_go_to_another_process():
    held = threading.Lock()
    assert isinstance(as_reward(plain_functions.score, "process"), ProcessReward)
    assert isinstance(as_reward(plain_functions.score), FunctionReward)
    assert isinstance(as_reward(waits, "process"), FunctionReward)
    assert as_reward(PaperReward(), "process") == PaperReward()
    with pytest.raises(ConfigError, match=r"`reward` must be a function that can be sent .*<lambda> cannot .*lock"):
        as_reward(lambda _: held, "process")


def test_a_term_in_a_process_is_ended_at_its_deadline_and_the_others_count():
    terms = {"own": plain_functions.score, "length": lambda given: len(given.response_text)}
    limits = {"isolation": "process", "on_error": "abstain"}
    whole = RewardSum(terms=terms, limits={"own": limits})
    cut = RewardSum(terms=terms, limits={"own": limits | {"deadline_s": 0.2}}, weights={"own": 0.0})
    found = asyncio.run(whole(sample("main thread?")))
    assert (found.terms, found.has_failed) == ({"own": 1.0, "length": 12.0}, False)
    found = asyncio.run(cut(sample("hold")))
    assert (found.reward, found.terms, found.has_failed) == (4.0, {"own": 0.0, "length": 4.0}, True)
    assert "term `own`" in found.reason
    assert "within 0.2 s" in found.reason
