"""`aepo-diff` names the first thing in which two runs differ, and what of their configurations bears on it."""

import json
import math
import sys
from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch.utils.tensorboard import SummaryWriter

from aepo_lightning.app import diff
from aepo_lightning.app.first_difference import SavedRun, first_difference
from aepo_lightning.app.logged_scalars import read_scalars
from aepo_lightning.app.saved_config import save_config
from aepo_lightning.app.saved_run import training_rollouts
from aepo_lightning.contracts.reward import RewardOutput
from aepo_lightning.contracts.tool import ToolCall, ToolResult
from aepo_lightning.contracts.tree import BranchDecision
from aepo_lightning.errors import ConfigError
from aepo_lightning.rollout import RolloutJournal
from tests.support.training import make_tree, policy_turn, tool_turn


def tree(change=None, version=0):
    """Prompt 3 4; r/0 samples 5 6, gets 7, samples 8 9; r/1 samples 5, gets 7, samples 8."""
    made = make_tree(
        [[policy_turn(5, 6), tool_turn(7), policy_turn(8, 9)], [policy_turn(5), tool_turn(7), policy_turn(8)]],
        [0.0, 1.0],
    )
    for segment in made.segments:
        if segment.source == "tool":
            segment.tool_call = ToolCall(tool="search", text="x")
            segment.tool_result = ToolResult(text="found")
    made.decisions = [
        BranchDecision(
            seed_path=leaf.seed_path, root=0, turn=1, entropy=0.5, initial_entropy=0.25, consecutive_branches=0,
            num_wanted=0, num_opened=0,
        )
        for leaf in made.leaves
    ]  # fmt: skip
    made.weights_version = version
    if change is not None:
        change(made)
    return made


def saved(folder, *iterations, scalars=None, weights=None):
    for number, trees in enumerate(iterations):
        for each in trees:
            RolloutJournal(folder / "rollouts").append(f"train-{number:05d}-rank0", each)
    for version, value in (weights or {}).items():
        path = folder / "rollouts" / "weights" / f"{version:08d}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"a.weight": torch.full((2,), value), "b.weight": torch.zeros(1)}, path)
    return SavedRun(folder=folder, scalars=scalars or {})


def decode(tokens):
    return " ".join(map(str, tokens))


def found(tmp_path, one, other):
    return first_difference(saved(tmp_path / "one", *one), saved(tmp_path / "other", *other), decode)


def token(made):
    made.segments[6].token_ids = [6]  # r/1, token 4


def logprob(made):
    made.segments[3].logprobs = [-0.8, -0.75]


def result(made):
    made.segments[2].tool_result = ToolResult(text="nothing")


def decision(made):
    made.decisions[0] = replace(made.decisions[0], num_wanted=1, num_opened=1)


def reward(made):
    made.leaves[1].reward = RewardOutput(reward=0.5, is_correct=False, is_well_formed=True)


def budget(made):
    made.global_budget = 1


# Two changes at once: what comes first along the trajectories is named.
@pytest.mark.parametrize(
    ("change", "kind", "where", "one", "other"),
    [
        (token, "token", "trajectory r/1, token 4", "8 '8' (log-prob -0.8)", "6 '6' (log-prob -0.8)"),
        (logprob, "log-prob", "trajectory r/0, token 6", "9 '9' (log-prob -0.9)", "9 '9' (log-prob -0.75)"),
        (result, "tool result", "trajectory r/0", "'found'", "'nothing'"),
        (decision, "decision", "after call 1", "0 of 0 branches (H 0.5, H0 0.25, l 0)", "1 of 1 branches (H 0.5, H0 "),
        (reward, "reward", "trajectory r/1", "1.0", "0.5"),
        (budget, "budget", "question 'q'", "m = 2", "m = 1"),
        (lambda made: (logprob(made), token(made)), "token", "trajectory r/1, token 4", "8 '8'", "6 '6'"),
    ],
    ids=["token", "log-prob", "result", "decision", "reward", "budget", "earliest"],
)
def test_the_first_difference_of_two_trees_is_named(tmp_path, change, kind, where, one, other):
    first, num_same = found(tmp_path, [[tree()], [tree()]], [[tree()], [tree(change)]])
    assert (first.kind, num_same) == (kind, 1)
    assert first.where.startswith("train-00001-rank0, question 'q'")
    assert where in first.where
    assert first.one.startswith(one)
    assert first.other.startswith(other)


