"""A run in which nothing can be learned says so in its first iterations, each finding once and in one line."""

import logging
import re
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only

from aepo_lightning.chat_formats import TagFormat
from aepo_lightning.contracts.batch import Minibatch
from aepo_lightning.contracts.generation import StopReason
from aepo_lightning.contracts.reward import RewardOutput
from aepo_lightning.contracts.tool import ToolCall, ToolResult, ToolStatus
from aepo_lightning.contracts.tree import BranchDecision
from aepo_lightning.errors import RewardError
from aepo_lightning.rewards import PaperReward
from aepo_lightning.rollout import summarise_trees
from aepo_lightning.tools import DocumentSearch, ToolRuntime
from aepo_lightning.training.first_iterations import FirstIterations, refuse_unscored, warn_if_unscored
from aepo_lightning.training.metrics import prefixed
from tests.support.training import empty_batch, make_datamodule, make_run, make_tree, policy_turn, small_policy

TWO = [[policy_turn(5)], [policy_turn(6)]]


def look(tree, watch=None, iteration=0, advantage=1.0, tools=None):
    batch = empty_batch()
    batch.advantages = torch.full_like(batch.advantages, advantage)
    steps = [Minibatch(micro_batches=[batch], global_num_tokens=4, global_num_sequences=1)]
    metrics = prefixed("rollout", summarise_trees([tree]).means())
    (watch or FirstIterations()).look(iteration, [tree], metrics, steps, tools)


def with_call(status, text="Error: Malformed call: no name."):
    tree = make_tree(TWO, [0.0, 1.0])
    tree.segments[1].tool_result = ToolResult(text=text, status=status)
    tree.segments[1].tool_call = ToolCall(tool="search", text="?")
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


def decided(number, num_wanted, branch_budget=2):
    tree = make_tree(TWO, [0.0, 1.0])
    tree.branch_budget = branch_budget
    tree.decisions = [
        BranchDecision(
            seed_path=("r", 0), root=0, turn=turn, entropy=1.0, initial_entropy=0.5, consecutive_branches=0,
            num_wanted=int(turn < num_wanted), num_opened=0,
        )
        for turn in range(number)
    ]  # fmt: skip
    return tree


CASES = {
    "malformed": (
        lambda: with_call(ToolStatus.MALFORMED),
        "every tool call is malformed. Most often: Error: Malformed.* of its own for calls may need `rollout=hermes`",
    ),
    "unknown": (lambda: with_call(ToolStatus.UNKNOWN_TOOL), "every tool call is malformed"),
    "format": (unformed, "every answer breaks the reward's format. Most often: No box. See whether the prompt asks"),
    "length": (lambda: endless("length"), "no trajectory ended by itself"),
    "limit": (lambda: endless("call_limit"), "no trajectory ended by itself"),
    "one": (lambda: make_tree(TWO[:1], [1.0]), "has one trajectory"),
    "variance": (lambda: make_tree(TWO, [0.5, 0.5]), r"earn the same \(0.5\)"),
    "no branch": (lambda: decided(16, 0), r"no branch was opened after 16 tool results.*`algorithm.branch_policy`"),
    "all branches": (lambda: decided(16, 16), r"asked for after each of 16 tool results.*`algorithm.branch_policy`"),
}


@pytest.mark.parametrize("name", CASES)
def test_each_finding_is_one_line_and_said_once(name, caplog):
    make, line = CASES[name]
    watch = FirstIterations()
    with caplog.at_level(logging.WARNING):
        strength = 1e-8 if name in ("one", "variance") else 1.0
        look(make(), watch, advantage=strength)
        look(make(), watch, iteration=1, advantage=strength)
    (record,) = caplog.records
    assert record.message.count("\n") == 0
    assert re.search(line, record.message)


def test_a_terminal_obeys_nothing_of_what_is_quoted(caplog):
    look(with_call(ToolStatus.MALFORMED, text="Error: \x1b[2J \u202e gone"))
    assert "Most often: Error: \ufffd[2J \ufffd gone Compare" in caplog.text


def test_a_step_without_advantages_trains_nothing(caplog):
    look(make_tree(TWO, [0.0, 1.0]), advantage=0.0)
    assert "nothing is trained" in caplog.text


