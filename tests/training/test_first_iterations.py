"""A run in which nothing can be learned says so in its first iterations, each finding once and in one line."""

import logging
import re
from dataclasses import replace

import pytest
import torch

from aepo_lightning.contracts.batch import Minibatch
from aepo_lightning.contracts.generation import StopReason
from aepo_lightning.contracts.reward import RewardOutput
from aepo_lightning.contracts.tool import ToolResult, ToolStatus
from aepo_lightning.rollout import summarise_trees
from aepo_lightning.training.first_iterations import FirstIterations
from aepo_lightning.training.metrics import prefixed
from tests.support.training import empty_batch, make_datamodule, make_run, make_tree, policy_turn, small_policy

TWO = [[policy_turn(5)], [policy_turn(6)]]


def look(tree, watch=None, iteration=0, advantage=1.0):
    batch = empty_batch()
    batch.advantages = torch.full_like(batch.advantages, advantage)
    steps = [Minibatch(micro_batches=[batch], global_num_tokens=4, global_num_sequences=1)]
    metrics = prefixed("rollout", summarise_trees([tree]).means())
    (watch or FirstIterations()).look(iteration, [tree], metrics, steps)


def with_call(status, text="Error: Malformed call: no name."):
    tree = make_tree(TWO, [0.0, 1.0])
    tree.segments[1].tool_result = ToolResult(text=text, status=status)
    tree.segments[1].tool_call = object()
    return tree


def unformed(**changes):
    tree = make_tree(TWO, [-1.0, 0.0])
    for leaf in tree.leaves:
        output = RewardOutput(reward=leaf.reward.reward, is_correct=False, is_well_formed=False, reason="No box.")
        leaf.reward = replace(output, **changes)
    return tree


def endless(reason):
    tree = make_tree(TWO, [0.0, 1.0])
    for leaf in tree.leaves:
        leaf.stop_reason = StopReason(reason)
    return tree


CASES = {
    "malformed": (
        lambda: with_call(ToolStatus.MALFORMED),
        "every tool call is malformed. Most often: Error: Malformed",
    ),
    "unknown": (lambda: with_call(ToolStatus.UNKNOWN_TOOL), "every tool call is malformed"),
    "format": (unformed, "every answer breaks the reward's format. Most often: No box. None calls a tool"),
    "length": (lambda: endless("length"), "no trajectory ended by itself"),
    "limit": (lambda: endless("call_limit"), "no trajectory ended by itself"),
    "one": (lambda: make_tree(TWO[:1], [1.0]), "has one trajectory"),
    "variance": (lambda: make_tree(TWO, [0.5, 0.5]), r"earn the same \(0.5\)"),
}


@pytest.mark.parametrize("name", CASES)
def test_each_finding_is_one_line_and_said_once(name, caplog):
    make, line = CASES[name]
    watch = FirstIterations()
    with caplog.at_level(logging.WARNING):
        look(make(), watch)
        look(make(), watch, iteration=1)
    (record,) = caplog.records
    assert record.message.count("\n") == 0
    assert re.search(line, record.message)


def test_a_step_without_advantages_trains_nothing(caplog):
    look(make_tree(TWO, [0.0, 1.0]), advantage=0.0)
    assert "nothing is trained" in caplog.text


def test_what_can_be_learned_from_is_no_finding(caplog):
    look(make_tree(TWO, [0.0, 1.0]))
    look(with_call(ToolStatus.OK))
    assert not caplog.records


def test_later_iterations_may_have_nothing_to_learn_from(caplog):
    look(make_tree(TWO, [0.5, 0.5]), iteration=3)
    assert not caplog.records


async def always_one(_sample):
    return RewardOutput(reward=1.0, is_correct=True, is_well_formed=True)


def test_a_run_says_it_by_itself(tmp_path, caplog):
    make_run(tmp_path, datamodule=make_datamodule(small_policy(), reward=always_one)).fit()
    assert [record.message for record in caplog.records if "earn the same (1)" in record.message]