def test_runs_without_a_difference_have_none_as_far_as_both_have_gone(tmp_path):
    assert found(tmp_path, [[tree()], [tree()]], [[tree()]]) == (None, 1)


def test_what_only_a_clock_measures_is_no_difference(tmp_path):
    def clock(made):
        made.segments[2].tool_result = ToolResult(text="found", duration_s=9.0)
        made.segments[2].span_s = (1.0, 10.0)

    assert found(tmp_path, [[tree()]], [[tree(clock)]]) == (None, 1)


def test_runs_of_other_lengths_and_numbers_are_compared_where_both_have_rollouts(tmp_path):
    one, other = saved(tmp_path / "one", [tree()], [tree()], [tree()]), saved(tmp_path / "other", [tree()], [tree()])
    RolloutJournal(tmp_path / "other" / "rollouts").path("train-00000-rank0").unlink()
    assert first_difference(one, other, decode) == (None, 1)
    assert list(diff._unseen([one, other])) == [
        "The first run has 2 rollouts that the other has not.",
        f"The first run has no losses and gradients in {tmp_path}/one/tensorboard.",
        f"The second run has no losses and gradients in {tmp_path}/other/tensorboard.",
    ]


def test_rollouts_are_in_order_for_any_number_of_ranks(tmp_path):
    names = ["train-00002-rank0", "train-00010-rank2", "train-00010-rank10", "train-100000-rank0-round1"]
    for name in (*reversed(names), "val-00000-rank0"):
        RolloutJournal(tmp_path / "rollouts").append(name, tree())
    assert training_rollouts(tmp_path) == names
    assert training_rollouts(tmp_path, 10) == names[1:3]


# Trees of a rollout that was cut off stand as they were finished, and some are not there: no difference.
@pytest.mark.parametrize(("change", "expected"), [(None, (None, 0)), (token, ("token", 0))], ids=["same", "token"])
def test_a_run_that_was_killed_is_compared_as_far_as_it_came(tmp_path, change, expected):
    asked = [asking("a"), asking("b", change), asking("c")]
    one, other = saved(tmp_path / "one", asked), saved(tmp_path / "other", [asking("c"), asking("b")])
    RolloutJournal(tmp_path / "other" / "rollouts").steps_path("train-00000-rank0").touch()
    first, num_same = first_difference(one, other, decode)
    assert (first and first.kind, num_same) == expected
    unseen = [line for line in diff._unseen([one, other]) if "cut off" in line]
    assert unseen == ["train-00000-rank0 of the second run was cut off: what there is of it counts."]


def asking(question_id, change=None):
    made = tree(change)
    made.question = replace(made.question, question_id=question_id)
    return made


def test_another_prompt_is_a_difference_at_its_place(tmp_path):
    def prompt(made):
        made.segments[0].token_ids = [3, 9]

    first, _ = found(tmp_path, [[tree()]], [[tree(prompt)]])
    assert (first.kind, first.where) == ("question", "train-00000-rank0, question 'q', prompt, token 1")
    assert (first.one, first.other, first.context) == ("4 '4'", "9 '9'", "3")


def test_what_is_no_number_in_both_runs_is_the_same(tmp_path):
    numbers, trees = {"train/loss": {0: math.nan}}, ([tree()], [tree(version=1)])
    pair = [saved(tmp_path / name, *trees, scalars=numbers, weights={1: math.nan}) for name in ("one", "other")]
    assert first_difference(*pair, decode) == (None, 2)


