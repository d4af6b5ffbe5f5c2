"""What `aepo-explain` says of a token adds up to the loss of its step, for every objective and packing."""

import json
import sys
from argparse import Namespace
from dataclasses import replace

import pytest
import torch

from aepo_lightning.advantages import EntropyShaping, KLCov
from aepo_lightning.app import explain
from aepo_lightning.app.explained_token import explain_trajectory
from aepo_lightning.app.logged_scalars import read_scalars
from aepo_lightning.app.relived_step import RelivedStep, relive
from aepo_lightning.app.view.updates import read_updates, relive_updates, updates_path
from aepo_lightning.errors import ConfigError
from aepo_lightning.objectives import Cispo, ClippedSurrogate, ImportanceCorrection, KLPenalty, LossAggregation
from aepo_lightning.rollout import RolloutJournal
from tests.support.commands import run_command
from tests.support.training import (
    build_experience,
    built_module,
    make_tree,
    perturb,
    policy_turn,
    random_trees,
    tool_turn,
)

TREES = random_trees(2, group=2, longest=5)


def step(objective=None, packing="padded", trees=TREES, **options):
    """A step under weights that are no longer those which its data are of."""
    module = built_module(objective=objective or ClippedSurrogate(preserve_high=1.0), **options)
    parts = {"shaping": EntropyShaping(), "kl_cov": KLCov(coefficient=0.5, fraction=0.5), "packing": packing}
    (minibatch,) = build_experience(module, trees, max_tokens_per_micro_batch=80, **parts)
    perturb(module.network)
    return RelivedStep(
        module=module, policy=module.policy, minibatch=minibatch, trees=trees, iteration=0, step=0, logged_loss=None
    )  # fmt: skip


def explained(relived):
    return [explain_trajectory(relived, tree, leaf) for tree in TREES for leaf in tree.leaves]


NEUTRAL = {"entropy_bonus": 0, "kl_penalty": 0, "distance_penalty": 0, "importance_weight": 1}


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"packing": "tree"}, marks=pytest.mark.slow),
        {"objective": ClippedSurrogate(ratio_level="sequence", clip_range_low=3e-4, clip_range_high=4e-4)},
        pytest.param(
            {"objective": Cispo(clip_range_high=0.2), "aggregation": LossAggregation(mode="seq-mean-token-mean")},
            marks=pytest.mark.slow,
        ),
        {"kl_penalty": KLPenalty(coefficient=0.3), "entropy_coefficient": 0.1},
        pytest.param(
            {"importance_correction": ImportanceCorrection(mode="truncated", cap=1.5)}, marks=pytest.mark.slow
        ),
    ],
    ids=["ebpo", "tree", "gspo", "cispo", "penalties", "correction"],
)
def test_the_numbers_of_all_tokens_add_up_to_the_loss(options):
    relived = step(**options)
    module, minibatch = relived.module, relived.minibatch
    with torch.no_grad():
        expected = sum(float(module.policy_loss(module.network, b, minibatch)[0]) for b in minibatch.micro_batches)
    found = explained(relived)
    tokens = [token for each in found for token in each.tokens]
    on = {name for name, value in NEUTRAL.items() if any(getattr(token, name) != value for token in tokens)}
    expected_on = {
        "kl_penalty": "kl_penalty",
        "entropy_coefficient": "entropy_bonus",
        "importance_correction": "importance_weight",
    }
    assert on == {"distance_penalty", *(name for key, name in expected_on.items() if key in options)}
    assert any(token.advantage != token.advantage_before_shaping for token in tokens)
    assert any(token.clip_state.startswith("beyond") for token in tokens)
    assert sum(token.share for each in found for token in each.tokens) == pytest.approx(expected, rel=1e-5, abs=1e-7)
    for each in found:
        assert each.step_loss == pytest.approx(expected, rel=1e-5, abs=1e-7)
        assert each.share == pytest.approx(sum(token.share for token in each.tokens))
        for token in each.tokens:
            parts = token.objective - token.entropy_bonus + token.kl_penalty + token.distance_penalty
            assert token.loss == pytest.approx(parts * token.trajectory_weight, rel=1e-5, abs=1e-7)


