"""What the trainer sees of rollout trees: every token aligned, weighted and counted as it should be."""

import math
from dataclasses import replace

import pytest
import torch

from aepo_lightning.advantages import (
    ClipCov,
    EntropyModulation,
    EntropyShaping,
    GroupZScore,
    KLCov,
    TopEntropyMask,
)
from aepo_lightning.policy.network import TokenScores
from aepo_lightning.training.experience import ExperienceSettings
from tests.support.packing import branched_trees
from tests.support.training import (
    build_experience,
    built_module,
    experience_builder,
    make_tree,
    policy_turn,
    random_trees,
    tool_turn,
)


def score(batch):
    """Log-prob -token/2 and entropy (token % 7)/3 of the predicted token."""
    tokens = batch.input_ids[:, 1:].float()
    return TokenScores(logprobs=-tokens / 2 * batch.response_mask, entropies=tokens % 7 / 3 * batch.response_mask)


def score_reference(batch):
    return TokenScores(logprobs=score(batch).logprobs - 1, entropies=score(batch).entropies)


def build(trees, reference=None, **options):
    options = {"advantage_estimator": GroupZScore(), "questions_per_step": len(trees)} | options
    return experience_builder(**options).build(trees, score, reference)


def rows_of(minibatch):
    """(group, tokens) -> the numbers of each response token, without padding."""
    found = {}
    for batch in minibatch.micro_batches:
        for row, length in enumerate(batch.lengths.tolist()):
            if length:
                mask = batch.response_mask[row]
                names = ("old_logprobs", "old_entropies", "advantages", "sampler_logprobs", "kl_coefficients")
                key = (int(batch.group_index[row]), tuple(batch.input_ids[row, :length].tolist()))
                numbers = {name: getattr(batch, name) for name in names}
                found[key] = {name: values[row][mask] for name, values in numbers.items() if values is not None}
    return found


PATH = [policy_turn(7, 8), tool_turn(9), policy_turn(10)]


def test_advantages_are_standardised_within_each_group():
    # Group 0: mean 1/2, variance (4 * 1/4) / 3 = 1/3, so +-(1/2) / 0.57735 = +-0.866025.
    # Group 1: mean 2, variance ((-2)^2 + 0 + 0 + 2^2) / 3 = 8/3, so +-2 / 1.63299 = +-1.224745 and 0.
    paths = [[policy_turn(10 + i)] for i in range(4)]
    trees = [make_tree(paths, [1.0, 0.0, 0.0, 1.0]), make_tree(paths, [0.0, 2.0, 2.0, 4.0], "other")]
    (minibatch,) = build(trees)
    found = {key: float(row["advantages"]) for key, row in rows_of(minibatch).items()}
    expected = {0: [0.866025, -0.866025, -0.866025, 0.866025], 1: [-1.224745, 0.0, 0.0, 1.224745]}
    for group, values in expected.items():
        for index, value in enumerate(values):
            # The estimator adds 1e-6 to the standard deviation.
            assert found[group, (3, 4, 10 + index)] == pytest.approx(value, abs=3e-6)


def test_column_t_speaks_about_token_t_plus_one():
    # Tokens 3 4 | 7 8 | 9 | 10: prompt, policy, tool, policy. Columns predict 4, 7, 8, 9, 10.
    (minibatch,) = build([make_tree([PATH, [policy_turn(5)]], [1.0, 0.0])])
    (batch,) = minibatch.micro_batches
    assert batch.input_ids.tolist() == [[3, 4, 7, 8, 9, 10], [3, 4, 5, 0, 0, 0]]
    assert batch.lengths.tolist() == [6, 3]
    assert batch.response_mask.int().tolist() == [[0, 1, 1, 0, 1], [0, 1, 0, 0, 0]]
    torch.testing.assert_close(batch.sampler_logprobs, -batch.input_ids[:, 1:] / 10 * batch.response_mask)
    torch.testing.assert_close(batch.sampler_entropies, batch.input_ids[:, 1:] / 100 * batch.response_mask)
    torch.testing.assert_close(batch.old_logprobs, -batch.input_ids[:, 1:] / 2 * batch.response_mask)
    assert batch.rewards.tolist() == [1.0, 0.0]
    assert not batch.advantages[~batch.response_mask].any()


def test_padding_has_the_given_token():
    (minibatch,) = build([make_tree([PATH, [policy_turn(5)]], [1.0, 0.0])], pad_token_id=6)
    assert minibatch.micro_batches[0].input_ids[1].tolist() == [3, 4, 5, 6, 6, 6]