def test_updates_come_between_the_trees_before_and_the_weights_after(tmp_path):
    numbers = {"train/loss": {0: 1.0, 1: 2.0}, "train/grad_norm": {0: 3.0, 1: 4.0}}
    others = {"train/loss": {0: 1.0, 1: 2.0}, "train/grad_norm": {0: 3.0, 1: 5.0}}
    trees = [[tree()], [tree(version=2)]]
    one = saved(tmp_path / "one", *trees, scalars=numbers, weights={0: 0.5, 2: 1.0})
    other = saved(tmp_path / "other", [tree()], [tree(token, version=2)], scalars=others, weights={0: 0.5, 2: 2.0})
    first, num_same = first_difference(one, other, decode)
    assert (first.kind, first.where, first.one, first.other, num_same) == (
        "gradient", "train/grad_norm, optimiser step 1", "4", "5", 1
    )  # fmt: skip
    first, _ = first_difference(one, replace(other, scalars=numbers), decode)
    assert (first.kind, first.where) == (
        "weights", "the weights after 2 optimiser steps: 1 of 2 tensors, the first a.weight"
    )  # fmt: skip


def test_numbers_are_read_from_the_files_of_tensorboard(tmp_path):
    writer = SummaryWriter(str(tmp_path / "tensorboard"))
    for step, value in enumerate((0.5, 0.25)):
        writer.add_scalar("train/loss", value, step)
    writer.close()
    assert read_scalars(tmp_path, ("train/loss", "train/none")) == {"train/loss": {0: 0.5, 1: 0.25}}
    assert read_scalars(tmp_path / "none", ("train/loss",)) == {}


def test_the_command_tells_what_the_configurations_say(tmp_path, monkeypatch, capsys):
    model = {"_target_": "aepo_lightning.policy.source.PretrainedPolicy", "name_or_path": "./none"}
    for name, change, tau in (("one", None, 0.5), ("other", decision, 0.25)):
        saved(tmp_path / name, [tree(change)])
        cfg = {
            "model": model,
            "algorithm": {"branch_policy": {"tau": tau}},
            "module": {},
            "seed": 0,
            "reward": {"x": tau},
            "num_threads": int(tau * 4),
            "system": f"be\nshort {tau}",
        }
        save_config(OmegaConf.create(cfg), tmp_path / name / "config.yaml")
    words = ["aepo-diff", str(tmp_path / "one"), str(tmp_path / "other")]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        diff.main()
    assert ended.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Rollouts that are the same: 0. The first difference is a decision:"
    assert lines[-8:] == [
        f"The first run has no losses and gradients in {tmp_path}/one/tensorboard.",
        f"The second run has no losses and gradients in {tmp_path}/other/tensorboard.",
        "Of the configurations, this bears on it:",
        "  algorithm.branch_policy.tau: 0.5 -> 0.25",
        "They also differ in:",
        "  reward.x: 0.5 -> 0.25",
        "  num_threads: 2 -> 1",
        "  system: 'be\\nshort 0.5' -> 'be\\nshort 0.25'",
    ]
    monkeypatch.setattr(sys, "argv", [words[0], words[1], words[1], "--json"])
    with pytest.raises(SystemExit) as ended:
        diff.main()
    assert ended.value.code == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told.pop("unseen")) == 2
    assert told == {"first": None, "num_same": 1, "near": [], "others": []}


def test_runs_without_trees_are_compared_by_their_updates_and_others_are_refused(tmp_path, monkeypatch):
    model = {"_target_": "aepo_lightning.policy.source.PretrainedPolicy", "name_or_path": "./none"}
    numbers = {name: {"train/loss": {0: 1.0, 1: value}} for name, value in (("one", 2.0), ("other", 3.0))}
    for name in numbers:
        (tmp_path / name).mkdir()
        save_config(OmegaConf.create({"model": model}), tmp_path / name / "config.yaml")
    monkeypatch.setattr(diff, "read_scalars", lambda folder, _: numbers.get(folder.name, {}))
    result = diff.compare_runs(tmp_path / "one", tmp_path / "other")
    assert (result.first.kind, result.first.where) == ("loss", "train/loss, optimiser step 1")
    numbers.clear()
    with pytest.raises(ConfigError, match="must have rollouts or optimiser steps of the same number"):
        diff.compare_runs(tmp_path / "one", tmp_path / "other")
