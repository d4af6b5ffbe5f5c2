"""Which weights replay an evaluation: those that grew its trees, or none."""

from dataclasses import replace

import pytest
from omegaconf import OmegaConf

from aepo_lightning.app.evaluation.replay import check_steps, replay_evaluation, run_of_own
from aepo_lightning.app.saved_config import save_config
from aepo_lightning.errors import ConfigError
from aepo_lightning.evaluation.evaluated_policy import evaluated
from tests.support.training import make_tree, small_policy


def test_a_run_that_was_trained_on_is_refused_and_its_checkpoint_is_asked_for():
    policy = replace(evaluated(small_policy()), name="quick/run", global_step=6)
    trees = [make_tree([], []) for _ in range(2)]
    for tree in trees:
        tree.weights_version = 6
    check_steps(trees, policy)
    trees[1].weights_version = 4
    with pytest.raises(
        ConfigError, match=r"after 4, 6 optimiser steps, but .* quick/run are .* 6\. Name the checkpoint"
    ):
        check_steps(trees, policy)


def test_a_run_or_its_checkpoint_replays_the_evaluation_of_its_own_questions(tmp_path):
    run = tmp_path / "run"
    newest, other = (run / "checkpoints" / f"iteration000{number}.ckpt" for number in (1, 0))
    newest.parent.mkdir(parents=True)
    (run / "config.yaml").write_text("seed: 0\n")
    other.write_text("")

    def place(policy, checkpoint=None):
        return run_of_own(OmegaConf.create({"evaluated": {"run": "gone", "checkpoint": checkpoint}}), policy)

    assert place(str(run)) == (run, None)
    assert place(str(run), f"elsewhere/{newest.name}") == (run, newest)
    assert place(str(other)) == place(str(other), str(newest)) == (run, other)
    with pytest.raises(ConfigError, match=r"must be named, but got gone"):
        place(None)


def test_what_is_not_there_is_said_before_a_model_is_read(tmp_path):
    def keep(**fields):
        save_config(OmegaConf.create({"evaluated": {"source": "gone"}, **fields}), tmp_path / "evaluation.yaml")

    keep()
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "rollouts" / "riddles.jsonl").write_text("")
    with pytest.raises(ConfigError, match=r"one of the files in .*rollouts \(riddles\), but got \['others'\]"):
        list(replay_evaluation(tmp_path, names=["others"]))
    with pytest.raises(ConfigError, match=r"No tree in .* fits"):
        list(replay_evaluation(tmp_path))
    keep(rejudged="runs/eval/a")
    with pytest.raises(ConfigError, match=r"new verdicts and no trajectories\. Replay runs/eval/a"):
        list(replay_evaluation(tmp_path))