@pytest.mark.parametrize("budget", [1, 20, 64, 200, 10_000])
def test_micro_batches_keep_the_token_budget_and_hold_every_trajectory_once(budget):
    trees = random_trees(5)
    (minibatch,) = build(trees, max_tokens_per_micro_batch=budget)
    for batch in minibatch.micro_batches:
        num_rows, width = batch.input_ids.shape
        assert num_rows == 1 or num_rows * width <= budget
        assert width == int(batch.lengths.max())
    found = sorted(
        (int(group), tuple(ids[:length].tolist()))
        for batch in minibatch.micro_batches
        for group, ids, length in zip(batch.group_index, batch.input_ids, batch.lengths, strict=True)
    )
    assert found == sorted(
        (group, tuple(path.token_ids)) for group, tree in enumerate(trees) for path in tree.trajectories()
    )


def test_a_larger_budget_needs_no_more_micro_batches():
    counts = [
        len(build(random_trees(5), max_tokens_per_micro_batch=budget)[0].micro_batches) for budget in (1, 64, 10_000)
    ]
    assert counts[0] == 20
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 1


PARTS = {
    "none": {},
    "entropy, group": {"shaping": EntropyShaping()},
    "entropy, step": {"shaping": EntropyShaping(scope="minibatch")},
    "modulation, mask, penalty": {
        "shaping": EntropyModulation(),
        "token_mask": TopEntropyMask(fraction=0.3),
        "kl_cov": KLCov(fraction=0.1),
    },
    "clip-cov": {"token_mask": ClipCov(fraction=0.2, lowest=0.1, highest=9.0)},
}
with_parts = pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)


@with_parts
def test_numbers_of_a_token_do_not_depend_on_the_micro_batches(parts):
    results = [
        rows_of(build(random_trees(3), max_tokens_per_micro_batch=budget, **parts)[0]) for budget in (10_000, 50, 1)
    ]
    for other in results[1:]:
        assert other.keys() == results[0].keys()
        for key, row in results[0].items():
            for name, values in row.items():
                torch.testing.assert_close(other[key][name], values)


@pytest.mark.parametrize("scope", ["group", "minibatch"])
def test_entropies_are_standardised_over_their_scope(scope):
    trees = random_trees(3)
    shaped = rows_of(build(trees, shaping=EntropyShaping(weight=0.3, scope=scope, guard=False))[0])
    plain = rows_of(build(trees)[0])
    for (group, tokens), row in shaped.items():
        pool = [
            value
            for (other, _), numbers in plain.items()
            if scope == "minibatch" or other == group
            for value in numbers["old_entropies"].tolist()
        ]
        mean = sum(pool) / len(pool)
        std = math.sqrt(sum((value - mean) ** 2 for value in pool) / (len(pool) - 1))
        expected = plain[group, tokens]["advantages"] * (1 + 0.3 * (row["old_entropies"] - mean) / std)
        torch.testing.assert_close(row["advantages"], expected, atol=1e-5, rtol=1e-5)


def test_shaping_scales_a_hand_worked_token():
    # Sampled tokens 7 and 10 with entropies (7 % 7)/3 = 0 and (10 % 7)/3 = 1 in both trajectories: mean 1/2, variance
    # (4 * 1/4) / 3 = 1/3, z = -+0.866025; advantages +-0.707106; the factors
    # are 1 -+ 0.2 * 0.866025 = 0.826795 and 1.173205.
    tree = make_tree([[policy_turn(7, 10)], [policy_turn(10, 7)]], [1.0, 0.0])
    found = rows_of(build([tree], shaping=EntropyShaping(weight=0.2))[0])
    first, second = found[0, (3, 4, 7, 10)]["advantages"], found[0, (3, 4, 10, 7)]["advantages"]
    torch.testing.assert_close(first, torch.tensor([0.584632, 0.829581]), atol=2e-6, rtol=0)
    torch.testing.assert_close(second, torch.tensor([-0.829581, -0.584632]), atol=2e-6, rtol=0)


def test_the_mask_sees_shaped_advantages_and_the_penalty_those_that_are_left():
    trees = random_trees(2)
    parts = {"shaping": EntropyShaping(weight=0.9), "token_mask": ClipCov(fraction=1.0, lowest=0.5, highest=9.0)}
    (step,), (shaped,) = build(trees, kl_cov=KLCov(fraction=0.2), **parts), build(trees, shaping=parts["shaping"])
    masked = parts["token_mask"](shaped.micro_batches)
    for batch, expected in zip(step.micro_batches, masked, strict=True):
        assert torch.equal(batch.advantages, expected)
    for batch, expected in zip(step.micro_batches, KLCov(fraction=0.2)(step.micro_batches), strict=True):
        assert torch.equal(batch.kl_coefficients, expected)


