"""Where questions come from. Every source is a `Task`; the procedural ones also give demonstrations.

cave.py         stay or go on and risk it, at every chamber of a cave; closed vocabulary of words
trail.py        follow a rule through a small random world, one search per step; closed vocabulary of words
arithmetic.py   chained arithmetic, one python call per operation; plain ASCII for a byte-level tokenizer
deep_search/    find pages of an invented world and follow them to an answer; natural language
own_files.py    question files of one's own, whatever their format; jsonl.py and parquet.py read one each
jsonl.py        one JSON object a line, or one list: your own files, and benchmarks
conversations/  worked trajectories in files and on the Hub, in the spellings that are published
parquet.py      your own parquet files, and the published training and validation files (verl's layout)
listed.py       rows in memory
rows.py         one row of your own file as a question
answers.py      accepted answers as rows have them: texts, numbers, lists
prompts.py      messages of a question
repair.py       LaTeX commands that became control characters
splits.py       questions in memory, by split and index: cleaned, counted, looked through
asked.py        the seam where a task is asked: what it answers is checked
index.py        checks of a position in a split
paths.py        where data files are looked for
file_report.py  what a reader kept, repaired and dropped

A name is imported when it is first used.
"""

from typing import TYPE_CHECKING

from aepo_lightning.lazy_names import homes as _homes
from aepo_lightning.lazy_names import importer as _importer

if TYPE_CHECKING:
    from aepo_lightning.tasks.arithmetic import ArithmeticTask
    from aepo_lightning.tasks.cave import CaveTask
    from aepo_lightning.tasks.deep_search import DeepSearchTask, DeepSearchWorld, Imperfection, deep_search_pages
    from aepo_lightning.tasks.file_report import FileReport
    from aepo_lightning.tasks.jsonl import JsonlQuestions
    from aepo_lightning.tasks.listed import ListedQuestions, as_task
    from aepo_lightning.tasks.parquet import OfficialParquet, ParquetQuestions
    from aepo_lightning.tasks.trail import TrailTask

_PLACES = {
    "arithmetic": "ArithmeticTask",
    "cave": "CaveTask",
    "deep_search": "DeepSearchTask DeepSearchWorld Imperfection deep_search_pages",
    "file_report": "FileReport",
    "jsonl": "JsonlQuestions",
    "listed": "ListedQuestions as_task",
    "parquet": "OfficialParquet ParquetQuestions",
    "trail": "TrailTask",
}
_HOMES = _homes(_PLACES)
__getattr__ = _importer(__name__, __name__, _HOMES, globals())


def __dir__() -> list[str]:
    """Return the public names."""
    return [*_HOMES]


__all__ = [
    "ArithmeticTask",
    "CaveTask",
    "DeepSearchTask",
    "DeepSearchWorld",
    "FileReport",
    "Imperfection",
    "JsonlQuestions",
    "ListedQuestions",
    "OfficialParquet",
    "ParquetQuestions",
    "TrailTask",
    "as_task",
    "deep_search_pages",
]
