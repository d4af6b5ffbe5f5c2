"""Groups that say nothing are replaced by those of fresh questions, within a bound, equally on every rank."""

import logging
from dataclasses import replace

import pytest
from lightning.pytorch.utilities import rank_zero_only

from aepo_lightning.advantages import GroupZScore, OverlongPenalty
from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.tasks import ListedQuestions
from aepo_lightning.training import dynamic_sampling
from aepo_lightning.training.dynamic_sampling import DynamicSampling, SamplingRounds
from aepo_lightning.training.metrics import describe_overlong
from aepo_lightning.training.question_stream import QuestionStream
from tests.support.resampling import resampled_run
from tests.support.training import TASK, make_datamodule, make_tree, policy_turn, rollout_algorithm, small_policy
from tests.training.test_experience import build, rows_of

PATHS = [[policy_turn(5)], [policy_turn(6)]]
STREAM = QuestionStream(task=TASK, questions_per_iteration=4)


def tree(*rewards, question_id="q", **changes):
    """A tree with two trajectories; changes are made to their reward outputs."""
    found = make_tree(PATHS, rewards, question_id)
    for leaf in found.leaves:
        leaf.reward = replace(leaf.reward, **changes)
    return found


DULL, GOOD = tree(1.0, 1.0), tree(0.0, 1.0)


@pytest.mark.parametrize(
    ("metric", "grown", "expected"),
    [
        ("reward", tree(1.0, 0.0), True),
        ("reward", tree(0.3, 0.3), False),
        ("reward", tree(0.2, 0.4), True),
        ("correct", tree(1.0, 0.0), True),
        ("correct", tree(0.2, 0.4), False),
        ("correct", tree(-1.0, 0.0), False),
        ("reward", tree(1.0, 0.0, is_scored=False), False),
        ("correct", tree(1.0, 0.0, is_scored=False), False),
    ],
)
def test_a_group_is_informative_if_its_metric_differs(metric, grown, expected):
    assert DynamicSampling(metric=metric).is_informative(grown) is expected