def test_tokens_beyond_a_bound_are_told_with_the_gradient_that_they_keep():
    tokens = [token for each in explained(step()) for token in each.tokens]
    above = [token for token in tokens if token.clip_state == "beyond the upper bound, gradient kept"]
    below = [token for token in tokens if token.clip_state == "beyond the lower bound, no gradient"]
    inside = [token for token in tokens if token.clip_state == "within the range"]
    assert above
    assert below
    assert len(above) + len(below) + len(inside) == len(tokens)
    assert all(token.advantage > 0 and token.importance_ratio > 1.2 for token in above)
    assert all(token.gradient_factor == pytest.approx(1.2) for token in above)
    assert all(token.advantage < 0 and token.importance_ratio < 0.8 for token in below)
    assert all(token.gradient_factor == 0 for token in below)
    assert all(token.gradient_factor == pytest.approx(token.importance_ratio) for token in inside if token.advantage)


def test_a_token_is_told_from_its_entropy_to_the_loss():
    relived = step()
    found = explain_trajectory(relived, TREES[0], explain.find_leaf(TREES[0], "r/1"))
    token = explain.find_token(found, found.tokens[0].place)
    lines = list(explain.told(relived, found, token))
    heads = ("token", "entropy", "log-prob", "ratio", "advantage", "importance weight", "loss", "", "adds")
    assert [line[: len(head)] for line, head in zip(lines, heads, strict=False)] == list(heads)
    assert lines[-1] == "  logged             not in this folder"
    logged = replace(relived, logged_loss=found.step_loss)
    assert list(explain.told(logged, found, token))[-1].endswith("the same up to rounding")
    other = replace(relived, logged_loss=found.step_loss + 0.5)
    assert "another number, by 0.5" in list(explain.told(other, found, token))[-1]
    assert len(list(explain.listed(found))) == len(found.tokens) + 2


def test_what_is_not_there_is_named_with_what_is():
    with pytest.raises(ConfigError, match=r"`--leaf` must be one of r/0, r/1, or a number below 2"):
        explain.find_leaf(TREES[0], "r/9")
    found = explained(step())[0]
    last = found.num_response_tokens - 1
    for place in (-1, last + 1):
        with pytest.raises(ConfigError, match=f"`--token` must be a place in the response, from 0 to {last}, but got"):
            explain.find_token(found, place)


def tree_of(*rewards):
    """Trajectories of the same tokens, of which the third is of a tool."""
    return make_tree([[policy_turn(5, 6), tool_turn(7), policy_turn(8)] for _ in rewards], list(rewards))


def test_a_token_of_a_tool_result_is_refused_with_those_beside_it():
    relived = step(trees=[tree_of(0.0, 1.0)])
    found = explain_trajectory(relived, relived.trees[0], relived.trees[0].leaves[0])
    assert [each.place for each in found.tokens] == [0, 1, 3]
    with pytest.raises(ConfigError, match=r"that at 2 is of a tool result.*The nearest that are: 1, 3\."):
        explain.find_token(found, 2)


def test_trajectories_of_the_same_tokens_are_told_apart():
    relived = step(trees=[tree_of(0.0, 1.0, 0.25)])
    found = [explain_trajectory(relived, relived.trees[0], leaf) for leaf in relived.trees[0].leaves]
    assert [each.reward for each in found] == [0.0, 1.0, 0.25]
    assert sum(each.share for each in found) == pytest.approx(found[0].step_loss, rel=1e-5, abs=1e-7)


def test_a_trajectory_without_a_reward_is_refused_with_the_reason():
    unscored = tree_of(0.0, 1.0, 0.5)
    unscored.leaves[2].reward = replace(unscored.leaves[2].reward, is_scored=False, reason="The judge is down.")
    relived = step(trees=[unscored])
    with pytest.raises(ConfigError, match=r"this one was not: it has no reward \(The judge is down\.\)"):
        explain_trajectory(relived, unscored, unscored.leaves[2])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"question": "a", "leaf": "r/1", "token": 3}, ("a", "r/1", 3, None)),
        ({"node": "view/train-00002.html#q=q0&leaf=1&token=2"}, ("q0", "r/1", 2, 2)),
        ({"node": "q=q0&seg=0", "token": 1}, ("q0", "r/0", 1, 2)),
    ],
)
def test_a_trajectory_is_named_in_parts_or_as_a_node(tmp_path, words, expected):
    tree = replace(TREES[0], question=replace(TREES[0].question, question_id="q0"))
    RolloutJournal(tmp_path / "rollouts").append("train-00002-rank0", tree)
    unset = dict.fromkeys(("node", "question", "leaf", "token", "iteration"))
    assert explain.asked(Namespace(folder=tmp_path, **(unset | words))) == expected
    with pytest.raises(ConfigError, match="A trajectory must be named, but got none"):
        explain.asked(Namespace(folder=tmp_path, **unset))


