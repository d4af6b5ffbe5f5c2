"""Deep search in a box: questions about an invented world, whose pages a search engine and a page reader hold.

relations.py      what can be said of a person, a place, a work, and in which words
names.py          invented names
world.py          the draw: things and their relations
pages.py          records, outdated and doubtful versions, copies, pages behind links
plans.py          the shortest way to a proof
facts.py          what may be asked for
questions.py      questions of 1 to 4 hops
comparisons.py    comparisons and counts
demonstrations.py a scripted agent
task.py           `DeepSearchTask`
"""

from aepo_lightning.tasks.deep_search.demonstrations import Imperfection
from aepo_lightning.tasks.deep_search.pages import deep_search_pages
from aepo_lightning.tasks.deep_search.task import DeepSearchTask
from aepo_lightning.tasks.deep_search.world import DeepSearchWorld

__all__ = ["DeepSearchTask", "DeepSearchWorld", "Imperfection", "deep_search_pages"]
