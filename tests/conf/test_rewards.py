"""Rewards as the configuration composes them."""

import asyncio
from dataclasses import replace

import pytest
from omegaconf import OmegaConf, open_dict

from aepo_lightning.app.build import build, build_run, find_modules_here
from aepo_lightning.app.user_parts import with_functions
from aepo_lightning.contracts.question import Message, Question
from aepo_lightning.contracts.reward import RewardInput
from aepo_lightning.errors import ConfigError
from aepo_lightning.rewards import LLMJudge
from tests.support.composed import composed
from tests.support.paths import CONF

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


def test_terms_of_ones_own_stand_beside_those_of_the_paper(tmp_path, monkeypatch):
    (tmp_path / "my_own_rewards.py").write_text(MY_REWARDS)
    monkeypatch.chdir(tmp_path)
    find_modules_here()
    cfg = composed(*TERMS, *OWN, "+reward.terms.own.most=8", *LENGTHS, "reward.clip=[-1.0,1.0]").reward
    found = asyncio.run(build(with_functions(cfg, "reward"))(replace(RIGHT, max_response_tokens=96)))
    assert found.terms == {"format": 0.0, "answer": 1.0, "tools": 0.0, "own": -1.0, "overlong": 0.0, "length": -0.5}
    assert found.reward == pytest.approx(1.0 - 0.5 - 0.05)
    with open_dict(cfg):
        cfg.terms.own.least = 8
    with pytest.raises(ConfigError, match=r"`reward\.terms\.own` must have arguments .*, but has `least`"):
        with_functions(cfg, "reward")


def test_long_trajectories_are_not_punished_twice(tmp_path):
    cfg = composed(*TERMS, *LENGTHS, "algorithm=dapo")
    policy = build(cfg.model)
    with pytest.raises(ConfigError, match=r"`overlong\.factor` of the algorithm must be 0 beside .* punished twice"):
        build_run(cfg, policy, tmp_path)
    cfg.algorithm.overlong.factor = 0.0
    run = build_run(cfg, policy, tmp_path)
    assert run.datamodule.prepare_sampler(policy.tokenizer).parts.reward.punishes_overlong
    longest = cfg.rollout.sampling.max_response_tokens
    with open_dict(cfg):
        cfg.reward.terms.overlong.max_tokens = longest + 1
    with pytest.raises(ConfigError, match=rf"`OverlongTerm\.max_tokens` must be at most .* \({longest}\), but got"):
        build_run(cfg, policy, tmp_path)


def test_a_judge_may_look_at_the_answers_of_those_who_keep_the_form():
    pytest.importorskip("openai")
    cfg = OmegaConf.load(CONF / "reward" / "paper_terms.yaml")
    judge = "aepo_lightning.rewards.LLMJudge"
    cfg.terms.answer.checker = {"_target_": judge, "base_url": "http://127.0.0.1:9/v1", "model": "NAME"}
    cfg.limits.answer = {"max_concurrent": 32}
    total = build(cfg)
    assert isinstance(total.terms["answer"].checker, LLMJudge)
    malformed = asyncio.run(total(replace(RIGHT, response_text=r"\boxed{42}")))
    assert (malformed.reward, malformed.terms["answer"]) == (-1.0, 0.0), "nobody was asked: there is no server"


def test_scoring_is_what_the_configuration_says():
    scoring = ["rollout.scoring.on_error=-0.5", "rollout.scoring.max_concurrent=3"]
    settings = build(composed(*scoring, "rollout.scoring.mask_failed_tools=[unavailable,timeout]").rollout.scoring)
    assert (settings.on_error, settings.max_concurrent) == (-0.5, 3)
    assert settings.mask_failed_tools == ("unavailable", "timeout")
