"""Grows rollout trees within a budget; the only room that drives engines and tools together.

sampler.py       many questions at once
group.py         one question: pre-monitoring, global samples, branches, top-up
chain.py         the state of one chain
continuation.py  a chain that goes on from where another one stood
rounds.py        decisions in an order that no timing decides
steps.py         what a chain asks of engine, tools and reward
scoring.py       a reward called with a deadline, and its answer checked
record.py        steps that were taken before: recovery and replay
penalty.py       whether it was the penalty that kept a chain from branching
settings.py      numbers and switches
independent.py   no branches: as evaluation samples
turn_entropy.py  how uncertain the policy was when a turn began
seeds.py         random numbers from where they are used
plain.py         trees as plain values
order.py         one order for what chance brought in another
journal.py       finished trees and steps on disk
unfinished.py    trees that are not finished, as far as their steps are on disk
times.py         when the steps of finished trees happened, beside them
checked_lines.py JSON lines with checksums
description.py   names for settings and questions, by which the journal knows them again
statistics.py    trees in numbers
progress.py      how far a rollout is, on a terminal and in the log
spread.py        where branches fell, and how far siblings differ
"""

from aepo_lightning.contracts.branching import PenalisedBranchPolicy
from aepo_lightning.event_loop import run_in_event_loop
from aepo_lightning.rollout.continuation import Continuation
from aepo_lightning.rollout.description import question_digest
from aepo_lightning.rollout.group import GroupRollout
from aepo_lightning.rollout.independent import Independent
from aepo_lightning.rollout.journal import RolloutJournal
from aepo_lightning.rollout.plain import tree_from_dict, tree_to_dict
from aepo_lightning.rollout.record import GroupRecord, difference, record_of
from aepo_lightning.rollout.sampler import RolloutSampler
from aepo_lightning.rollout.scoring import ScoringSettings
from aepo_lightning.rollout.seeds import decision_uniform, derive_seed, derive_uniform
from aepo_lightning.rollout.settings import RolloutSettings, SamplingSettings
from aepo_lightning.rollout.statistics import Tally, pass_at_k, pass_rates, summarise_trees
from aepo_lightning.rollout.steps import RolloutParts
from aepo_lightning.rollout.turn_entropy import TurnEntropy
from aepo_lightning.rollout.unfinished import read_unfinished

__all__ = [
    "Continuation",
    "GroupRecord",
    "GroupRollout",
    "Independent",
    "PenalisedBranchPolicy",
    "RolloutJournal",
    "RolloutParts",
    "RolloutSampler",
    "RolloutSettings",
    "SamplingSettings",
    "ScoringSettings",
    "Tally",
    "TurnEntropy",
    "decision_uniform",
    "derive_seed",
    "derive_uniform",
    "difference",
    "pass_at_k",
    "pass_rates",
    "question_digest",
    "read_unfinished",
    "record_of",
    "run_in_event_loop",
    "summarise_trees",
    "tree_from_dict",
    "tree_to_dict",
]