def test_old_log_probs_are_the_trainers_or_the_engines():
    trees = random_trees(2)
    for minibatch, names in (
        (build(trees)[0], ("logprobs", "entropies")),
        (build(trees, old_logprobs="sampler")[0], ("sampler_logprobs", "sampler_entropies")),
    ):
        for batch in minibatch.micro_batches:
            source = score(batch) if names[0] == "logprobs" else batch
            assert torch.equal(batch.old_logprobs, getattr(source, names[0]))
            assert torch.equal(batch.old_entropies, getattr(source, names[1]))


def test_the_trainer_is_not_asked_for_what_the_engine_has():
    def refuse(batch):
        raise AssertionError("no score is needed")

    builder = experience_builder(advantage_estimator=GroupZScore(), old_logprobs="sampler")
    assert len(builder.build(random_trees(2), refuse)) == 1


def build_counted(trees, is_stale=False, **options):
    """The optimiser steps, and the micro-batches that the trainer was asked to score."""
    asked = []

    def counted(batch):
        asked.append(batch)
        return score(batch)

    options = {"advantage_estimator": GroupZScore(), "questions_per_step": len(trees)} | options
    return experience_builder(**options).build(trees, counted, is_stale=is_stale), asked


ON_POLICY = {
    "one step": ({}, True),
    "two steps": ({"questions_per_step": 1}, False),
    "two passes": ({"num_epochs": 2}, False),
    "stale rollouts": ({"is_stale": True}, False),
    "entropy shaping": ({"shaping": EntropyShaping()}, False),
    "token mask": ({"token_mask": TopEntropyMask()}, False),
    "penalty": ({"kl_cov": KLCov()}, False),
}


@pytest.mark.parametrize(("options", "is_skipped"), ON_POLICY.values(), ids=ON_POLICY)
def test_the_scoring_pass_is_skipped_exactly_where_it_could_change_nothing(options, is_skipped):
    steps, asked = build_counted(random_trees(2), old_logprobs="auto", **options)
    batches = [batch for step in {id(step): step for step in steps}.values() for batch in step.micro_batches]
    assert len(asked) == (0 if is_skipped else len(batches))
    assert all((batch.old_logprobs is None) == is_skipped for batch in batches)
    assert all(batch.advantages is not None for batch in batches)


def test_recomputing_is_never_skipped():
    assert len(build_counted(random_trees(2), old_logprobs="recompute")[1]) == 1


def test_an_unknown_source_of_old_log_probs_is_refused():
    settings = ExperienceSettings()
    # Past the type checker of the tests, as a configuration file would.
    object.__setattr__(settings, "old_logprobs", "engine")
    with pytest.raises(ValueError, match="`old_logprobs` must be 'recompute', 'sampler' or 'auto', but got 'engine'"):
        settings.__post_init__()


def test_reference_log_probs_come_only_if_asked_for():
    trees = random_trees(2)
    assert all(batch.ref_logprobs is None for batch in build(trees)[0].micro_batches)
    for batch in build(trees, score_reference, max_tokens_per_micro_batch=50)[0].micro_batches:
        assert torch.equal(batch.ref_logprobs, score_reference(batch).logprobs)


def test_groups_without_a_difference_are_dropped_and_not_counted():
    paths = [[policy_turn(5)], [policy_turn(6, 7)]]
    trees = [make_tree(paths, rewards) for rewards in ([1.0, 1.0], [1.0, 0.0], [0.0, 0.0])]
    (kept,) = build(trees, drop_zero_variance_groups=True)
    (whole,) = build(trees)
    assert {group for group, _ in rows_of(kept)} == {1}
    assert (kept.global_num_sequences, kept.global_num_tokens) == (2, 3)
    assert (whole.global_num_sequences, whole.global_num_tokens) == (6, 9)


def test_a_step_without_any_difference_keeps_its_groups():
    trees = [make_tree([PATH, PATH], [1.0, 1.0])]
    (minibatch,) = build(trees, drop_zero_variance_groups=True)
    assert minibatch.global_num_sequences == 2
    assert not minibatch.micro_batches[0].advantages.any()


def test_steps_take_the_questions_in_order_and_count_their_own():
    trees = random_trees(5)
    minibatches = build(trees, questions_per_step=2, max_tokens_per_micro_batch=60)
    assert [{group for group, _ in rows_of(minibatch)} for minibatch in minibatches] == [{0, 1}, {2, 3}, {4}]
    for minibatch in minibatches:
        sampled = [int(batch.response_mask.sum()) for batch in minibatch.micro_batches]
        assert minibatch.global_num_tokens == sum(sampled)
        assert minibatch.global_num_sequences == sum(len(batch.lengths) for batch in minibatch.micro_batches)


