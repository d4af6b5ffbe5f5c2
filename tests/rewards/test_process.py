"""Rewards in processes of their own: they answer, fail and end whatever they do."""

import asyncio
import multiprocessing
import os
import re
import signal
import threading

import pytest

from aepo_lightning.contracts.question import Message, Question
from aepo_lightning.contracts.reward import RewardInput
from aepo_lightning.errors import ConfigError, RewardError
from aepo_lightning.rewards import FunctionReward, PaperReward, as_reward
from aepo_lightning.rewards.process import ProcessReward
from aepo_lightning.rollout.scoring import ScoringSettings, score


def sample(text):
    question = Question(question_id="q-7", messages=(Message(role="user", content="?"),), answers=("x",))
    return RewardInput(question=question, response_text=text)


def do(given):
    """Do what the text says."""
    if given.response_text == "hold":
        return bool(re.match(r"(a+)+$", "a" * 60 + "b"))
    if given.response_text == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if given.response_text == "raise":
        raise KeyError("level")
    if given.response_text == "lock":
        return threading.Lock()
    return os.getpid() if given.response_text == "pid" else threading.current_thread() is threading.main_thread()


async def waits(given):
    return do(given)


@pytest.mark.slow
def test_a_process_scores_is_kept_and_is_replaced_when_it_does_not_answer():
    reward = as_reward(do, "process")

    async def talk():
        assert (await score(reward, sample("main thread?"), ScoringSettings())).reward == 1.0
        first = (await score(reward, sample("pid"), ScoringSettings())).reward
        assert (await score(reward, sample("pid"), ScoringSettings())).reward == first != os.getpid()
        with pytest.raises(RewardError, match=r"do` must not fail, but raised KeyError: 'level' \(test_process\.py"):
            await score(reward, sample("raise"), ScoringSettings())
        with pytest.raises(RewardError, match="do` must not fail, but raised an answer that cannot be sent, lock"):
            await score(reward, sample("lock"), ScoringSettings())
        reward._deadline_s = 0.2
        with pytest.raises(RewardError, match=r"do` must answer within 0.2 s"):
            await score(reward, sample("hold"), ScoringSettings(deadline_s=0.2))
        while int(first) in {child.pid for child in multiprocessing.active_children()}:  # it is being killed
            await asyncio.sleep(0.01)
        reward._deadline_s = None
        assert (await score(reward, sample("pid"), ScoringSettings())).reward != first
        with pytest.raises(RewardError, match="its process ended before it answered"):
            await score(reward, sample("die"), ScoringSettings())

    asyncio.run(talk())


def test_only_plain_functions_that_another_process_finds_go_there():
    assert isinstance(as_reward(do, "process"), ProcessReward)
    assert isinstance(as_reward(do), FunctionReward)
    assert isinstance(as_reward(waits, "process"), FunctionReward)
    assert as_reward(PaperReward(), "process") == PaperReward()
    with pytest.raises(ConfigError, match="`reward` must be a function of a module to run in another process, but"):
        as_reward(lambda given: do(given), "process")
