"""Supervised fine-tuning on conversations: the cold start on real data.

turns.py       a conversation as demonstrations, written as the chat format of the rollouts writes turns
rows.py        the tokens of all conversations, and what was left out
datamodule.py  optimiser steps and the validation loss's batches, the same whatever the number of ranks
good_trajectories.py  the other way round: trajectories of rollouts as conversations
"""

from aepo_lightning.training.sft.datamodule import SFTDataModule, SFTSettings
from aepo_lightning.training.sft.good_trajectories import GoodTrajectories, Selection
from aepo_lightning.training.sft.rows import RowCounts, RowLimits, SFTRow, SFTRows, read_rows
from aepo_lightning.training.sft.turns import demonstrations_of

__all__ = [
    "GoodTrajectories",
    "RowCounts",
    "RowLimits",
    "SFTDataModule",
    "SFTRow",
    "SFTRows",
    "SFTSettings",
    "Selection",
    "demonstrations_of",
    "read_rows",
]