def test_every_pass_takes_the_same_steps_and_is_scored_and_described_once():
    trees = random_trees(4)
    steps, asked = build_counted(trees, questions_per_step=2, num_epochs=3, old_logprobs="recompute")
    assert [id(step) for step in steps] == [id(step) for step in steps[:2]] * 3
    assert len(asked) == 2
    assert [ExperienceSettings(questions_per_step=2, num_epochs=n).num_steps(4) for n in (1, 3)] == [2, 6]
    once, thrice = (
        experience_builder(advantage_estimator=GroupZScore(), questions_per_step=2, num_epochs=n) for n in (1, 3)
    )
    found, expected = thrice.describe(thrice.build(trees, score)), once.describe(once.build(trees, score))
    assert found.pop("num_tokens_run") == 3 * expected.pop("num_tokens_run")
    assert found == expected


def test_standardisation_over_the_minibatch_ends_at_its_border():
    trees = random_trees(4)
    shaping = EntropyShaping(scope="minibatch")
    alone = rows_of(build(trees[:2], shaping=shaping)[0])
    among = rows_of(build(trees, shaping=shaping, questions_per_step=2)[0])
    for key, row in alone.items():
        torch.testing.assert_close(among[key]["advantages"], row["advantages"])


@pytest.mark.parametrize("name", ["questions_per_step", "num_epochs", "max_tokens_per_micro_batch"])
def test_sizes_must_be_positive(name):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, but got 0"):
        experience_builder(advantage_estimator=GroupZScore(), **{name: 0})


def test_a_question_whose_trajectories_are_empty_adds_nothing_to_the_step():
    module = built_module()
    empty = make_tree([[] for _ in range(4)], [-1.0] * 4, "long")
    (alone,) = build_experience(module, random_trees(1))
    (both,) = build_experience(module, [*random_trees(1), empty])
    assert both.global_num_tokens == alone.global_num_tokens
    assert sum(int(batch.response_mask.sum()) for batch in both.micro_batches) == both.global_num_tokens


def test_rows_stay_padded_unless_packing_is_asked_for():
    assert all(batch.packed is None for batch in build(branched_trees())[0].micro_batches)


@pytest.mark.parametrize("packing", ["flat", "tree"])
@pytest.mark.parametrize("budget", [1, 30, 64, 200, 10_000])
def test_packed_micro_batches_keep_the_token_budget_and_hold_every_trajectory_once(packing, budget):
    trees = branched_trees(4)
    (minibatch,) = build(trees, packing=packing, max_tokens_per_micro_batch=budget)
    for batch in minibatch.micro_batches:
        assert len(batch.packed.input_ids) <= budget or len(batch.lengths) == 1
    found = sorted(
        (int(group), tuple(ids[:length].tolist()))
        for batch in minibatch.micro_batches
        for group, ids, length in zip(batch.group_index, batch.input_ids, batch.lengths, strict=True)
    )
    assert found == sorted(
        (group, tuple(path.token_ids)) for group, tree in enumerate(trees) for path in tree.trajectories()
    )


@pytest.mark.parametrize("packing", ["flat", "tree"])
@with_parts
def test_packing_changes_no_number_of_a_trajectory(packing, parts):
    options = {"max_tokens_per_micro_batch": 60, **parts}
    expected = rows_of(build(branched_trees(), **options)[0])
    found = rows_of(build(branched_trees(), packing=packing, **options)[0])
    assert found.keys() == expected.keys()
    for key, row in expected.items():
        for name, values in row.items():
            torch.testing.assert_close(found[key][name], values)


def test_an_unknown_packing_is_refused():
    settings = ExperienceSettings()
    # Past the type checker of the tests, as a configuration file would.
    object.__setattr__(settings, "packing", "dense")
    with pytest.raises(ValueError, match="`packing` must be 'padded', 'flat' or 'tree', but got 'dense'"):
        settings.__post_init__()


def without_reward(tree, *places):
    for place in places:
        tree.leaves[place].reward = replace(tree.leaves[place].reward, is_scored=False)
    return tree


def test_trajectories_without_a_reward_are_neither_compared_nor_trained_on():
    paths = [[policy_turn(10 + i)] for i in range(4)]
    (masked,) = build([without_reward(make_tree(paths, [1.0, 0.0, 9.0, 1.0]), 2)])
    (without,) = build([make_tree([paths[0], paths[1], paths[3]], [1.0, 0.0, 1.0])])
    assert rows_of(masked) == rows_of(without)
    assert masked.global_num_sequences == 3


def test_a_group_without_any_reward_is_not_trained_on():
    paths = [[policy_turn(10 + i)] for i in range(2)]
    masked, scored = without_reward(make_tree(paths, [1.0, 0.0]), 0, 1), make_tree(paths, [0.0, 1.0])
    assert build([masked]) == [], "its step is left out"
    (both,) = build([masked, scored])
    assert [row["advantages"] for row in rows_of(both).values()] == [
        row["advantages"] for row in rows_of(build([scored])[0]).values()
    ]
    assert (both.global_num_tokens, both.global_num_sequences) == (2, 2)
