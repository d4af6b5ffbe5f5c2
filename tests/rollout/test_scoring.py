"""The seam where a reward is called: its places, its deadline, its failures, its name."""

import asyncio
import copy
import math
import pickle
import time
from dataclasses import replace
from functools import partial

import pytest

from aepo_lightning.contracts.blame import part_name
from aepo_lightning.contracts.question import Message, Question
from aepo_lightning.contracts.reward import RewardInput, RewardOutput
from aepo_lightning.contracts.tool import ToolResult, ToolStatus
from aepo_lightning.errors import ConfigError, RewardError
from aepo_lightning.rewards import FunctionReward, PaperReward, as_reward
from aepo_lightning.rollout.scoring import ScoringSettings, score
from tests.support.builders import ScriptedEngine, calls_then_answer, grow, make_parts
from tests.support.skipped_time import run_skipping

QUESTION = Question(question_id="q-7", messages=(Message(role="user", content="?"),), answers=("x",))
SAMPLE = RewardInput(question=QUESTION, response_text="x")
RIGHT = RewardOutput(reward=1.0, is_correct=True, is_well_formed=True)


def plain(sample):
    return sample.response_text == "x"


async def waits(sample):
    await asyncio.sleep(0.1)
    return plain(sample)


def gives_a_coroutine(sample):
    return waits(sample)


def weighted(weight, sample):
    return weight * plain(sample)


class Plain:
    def __call__(self, sample):
        return plain(sample)


class Waits:
    async def __call__(self, sample):
        return await waits(sample)


def scored(reward, **settings):
    return asyncio.run(score(reward, SAMPLE, ScoringSettings(**settings)))


@pytest.mark.parametrize("wrap", [lambda reward: reward, as_reward], ids=["bare", "wrapped"])
@pytest.mark.parametrize(
    "reward",
    [plain, waits, gives_a_coroutine, partial(weighted, 1.0), Plain(), Waits(), Plain().__call__],
    ids=["plain", "async", "gives_a_coroutine", "partial", "object", "async_object", "method"],
)
def test_whatever_answers_is_a_reward(reward, wrap):
    assert scored(wrap(reward)) == RIGHT


def raises(sample):
    return float(sample.question.metadata["level"])


async def raises_later(sample):
    await asyncio.sleep(0)
    return raises(sample)


async def cancels_itself(sample):
    raise asyncio.CancelledError


def exits(sample):
    raise SystemExit(3)


def stops_iteration(sample):
    return next(iter(()))


def returns_none(sample):
    return None


@pytest.mark.parametrize(
    ("reward", "named"),
    [
        (raises, r"raises` must not fail, but raised KeyError: 'level' \(test_scoring\.py, line \d+\)"),
        (raises_later, r"raises_later` must not fail, but raised KeyError"),
        (cancels_itself, r"cancels_itself` must not fail, but raised RuntimeError: it cancelled itself"),
        (exits, r"exits` must not fail, but raised RuntimeError: it tried to end the process"),
        (stops_iteration, r"stops_iteration` must not fail, but raised RuntimeError: it raised StopIteration"),
        (returns_none, r"returns_none` must return a finite number .* but got NoneType None"),
    ],
    ids=["raises", "raises_later", "cancels_itself", "exits", "stops_iteration", "none"],
)
def test_a_failure_is_told_with_reward_question_and_place(reward, named):
    with pytest.raises(RewardError, match=rf"{named}.*question 'q-7'.*`rollout\.scoring\.on_error`") as caught:
        scored(reward)
    assert len(str(caught.value)) < 500


def test_a_reward_of_this_library_fails_with_its_own_words():
    nothing = RewardInput(question=Question(question_id="q-8", messages=(), answers=()), response_text="")
    with pytest.raises(RewardError, match=r"PaperReward` .*`answers` of question 'q-8' must not be empty"):
        asyncio.run(score(PaperReward(), nothing, ScoringSettings()))
    own = "The reward `mine` of test_scoring is not there."

    def mine(_):
        raise RewardError(own.replace("mine", part_name(mine)))

    with pytest.raises(RewardError, match=rf"^{own.replace('mine', '.*mine')} Mend it"):
        scored(mine)


async def hangs(sample):
    await asyncio.sleep(10_000)


class SwallowsItsCancellation:
    def __init__(self):
        self.was_told = False

    async def __call__(self, sample):  # noqa: ARG002
        try:
            await asyncio.sleep(10_000)
        except asyncio.CancelledError:
            self.was_told = True
            await asyncio.sleep(10_000)


def test_a_coroutine_that_hangs_is_cancelled_at_the_deadline():
    reward = SwallowsItsCancellation()
    for each in (hangs, reward):
        with pytest.raises(RewardError, match=r"must answer within 60 s \(`deadline_s`\), but did not"):
            run_skipping(score(each, SAMPLE, ScoringSettings()))
    assert reward.was_told


def test_without_a_deadline_any_time_may_pass():
    async def slow(sample):
        await asyncio.sleep(100_000)
        return plain(sample)

    assert run_skipping(score(slow, SAMPLE, ScoringSettings(deadline_s=math.inf))) == RIGHT


def test_a_reward_that_keeps_its_own_deadline_is_given_none():
    class Keeps:
        keeps_deadline = True

        async def __call__(self, sample):
            await asyncio.sleep(100_000)
            return plain(sample)

    assert run_skipping(score(Keeps(), SAMPLE, ScoringSettings())) == RIGHT


