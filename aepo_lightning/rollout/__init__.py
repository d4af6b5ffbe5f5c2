"""Grows rollout trees within a budget; the only room that drives engines and tools together.

sampler.py       many questions at once
group.py         one question: pre-monitoring, global samples, branches, top-up
chain.py         the state of one chain
tag_protocol.py  messages, tool results and sampled tokens turned into one another
settings.py      numbers and switches
seeds.py         random numbers from where they are used
journal.py       finished trees on disk
statistics.py    trees in numbers
"""

from aepo_lightning.rollout.group import GroupRollout, RolloutParts
from aepo_lightning.rollout.journal import RolloutJournal, tree_from_dict, tree_to_dict
from aepo_lightning.rollout.sampler import RolloutSampler, run_in_event_loop
from aepo_lightning.rollout.seeds import derive_seed, derive_uniform
from aepo_lightning.rollout.settings import RolloutSettings
from aepo_lightning.rollout.statistics import Tally, pass_at_k, pass_rates, summarise_trees
from aepo_lightning.rollout.tag_protocol import TagProtocol

__all__ = [
    "GroupRollout",
    "RolloutJournal",
    "RolloutParts",
    "RolloutSampler",
    "RolloutSettings",
    "TagProtocol",
    "Tally",
    "derive_seed",
    "derive_uniform",
    "pass_at_k",
    "pass_rates",
    "run_in_event_loop",
    "summarise_trees",
    "tree_from_dict",
    "tree_to_dict",
]
