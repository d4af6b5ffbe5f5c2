"""Where questions come from. Every source is a `Task`; the procedural ones also give demonstrations.

trail.py        follow a rule through a small random world, one search per step; closed vocabulary of words
arithmetic.py   chained arithmetic, one python call per operation; plain ASCII for a byte-level tokenizer
jsonl.py        question files with one JSON object a line: your own, and benchmarks
parquet.py      your own parquet files, and the published training and validation files (verl's layout)
listed.py       rows in memory
rows.py         one row of your own file as a question
splits.py       what the readers of files share: questions in memory, by split and index
index.py        checks of a position in a split
paths.py        where data files are looked for
file_report.py  what a reader kept, repaired and dropped
prompts.py      messages of a question
"""

from aepo_lightning.tasks.arithmetic import ArithmeticTask
from aepo_lightning.tasks.file_report import FileReport
from aepo_lightning.tasks.jsonl import JsonlQuestions
from aepo_lightning.tasks.listed import ListedQuestions, as_task
from aepo_lightning.tasks.parquet import OfficialParquet, ParquetQuestions
from aepo_lightning.tasks.trail import TrailTask

__all__ = [
    "ArithmeticTask",
    "FileReport",
    "JsonlQuestions",
    "ListedQuestions",
    "OfficialParquet",
    "ParquetQuestions",
    "TrailTask",
    "as_task",
]
