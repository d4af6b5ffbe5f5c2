import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from aepo_lightning.advantages import OverlongPenalty
from aepo_lightning.callbacks import (
    AtomicCheckpoint,
    BranchPenalty,
    BranchPlaces,
    EntropyGuard,
    EntropyMonitor,
    EntropyTarget,
    RolloutLogger,
    Throughput,
)
from aepo_lightning.contracts.question import SegmentSource
from aepo_lightning.contracts.tool import ToolResult, ToolStatus
from aepo_lightning.rollout import summarise_trees
from aepo_lightning.tools import PythonTool
from aepo_lightning.training.coldstart import ColdStartModule
from aepo_lightning.training.dynamic_sampling import DynamicSampling, SamplingRounds
from aepo_lightning.training.metrics import describe_overlong
from aepo_lightning.training.sft import RowCounts, SFTDataModule, SFTRow, SFTRows, SFTSettings
from tests.support.paths import ROOT
from tests.support.training import make_tree, policy_turn, tool_turn

TABLE = ROOT / "docs" / "metrics.md"

# What independent samples without a probe cannot have.
ONLY_IN_TREES = {"val/branch_reward", "val/branch_concentration", "val/tool_entropy"}
ONLY_IN_TREES |= {"val/expected_branch_concentration", "val/near_alpha_fraction", "val/sibling_reward_spread"}
ONLY_IN_TREES |= {"val/branch_concentration_over_chance", "val/branch_reward_lift"}
ONLY_IN_TREES |= {"val/consecutive_branches_over_chance"}
DEPTHS = ("branches_at_depth_1", "branches_at_depth_2", "branches_at_depth_3", "branches_deeper")
ONLY_IN_TREES |= {f"val/{depth}_{kind}" for depth in DEPTHS for kind in ("fraction", "over_chance")}

# What takes more calls than the tiny run makes; `tests/rollout/test_spread.py` has it.
ONLY_IN_DEEP_TREES = {f"rollout/{depth}_over_chance" for depth in DEPTHS[2:]}
# `tests/training/test_loss.py` has it.
ONLY_WITH_A_REFERENCE = {"train/reference_kl"}
ONLY_ON_GPUS = {"throughput/update_mfu", "memory/gpu_gib"}


def read_table():
    """Return the names in the table and, of these, the ones that every run logs."""
    rows = [line.strip("| ").split(" | ") for line in TABLE.read_text().splitlines() if line.startswith("| `")]
    names = [(name, row[-1]) for row in rows for name in re.findall("`([^`]+)`", row[0])]
    assert len({name for name, _ in names}) == len(names), "a name stands twice"
    return {name for name, _ in names}, {name for name, logged in names if logged == "always"}


@pytest.fixture
def logged(make_run, tmp_path):
    saver = AtomicCheckpoint(tmp_path / "atomic")
    callbacks = [
        BranchPenalty(),
        BranchPlaces(choice="", noise="e[0-3]"),
        EntropyMonitor(),
        EntropyGuard(),
        EntropyTarget(0.2),
        RolloutLogger(),
        Throughput(),
        saver,
    ]
    return make_run(callbacks).fit().logger.names


@pytest.fixture
def logged_by_cold_start(make_run):
    run = make_run(has_checkpoints=False, max_steps=1)
    run.module = ColdStartModule(run.module.policy, partial(torch.optim.AdamW, lr=1e-3))
    row = SFTRow(token_ids=np.array([3, 4, 5]), is_trained=np.array([False, True, True]))
    rows = SFTRows(train=[row], val=[row], counts=RowCounts())
    run.datamodule = SFTDataModule(rows, SFTSettings(batch_size=1), pad_token_id=0)
    return run.fit().logger.names


def told_by_terms():
    tree = make_tree([[policy_turn(5)]], [1.0])
    tree.leaves[0].reward = replace(tree.leaves[0].reward, terms={"answer": 1.0})
    figures = summarise_trees([tree]).means()
    return {f"{place}/{name}" for place in ("rollout", "val") for name in figures if name.startswith("reward_")}


def told_by_results():
    """Figures of a tree with a result of every status."""
    paths = [[policy_turn(5), tool_turn(6), policy_turn(7)] for _ in ToolStatus]
    tree = make_tree(paths, [0.0] * len(paths))
    results = [segment for segment in tree.segments if segment.source is SegmentSource.TOOL]
    for segment, status in zip(results, ToolStatus, strict=True):
        segment.tool_result = ToolResult(text="", status=status)
    figures = summarise_trees([tree]).means()
    return {f"{place}/{name}" for place in ("rollout", "val") for name in figures if name.startswith("entropy_after")}


def test_every_logged_name_stands_in_the_table(logged):
    assert logged - read_table()[0] == set()


def test_every_name_that_is_not_optional_is_logged(logged):
    assert read_table()[1] - logged == set()


def test_every_optional_name_is_logged_by_some_run(logged, logged_by_cold_start):
    told_by_tools = {f"tools/{name}" for name in PythonTool().metrics()}
    told_by_rounds = set(SamplingRounds(rule=DynamicSampling()).metrics([make_tree([], [])]))
    told_by_rounds |= set(describe_overlong([make_tree([[policy_turn(5)]], [1.0])], OverlongPenalty().within(9)))
    told = logged | logged_by_cold_start | told_by_tools | told_by_rounds | told_by_terms() | told_by_results()
    assert read_table()[0] - told == ONLY_IN_TREES | ONLY_IN_DEEP_TREES | ONLY_WITH_A_REFERENCE | ONLY_ON_GPUS


def test_every_column_of_the_table_is_filled():
    """Every name has a unit, a meaning, what it is in a healthy run, a source, and when it is logged."""
    columns = ["Name", "Unit", "Meaning", "Healthy", "Source", "Logged"]
    for line in (line for line in TABLE.read_text().splitlines() if line.startswith("|") and "---" not in line):
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        assert cells == columns or (cells[0].startswith("`") and len(cells) == len(columns) and all(cells)), line
