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
from tests.support.training import build_experience, built_module, perturb, random_trees

TREES = random_trees(2, group=2, longest=5)


def step(objective=None, packing="padded", **options):
    """A step under weights that are no longer those which its data are of."""
    module = built_module(objective=objective or ClippedSurrogate(preserve_high=1.0), **options)
    parts = {"shaping": EntropyShaping(), "kl_cov": KLCov(coefficient=0.5, fraction=0.5), "packing": packing}
    (minibatch,) = build_experience(module, TREES, max_tokens_per_micro_batch=80, **parts)
    perturb(module.network)
    return RelivedStep(
        module=module, policy=module.policy, minibatch=minibatch, trees=TREES, iteration=0, step=0, logged_loss=None
    )  # fmt: skip


def explained(relived):
    return [explain_trajectory(relived, tree, leaf) for tree in TREES for leaf in tree.leaves]


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
    with pytest.raises(ConfigError, match="`--token` must be the place of a token that the policy sampled"):
        explain.find_token(found, 10_000)


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
    (tmp_path / "checkpoints" / "iteration0000.ckpt").unlink()
    done = relive_updates(tmp_path, "train-00001")
    assert (done.num_steps, done.num_trees) == (1, 4)
    assert "The state of the optimizer after 2 steps" in done.problem
    with pytest.raises(ConfigError, match="The state of the optimizer after 2 steps must have been kept"):
        relive(tmp_path, last)
