"""A judge in training: verdicts are rewards, and where there is none the trajectory has none."""

import asyncio
from dataclasses import replace
from functools import cache

import pytest
from aiohttp import web

from aepo_lightning.app.build import build
from aepo_lightning.contracts.question import Message, Question
from aepo_lightning.contracts.reward import RewardInput
from aepo_lightning.rollout.scoring import ScoringSettings, score
from tests.support.composed import composed
from tests.support.extras import needs
from tests.support.judges import completion, judge_server, verdict

needs("openai", "judge")
CHECKER = "reward.terms.answer.checker"
SAMPLE = RewardInput(
    question=Question(question_id="q", messages=(Message(role="user", content="Which city?"),), answers=("Lyon",)),
    response_text=r"<think>t</think><answer>\boxed{Lyons, France}</answer>",
)


@cache
def config():
    return composed("reward=judge", f"{CHECKER}.model=m", f"{CHECKER}.limits.max_attempts=1")


def reward_of(server, tmp_path):
    cfg = config().copy()
    cfg.output_root = str(tmp_path)
    cfg.reward.terms.answer.checker.base_url = f"{server.url}/v1"
    return build(cfg.reward)


def scored(reward, *samples, deadline_s=60.0):
    async def run():
        settings = ScoringSettings(deadline_s=deadline_s)
        return [await score(reward.limited(settings), sample, settings) for sample in samples]

    return asyncio.run(run())


def test_verdicts_are_rewards_and_only_what_needs_a_judge_costs_one(tmp_path):
    texts = (
        r"<think>t</think><answer>\boxed{lyon}</answer>",
        r"\boxed{Lyon}",
        r"<think>t</think><answer>\boxed{ }</answer>",
    )
    samples = [SAMPLE, *(replace(SAMPLE, response_text=text) for text in texts)]
    with judge_server(completion(verdict("correct", "Same."))) as server:
        judged, by_rule, malformed, empty = scored(reward_of(server, tmp_path), *samples)
    assert (judged.reward, judged.is_correct, judged.answer, judged.reason) == (1.0, True, "Lyons, France", "Same.")
    assert (by_rule.reward, by_rule.is_correct) == (1.0, True)
    assert (malformed.reward, malformed.is_well_formed) == (-1.0, False)
    assert (empty.reward, empty.is_correct, empty.is_scored) == (0.0, False, True)
    assert len(server.requests) == 1
    assert (tmp_path / "judge_verdicts.sqlite").exists()


def test_a_number_with_the_same_digits_is_for_the_judge(tmp_path):
    sample = replace(
        SAMPLE,
        question=replace(SAMPLE.question, answers=("3.5",)),
        response_text=r"<think>t</think><answer>\boxed{35}</answer>",
    )
    with judge_server(completion(verdict("incorrect"))) as server:
        (found,) = scored(reward_of(server, tmp_path), sample)
    assert (found.reward, found.is_correct, len(server.requests)) == (0.0, False, 1)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [({"choices": []}, "malformed"), (completion("not correct"), "unreadable")],
    ids=["down", "nonsense"],
)
def test_where_the_judge_has_no_verdict_the_trajectory_has_no_reward(answer, kind, tmp_path):
    with judge_server(answer) as server:
        (found,) = scored(reward_of(server, tmp_path), SAMPLE)
    assert not found.is_scored
    assert not found.is_correct
    assert f"{kind}: The judge m " in found.reason


def test_the_deadline_is_that_of_the_judge_whatever_the_runs_is(tmp_path):
    async def slow(_):
        await asyncio.sleep(0.3)
        return web.json_response(completion(verdict("correct")))

    with judge_server(slow) as server:
        (found,) = scored(reward_of(server, tmp_path), SAMPLE, deadline_s=0.1)
    assert found.reward == 1.0
