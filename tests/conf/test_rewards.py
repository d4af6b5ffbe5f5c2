"""Rewards as the configuration composes them."""

import asyncio
from dataclasses import replace

import pytest

from aepo_lightning.app.build import build, build_run, find_modules_here
from aepo_lightning.contracts.question import Message, Question
from aepo_lightning.contracts.reward import RewardInput
from aepo_lightning.errors import ConfigError
from aepo_lightning.rewards import LLMJudge
from tests.support.composed import composed

MY_REWARDS = """
from aepo_lightning import reward


@reward(name="brevity")
def short(sample, most=50):
    return -float(len(sample.response_text) > most)
"""
TERMS = ["reward=paper_terms", "callbacks=none"]
OWN = ["+reward.terms.own._target_=my_own_rewards.short", "+reward.weights.own=0.5"]
LENGTHS = ["+reward.terms.overlong._target_=aepo_lightning.rewards.OverlongTerm"]
LENGTHS += ["+reward.terms.length._target_=aepo_lightning.rewards.LengthTerm", "+reward.weights.length=0.1"]
RIGHT = RewardInput(
    question=Question(question_id="q", messages=(Message(role="user", content="?"),), answers=("42",)),
    response_text=r"<think>t</think><answer>\boxed{42}</answer>",
    num_response_tokens=48,
)


def reward_of(tmp_path, *overrides):
    cfg = composed(*TERMS, *overrides)
    policy = build(cfg.model)
    return build_run(cfg, policy, tmp_path).datamodule.prepare_sampler(policy.tokenizer).parts.reward


def test_terms_of_ones_own_stand_beside_those_of_the_paper(tmp_path, monkeypatch):
    (tmp_path / "my_own_rewards.py").write_text(MY_REWARDS)
    monkeypatch.chdir(tmp_path)
    find_modules_here()
    total = reward_of(tmp_path, *OWN, "+reward.terms.own.most=8", *LENGTHS, "reward.clip=[-1.0,1.0]")
    found = asyncio.run(total(replace(RIGHT, max_response_tokens=96)))
    assert found.terms == {"format": 0.0, "answer": 1.0, "tools": 0.0, "own": -1.0, "overlong": 0.0, "length": -0.5}
    assert found.reward == pytest.approx(1.0 - 0.5 - 0.05)
    with pytest.raises(ConfigError, match=r"`reward\.terms\.own` must have arguments .*, but has `least`"):
        reward_of(tmp_path, *OWN, "+reward.terms.own.least=8")


def test_long_trajectories_are_not_punished_twice(tmp_path):
    with pytest.raises(ConfigError, match=r"`overlong\.factor` of the algorithm must be 0 beside .* punished twice"):
        reward_of(tmp_path, *LENGTHS, "algorithm=dapo")
    assert reward_of(tmp_path, *LENGTHS, "algorithm=dapo", "algorithm.overlong.factor=0.0").punishes_overlong


JUDGE = [
    "reward.terms.answer.checker._target_=aepo_lightning.rewards.LLMJudge",
    "~reward.terms.answer.checker.comparison",
    "+reward.terms.answer.checker.base_url=http://127.0.0.1:9/v1",
    "+reward.terms.answer.checker.model=NAME",
    "+reward.limits.answer={max_concurrent: 32}",
]


def test_a_judge_may_look_at_the_answers_of_those_who_keep_the_form():
    pytest.importorskip("openai")
    total = build(composed(*TERMS, *JUDGE).reward)
    assert isinstance(total.terms["answer"].checker, LLMJudge)
    assert total.limits["answer"] == {"max_concurrent": 32}
    malformed = asyncio.run(total(replace(RIGHT, response_text=r"\boxed{42}")))
    assert (malformed.reward, malformed.terms["answer"]) == (-1.0, 0.0), "nobody was asked: there is no server"


def test_scoring_is_what_the_configuration_says():
    scoring = ["rollout.scoring.on_error=-0.5", "rollout.scoring.max_concurrent=3"]
    settings = build(composed(*scoring, "rollout.scoring.mask_failed_tools=[unavailable,timeout]").rollout.scoring)
    assert (settings.on_error, settings.max_concurrent) == (-0.5, 3)
    assert settings.mask_failed_tools == ("unavailable", "timeout")