SMALL = [
    "coldstart.num_steps=20",
    "data.questions_per_iteration=8",
    "data.num_val_questions=2",
    "experience.questions_per_step=4",
    "trainer.max_epochs=2",
    "callbacks.checkpoint.every_n_epochs=1",
    "callbacks.checkpoint.keep=-1",
    "model.architecture.num_hidden_layers=1",
]


ALL_PARTS = [
    "algorithm.kl_penalty.coefficient=0.1",
    "module.importance_correction.mode=truncated",
    "module.importance_correction.cap=1.001",
    "module.entropy_coefficient=0.01",
    "experience.num_epochs=2",
]


@pytest.mark.slow
def test_a_run_with_every_part_of_the_loss_logs_what_the_parts_add_up_to(tmp_path):
    done = run_command("train.py", *SMALL, *ALL_PARTS, f"run_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    losses = read_scalars(tmp_path, ("train/loss",))["train/loss"]
    trees = list(RolloutJournal(tmp_path / "rollouts").read("train-00001-rank0"))
    for tree, place in ((trees[0], 4), (trees[4], 5)):  # two steps in each of two passes go before
        relived = relive(tmp_path, tree.question.question_id)
        own = next(each for each in relived.trees if each.question.question_id == tree.question.question_id)
        found = explain_trajectory(relived, own, own.leaves[0])
        assert (relived.step, relived.logged_loss) == (place, losses[place])
        assert found.step_loss == pytest.approx(losses[place], rel=1e-4, abs=1e-6)
        assert all(token.entropy_bonus > 0 for token in found.tokens)
        assert any(token.kl_penalty > 0 for token in found.tokens)


@pytest.mark.slow
def test_every_step_of_a_run_is_made_again_with_its_logged_loss(tmp_path, monkeypatch, capsys):
    done = run_command("train.py", *SMALL, f"run_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    losses = read_scalars(tmp_path, ("train/loss",))["train/loss"]
    found = {}
    for iteration in (0, 1):
        trees = list(RolloutJournal(tmp_path / "rollouts").read(f"train-{iteration:05d}-rank0"))
        for tree in (trees[0], trees[4]):
            relived = relive(tmp_path, tree.question.question_id)
            own = next(each for each in relived.trees if each.question.question_id == tree.question.question_id)
            found[relived.step] = explain_trajectory(relived, own, own.leaves[0]).step_loss
            last = tree.question.question_id
    assert found == pytest.approx(losses, rel=1e-4, abs=1e-6)
    assert sorted(found) == [0, 1, 2, 3]
    words = ["aepo-explain", str(tmp_path), "--question", last, "--leaf", "0", "--token", "0", "--json"]
    monkeypatch.setattr(sys, "argv", words)
    explain.main()
    told = json.loads(capsys.readouterr().out)
    assert told["step"] == 3
    assert len(told["tokens"]) == 1
    done = relive_updates(tmp_path, "train-00001")
    assert (done.num_steps, done.num_trees, done.problem) == (2, 8, "")
    updates = read_updates(updates_path(tmp_path, "train-00001")).values()
    assert {each.step: each.loss for each in updates} == pytest.approx({2: losses[2], 3: losses[3]}, rel=1e-4, abs=1e-6)
    with pytest.raises(ConfigError, match=r"has none of 'x'\. The first are '"):
        relive(tmp_path, "x")
    with pytest.raises(ConfigError, match="`--question` must be asked in iteration 0"):
        relive(tmp_path, last, 0)
    with pytest.raises(ConfigError, match=r"`--iteration` must have trees .* but 9 has none"):
        relive(tmp_path, last, 9)
    RolloutJournal(tmp_path / "rollouts").steps_path("train-00001-rank0").touch()
    with pytest.raises(ConfigError, match="`--iteration` must be one whose rollout is over, but 1 was cut off"):
        relive(tmp_path, last)
    RolloutJournal(tmp_path / "rollouts").steps_path("train-00001-rank0").unlink()
    (tmp_path / "checkpoints" / "iteration0000.ckpt").unlink()
    done = relive_updates(tmp_path, "train-00001")
    assert (done.num_steps, done.num_trees) == (1, 4)
    assert "The state of the optimizer after 2 steps" in done.problem
    with pytest.raises(ConfigError, match="The state of the optimizer after 2 steps must have been kept"):
        relive(tmp_path, last)