def test_a_trajectory_whose_reward_failed_does_not_count():
    grown = tree(1.0, 0.0)
    grown.leaves[1].reward = replace(grown.leaves[1].reward, is_scored=False)
    assert not DynamicSampling().is_informative(grown)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_rounds": 0}, "`max_rounds` must be at least 1, but got 0. Use `dynamic_sampling=null` for none"),
        ({"metric": "acc"}, "`metric` must be 'reward' or 'correct', but got 'acc'"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_settings_without_meaning_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        DynamicSampling(**fields)


def rounds(**fields):
    found = SamplingRounds(rule=DynamicSampling(**fields))
    found.begin(4)
    return found


@pytest.mark.parametrize(
    ("num_dull", "num_good", "expected"),
    [
        (0, 4, None),
        (1, 3, 2),  # one is missing, three of four were informative: 4/3, rounded up
        (3, 2, 4),  # 2 missing at a rate of 2/5: 5, but no more than an iteration has
        (4, 0, 4),
        (6, 4, None),
    ],
)
def test_a_round_asks_enough_by_the_rate_so_far(num_dull, num_good, expected):
    order = rounds().order([DULL] * num_dull + [GOOD] * num_good, STREAM, 3, 10, 0, 1)
    assert (None if order is None else len(order.questions)) == expected


def test_rounds_have_names_and_follow_in_the_stream():
    found = rounds()
    first = found.order([DULL] * 4, STREAM, 3, 10, 0, 1)
    second = found.order([DULL] * 4 + [GOOD] * 2, STREAM, 3, 14, 0, 1)
    assert (first.name, second.name) == ("train-00003-rank0-round1", "train-00003-rank0-round2")
    assert first.seed == second.seed == STREAM.order(3, 0).seed
    numbers = [int(question.question_id.partition(":")[0]) for order in (first, second) for question in order.questions]
    assert numbers == list(range(10, 18))
    assert (found.num_rounds, found.num_asked) == (2, 8)
    found.begin(4)
    assert (found.num_rounds, found.num_asked) == (0, 0)


def test_a_round_goes_on_into_the_next_epoch_of_finite_data():
    rows = [{"question": f"{number}?", "answer": str(number)} for number in range(6)]
    stream = QuestionStream(task=ListedQuestions(rows), questions_per_iteration=4)
    order = rounds().order([DULL] * 4, stream, 0, 4, 0, 1)
    assert [question.question_id.endswith("@1") for question in order.questions] == [False, False, True, True]
    assert len({question.question_id for question in order.questions}) == 4


def test_without_a_rule_there_are_no_rounds():
    found = SamplingRounds(rule=None)
    found.begin(2)
    assert found.order([DULL] * 2, STREAM, 0, 2, 0, 1) is None
    assert found.chosen([DULL] * 2) == [DULL] * 2
    assert found.metrics([DULL] * 2) == {}


def test_the_rank_that_lacks_most_decides_for_all(monkeypatch):
    """This rank has all it wants, the other one lacks three of four."""

    def all_reduce(values, op="sum"):
        return [max(float(values[0]), 3.0)] if op == "max" else [values[0] + 1.0, values[1] + 4.0, values[2] + 1.0]

    monkeypatch.setattr(dynamic_sampling, "all_reduce", all_reduce)
    found = rounds()
    order = found.order([GOOD] * 4, STREAM, 0, 8, 1, 2)
    # 3 missing at a rate of 5 in 8: 4.8.
    assert len(order.questions) == 4
    assert [each.question_id.partition(":")[0] for each in order.questions] == ["9", "11", "13", "15"]
    assert found.num_asked == 8


def test_informative_groups_come_first_and_every_rank_has_as_many():
    grown = [
        tree(*rewards, question_id=name) for name, rewards in (("a", (1.0, 1.0)), ("b", (0.0, 1.0)), ("c", (1.0, 1.0)))
    ]
    found = rounds()
    found.begin(2)
    assert [each.question.question_id for each in found.chosen(grown)] == ["b", "a"]
    assert found.metrics(grown) == {
        "rollout/num_resampling_rounds": 0.0,
        "rollout/discarded_groups_fraction": pytest.approx(2 / 3),
    }


def test_the_bound_ends_an_iteration_and_says_so_once(caplog, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 0, raising=False)
    found = rounds(max_rounds=1)
    with caplog.at_level(logging.WARNING):
        for iteration in range(2):
            found.begin(4)
            assert found.order([DULL] * 4, STREAM, iteration, 4, 0, 1) is not None
            assert found.order([DULL] * 7 + [GOOD], STREAM, iteration, 8, 0, 1) is None
    assert caplog.text.count("asked 8 questions in 2 rounds and found 1 groups to train on") == 1


# What the steps are made of -----------------------------------------------------------------------------------------


def test_groups_without_information_are_left_out_and_so_is_a_step_without_others():
    trees = [GOOD, DULL, DULL, DULL]
    steps = build(trees, questions_per_step=2, dynamic_sampling=DynamicSampling())
    assert len(steps) == 1
    assert {group for group, _ in rows_of(steps[0])} == {0}
    assert steps[0].global_num_sequences == 2


def test_an_iteration_without_any_information_keeps_its_steps():
    steps = build([DULL] * 4, questions_per_step=2, dynamic_sampling=DynamicSampling())
    assert [step.global_num_sequences for step in steps] == [4, 4]


def test_a_penalty_for_length_changes_advantages_and_neither_rewards_nor_what_is_informative():
    paths = [[policy_turn(*range(5, 13))], [policy_turn(5)]]
    equal, unequal = make_tree(paths, [0.0, 0.0], "equal"), make_tree(paths, [1.0, 1.0 - 1e-3], "unequal")
    overlong = OverlongPenalty(max_tokens=8, buffer_tokens=4)
    options = {"overlong": overlong, "dynamic_sampling": DynamicSampling(), "advantage_estimator": GroupZScore()}
    (minibatch,) = build([equal, unequal], **options)
    rows = rows_of(minibatch)
    assert {group for group, _ in rows} == {1}
    # 1 - 1 against 0.999: the longer one is now the worse, by one standard deviation over the root of two.
    assert [float(row["advantages"][0]) for row in rows.values()] == pytest.approx([-(2**-0.5), 2**-0.5], abs=1e-5)
    assert sorted(minibatch.micro_batches[0].rewards.tolist()) == pytest.approx([0.999, 1.0])


def test_what_was_cut_off_is_masked_but_counts_for_the_others():
    cut = make_tree([[policy_turn(5)], [policy_turn(6)], [policy_turn(7)]], [1.0, 0.0, 0.0])
    cut.leaves[0].stop_reason = cut.leaves[0].stop_reason.LENGTH
    (minibatch,) = build([cut], overlong=OverlongPenalty(factor=0.0, mask_truncated=True).within(100))
    rows = rows_of(minibatch)
    assert [key[1][-1] for key in rows] == [6, 7]
    # Mean 1/3, variance (4/9 + 1/9 + 1/9) / 2 = 1/3.
    assert [float(row["advantages"]) for row in rows.values()] == pytest.approx([-(3**-0.5)] * 2, abs=1e-5)
    assert (minibatch.global_num_sequences, minibatch.global_num_tokens) == (2, 2)


def test_data_refuse_a_penalty_for_lengths_that_their_rollouts_cannot_have():
    algorithm = rollout_algorithm(overlong=OverlongPenalty(max_tokens=25))
    with pytest.raises(ConfigError, match=r"`max_response_tokens` \(24\), but got 25"):
        make_datamodule(small_policy(), algorithm=algorithm)


def test_the_mean_penalty_is_logged():
    # 8 tokens of at most 8 cost all of 2, 1 token nothing.
    trees = [make_tree([[policy_turn(*range(5, 13))], [policy_turn(5)]], [1.0, 1.0])]
    overlong = OverlongPenalty(max_tokens=8, buffer_tokens=4, factor=2.0)
    assert describe_overlong(trees, overlong) == {"rollout/overlong_penalty": 1.0}
    assert describe_overlong(trees, None) == {}
    trees[0].leaves[1].reward = replace(trees[0].leaves[1].reward, is_scored=False)
    assert describe_overlong(trees, overlong) == {"rollout/overlong_penalty": 2.0}, "nothing is taken off no reward"
    assert describe_overlong([tree(1.0, 0.0, is_scored=False)], overlong) == {}


@pytest.mark.parametrize("is_masked", [True, False])
def test_data_that_mask_all_say_so(is_masked, monkeypatch):
    data = make_datamodule(
        small_policy(), algorithm=rollout_algorithm(overlong=OverlongPenalty(mask_truncated=is_masked))
    )
    monkeypatch.setattr(data, "_collect", lambda: None)  # nothing comes of it
    with pytest.raises(DataError, match="A prompt must leave room") as caught:
        data._collect_next()
    assert ("or unset `overlong.mask_truncated`" in str(caught.value)) is is_masked


# Whole runs ---------------------------------------------------------------------------------------------------------


def test_a_run_asks_again_keeps_its_place_and_counts_what_it_discards(tmp_path):
    run, recorder = resampled_run(tmp_path, lambda number: number == 0, max_epochs=1)
    run.fit()
    data = run.datamodule
    assert [len(trees) for trees in recorder.trees] == [4]
    assert numbers_of(data.trees) == [0, 1, 2, 3]
    assert (data.iteration, data.num_asked) == (1, 4)
    assert data.state_dict()["last_asked"][0] == "trail-train-3"
    assert numbers_of(data._rounds.chosen(data.trees)) == [1, 2]
    assert run.logger.values("rollout/num_resampling_rounds") == [1]
    assert run.logger.values("rollout/discarded_groups_fraction") == [0.5]
    num_tokens = sum(each.num_generated_tokens for each in data.trees)
    assert data.metrics["rollout/tokens_per_s"] * data.metrics["time/rollout_s"] == pytest.approx(num_tokens)
    names = sorted(path.name for path in (tmp_path / "rollouts").glob("*.jsonl*"))
    assert names == ["train-00000-rank0-round1.jsonl", "train-00000-rank0.jsonl"]


def numbers_of(trees):
    return [int(each.question.question_id.partition(":")[0]) for each in trees]