def test_what_can_be_learned_from_is_no_finding(caplog):
    for name in ("one", "variance"):  # as with advantages whitened over the step
        look(CASES[name][0]())
    look(make_tree(TWO, [0.0, 1.0]))
    look(with_call(ToolStatus.OK))
    for tree in (decided(16, 1), decided(16, 15), decided(15, 0), decided(15, 15), decided(16, 0, branch_budget=0)):
        look(tree)
    assert not caplog.records


def half(tree):
    """The first trajectory without the fault of the second."""
    first, second = tree.leaves
    first.stop_reason, first.reward = StopReason.EOS, replace(second.reward, reward=1.0, is_well_formed=True)
    return tree


@pytest.mark.parametrize("name", ["format", "length", "limit", "malformed", "unknown"])
def test_what_is_wrong_with_a_part_of_them_is_no_finding(name, caplog):
    tree = half(CASES[name][0]())
    segment = tree.segments[2]
    if name in ("malformed", "unknown"):
        segment.tool_call, segment.tool_result = ToolCall(tool="search", text="?"), ToolResult(text="found")
    look(tree)
    assert not caplog.records


SEARCH = ToolRuntime(tools=(DocumentSearch(),))


@pytest.mark.parametrize(("tools", "calls", "is_said"), [(SEARCH, 0, True), (SEARCH, 1, False), (None, 0, False)])
def test_a_policy_that_calls_no_tool_is_a_finding_if_there_is_one(tools, calls, is_said, caplog):
    tree = make_tree(TWO, [0.0, 1.0])
    tree.leaves[0].num_tool_calls = calls
    look(tree, tools=tools)
    line = "no trajectory calls a tool (search). See whether the prompt tells of them"
    assert (line in caplog.text) is is_said
    assert len(caplog.records) == is_said


def unscored(num_scored):
    tree = make_tree(TWO, [0.0, 1.0])
    for leaf in tree.leaves[num_scored:]:
        leaf.reward = replace(leaf.reward, is_scored=False, reason="The judge is down.")
    return tree


@pytest.mark.parametrize("num_scored", [0, 1])
def test_an_iteration_without_any_reward_says_why_and_a_pass_of_them_stops_the_run(num_scored, caplog):
    trees = [unscored(num_scored)]
    found = (trees, prefixed("rollout", summarise_trees(trees).means()))
    warn_if_unscored(7, *found)
    line = "Iteration 7: no trajectory has a reward, so that nothing is trained. Most often: The judge is down."
    assert [record.message for record in caplog.records] == [line] * (not num_scored)
    refused = pytest.raises(RewardError, match=r"none of those of the 12 questions .* Most often: The judge is down\.")
    with nullcontext() if num_scored else refused:
        refuse_unscored(12, *found)


def test_data_of_which_nothing_is_scored_in_a_whole_pass_stop_the_run(monkeypatch, caplog):
    data = make_datamodule(small_policy())
    data.trees = [unscored(0)]
    data.metrics = prefixed("rollout", summarise_trees(data.trees).means())
    monkeypatch.setattr(data, "_collect", lambda: None)
    with pytest.raises(RewardError, match=r"^A trajectory must have a reward, but .* The judge is down\. Mend"):
        data._collect_next()
    said = [record.message for record in caplog.records if "no trajectory has a reward" in record.message]
    assert len(said) == data._stream.num_iterations_per_pass


def test_only_the_first_rank_says_it(caplog, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    look(make_tree(TWO, [0.5, 0.5]))
    assert not caplog.records


def test_later_iterations_may_have_nothing_to_learn_from(caplog):
    look(make_tree(TWO, [0.5, 0.5]), iteration=3)
    assert not caplog.records


def test_a_run_that_calls_no_tool_and_breaks_the_format_says_both_and_why(tmp_path, caplog):
    policy = small_policy()
    own = {"reward": PaperReward(), "chat_format": Wordless(policy.tokenizer, ("search",))}
    make_run(tmp_path, datamodule=make_datamodule(policy, round_trip=False, **own)).fit()
    found = [record.message for record in caplog.records if record.message.startswith("Iteration 0: ")]
    assert sum("no trajectory calls a tool (search)" in line for line in found) == 1
    assert sum("every answer breaks the reward's format. Most often: " in line for line in found) == 1
    assert sum("earn the same (-1)" in line for line in found) == 1


class Wordless(TagFormat):
    """Reads no call, as of a model that has learnt none."""

    def parse_calls(self, turn_text, finish_reason):  # noqa: ARG002
        return ()