DOWN, BUSY, LATE, FAILED = (
    ToolResult(text="", status=status)
    for status in (ToolStatus.UNAVAILABLE, ToolStatus.BUSY, ToolStatus.TIMEOUT, ToolStatus.ERROR)
)
OWN_LOOP = replace(LATE, is_program_timeout=True)


@pytest.mark.parametrize(
    ("statuses", "results", "left_out_for"),
    [
        (None, (FAILED,), None),
        (None, (FAILED, DOWN), "unavailable"),
        (None, (BUSY, LATE), None),
        ([], (DOWN, BUSY, LATE), None),
        (["busy", "timeout"], (LATE, BUSY, DOWN), "busy, timeout"),
        (["timeout"], (OWN_LOOP,), None),
        (["timeout"], (OWN_LOOP, LATE), "timeout"),
    ],
)
@pytest.mark.parametrize("reward", [plain, raises], ids=["scored", "failed"])
def test_trajectories_whose_tools_failed_are_left_out_as_asked_for(statuses, results, left_out_for, reward):
    changes = {} if statuses is None else {"mask_failed_tools": statuses}
    settings = ScoringSettings(on_error=1.0, **changes)
    found = asyncio.run(score(reward, replace(SAMPLE, tool_results=results), settings))
    assert (found.is_scored, found.reward) == (left_out_for is None, 1.0)
    if left_out_for:
        assert found.reason == f"A tool failed ({left_out_for}), so the trajectory is left out."


def test_a_thread_that_hangs_is_left_behind():
    with pytest.raises(RewardError, match=r"time_is_up` must answer within 0.05 s"):
        scored(time_is_up, deadline_s=0.05)


def time_is_up(sample):
    time.sleep(0.5)


@pytest.mark.parametrize("reward", [raises, returns_none, FunctionReward(raises)], ids=["raises", "none", "wrapped"])
@pytest.mark.parametrize(
    ("on_error", "is_scored", "value", "said"),
    [
        ("abstain", False, 0.0, "The trajectory is left out."),
        (-0.5, True, -0.5, "The trajectory earns -0.5."),
        (0.0, True, 0.0, "The trajectory earns 0."),
    ],
)
def test_a_run_may_go_on_without_the_reward(reward, on_error, is_scored, value, said, caplog):
    found = scored(reward, on_error=on_error)
    assert (found.is_scored, found.reward, found.is_correct, found.has_failed) == (is_scored, value, False, True)
    assert "for question 'q-7'" in found.reason
    assert f"{found.reason} {said}" in caplog.text


@pytest.mark.parametrize("value", [["error"], "busy", ["unavailable", "down"]], ids=str)
@pytest.mark.usefixtures("without_type_checks")
def test_only_failures_of_the_infrastructure_can_be_masked(value):
    with pytest.raises(ConfigError, match="`mask_failed_tools` must be a list of unavailable, busy, timeout"):
        ScoringSettings(mask_failed_tools=value)


def score_at_once(number, settings, reward):
    async def run():
        return await asyncio.gather(*(score(reward, SAMPLE, settings) for _ in range(number)))

    return run_skipping(run())


@pytest.mark.parametrize(("max_concurrent", "most", "ends_at"), [(2, 2, 120), (None, 5, 40)], ids=str)
def test_no_more_trajectories_than_places_are_looked_at_and_waiting_is_not_part_of_the_deadline(
    max_concurrent, most, ends_at
):
    running, seen, ends = [], [], []

    async def takes_40_s(sample):
        running.append(sample)
        seen.append(len(running))
        await asyncio.sleep(40)
        running.pop()
        ends.append(asyncio.get_running_loop().time())
        return 1.0

    settings = ScoringSettings(deadline_s=60.0, max_concurrent=max_concurrent)
    assert score_at_once(5, settings, takes_40_s) == [RIGHT] * 5
    assert (max(seen), ends[-1]) == (most, ends_at)


def test_a_failure_gives_its_place_back():
    async def takes_90_s(sample):
        await asyncio.sleep(90)

    found = score_at_once(3, ScoringSettings(max_concurrent=1, on_error="abstain"), takes_90_s)
    assert [output.has_failed for output in found] == [True] * 3


def test_settings_can_be_copied_with_their_places():
    settings = ScoringSettings(max_concurrent=1)
    assert copy.deepcopy(settings) == pickle.loads(pickle.dumps(settings)) == settings


def test_the_error_of_a_reward_leaves_a_rollout_as_it_is():
    with pytest.raises(RewardError, match="raises` must not fail, but raised KeyError"):
        grow(ScriptedEngine(calls_then_answer(1)), reward=raises)


def test_masked_trajectories_keep_their_place_in_the_tree():
    calls = []

    def sometimes(sample):
        calls.append(sample)
        return None if len(calls) == 1 else len(calls) % 2

    (tree,) = grow(ScriptedEngine(calls_then_answer(1)), reward=sometimes, scoring=ScoringSettings(on_error="abstain"))
    assert len(tree.leaves) == 4
    assert len(tree.scored_leaves) == 3
    assert [leaf.reward.has_failed for leaf in tree.leaves].count(True) == 1
    assert make_parts(ScriptedEngine(calls_then_answer(1))).scoring == ScoringSettings()


def test_a_reward_knows_how_long_a_response_is_and_may_be():
    lengths = set()

    def notes(sample):
        lengths.add((sample.num_response_tokens, sample.max_response_tokens))
        return 0.0

    (tree,) = grow(ScriptedEngine(calls_then_answer(1)), reward=notes, max_response_tokens=70)
    assert lengths == {(len(path.token_ids) - path.prompt_length, 70) for path in tree.trajectories()}
