"""Where a benchmark's questions are read: a file of the data folder, known by its digest, or the Hugging Face Hub."""

import csv
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, get_args

from aepo_lightning.contracts.blame import describe_failure
from aepo_lightning.errors import ConfigError, DataError, boundary
from aepo_lightning.evaluation.benchmark import BenchmarkQuestions
from aepo_lightning.evaluation.question_rows import QuestionRows, Rows
from aepo_lightning.tasks.hub import datasets_package
from aepo_lightning.tasks.jsonl import read_jsonl
from aepo_lightning.tasks.parquet import read_parquet
from aepo_lightning.tasks.paths import find_places
from aepo_lightning.tasks.rows import column_of

logger = logging.getLogger(__name__)

Fetch = Literal["never", "missing", "always"]
"""When the Hub is asked: not at all, where no file is there, or instead of any file."""
_TABLES = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownFile:
    """A file of questions that somebody publishes."""

    path: str
    """Where it belongs, from the data folder on. The ending says how it is read: jsonl, json, parquet, csv or tsv."""
    url: str
    """Where it comes from."""
    sha256: str | None = None
    """Of the version that is known. None where nobody has verified one."""
    num_rows: int | None = None
    """Rows of that version. None where nobody has counted them."""
    is_other: bool = False
    """Whether published numbers are known to be of other questions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubDataset:
    """A dataset of the Hugging Face Hub."""

    dataset_id: str
    """Its name on the Hub, `owner/name`."""
    split: str
    """Which of its splits is read."""
    config: str | None = None
    """Which of its configurations, where it has several."""
    revision: str | None = None
    """The commit that is read. None where nobody has verified one: then whatever is there."""
    is_gated: bool = False
    """Whether its conditions have to be accepted first."""
    is_other: bool = False
    """Whether published numbers are known to be of other questions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedQuestions:
    """Reads the questions of a benchmark, and refuses another version of them.

    Raises:
        ConfigError: If `fetch` is unknown, or asks a Hub that has no such dataset.
    """

    files: Sequence[KnownFile]
    """The first that is there is read. Numbers were published of the first of all."""
    licence: str
    homepage: str
    rows: QuestionRows = field(default_factory=QuestionRows)
    hub: HubDataset | None = None
    fetch: Fetch = "never"
    data_dir: str | None = None
    """None takes the environment variable `AEPO_DATA_DIR`, else `shared/data` beside the checkout."""
    allow_other_version: bool = False
    """Whether a file with another digest or another number of rows is read all the same."""
    note: str = ""
    """What else there is to know about getting it."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.fetch not in get_args(Fetch):
            raise ConfigError(f"`fetch` must be one of {', '.join(get_args(Fetch))}, but got {self.fetch!r}.")
        if self.fetch == "always" and self.hub is None:
            raise ConfigError(f"`fetch` must be never or missing where no `hub` is known, but got {self.fetch!r}.")

    def read(self, name: str) -> BenchmarkQuestions:
        """Return the questions.

        Raises:
            DataError: If there is no file, it is another version, a row cannot be used, or the Hub does not give it.
        """
        places = [(known, place) for known in self.files for place in find_places(known.path, self.data_dir)]
        found = next(((known, place) for known, place in places if place.is_file()), None)
        if self.hub is not None and (self.fetch == "always" or (self.fetch == "missing" and found is None)):
            return self._from_hub(name, self.hub)
        if found is None:
            raise DataError(self._missing(name, [place for _, place in places]))
        return self._from_file(name, *found)

    def _missing(self, name: str, places: Sequence[Path]) -> str:
        sources = dict.fromkeys(f"{known.path} from {known.url}" for known in self.files)
        lines = [
            f"The questions of {name} must be in a file, but there is no {' and no '.join(map(str, places))}.",
            f"Put {' or '.join(sources)} into the folder that AEPO_DATA_DIR names.",
        ]
        if self.hub is not None:
            lines.append(f"With network, `fetch=missing` streams {self.hub.dataset_id} from the Hugging Face Hub.")
        return " ".join((*lines, self.note)).strip()

    def _from_file(self, name: str, known: KnownFile, place: Path) -> BenchmarkQuestions:
        raw = place.read_bytes()
        digest = sha256(raw).hexdigest()
        is_known = digest == known.sha256
        if not self.allow_other_version and known.sha256 is not None and not is_known:
            raise DataError(
                f"{place} must be the known version of {name}, SHA-256 {known.sha256}, but has {digest}. Get it from "
                f"{known.url}, or accept what is there by `allow_other_version=true`: its numbers are not comparable."
            )
        rows = read_rows(place, raw, self.rows.columns)
        if not self.allow_other_version and known.num_rows not in (None, len(rows)):
            raise DataError(
                f"{place} must have {known.num_rows} rows, but has {len(rows)}. Get it from {known.url}, or accept "
                "what is there by `allow_other_version=true`."
            )
        is_other = (known.sha256 is not None and not is_known) or known.num_rows not in (None, len(rows))
        is_other = is_other or known.is_other or self._has_others(rows)
        self._warn(name, str(place), is_other)
        return BenchmarkQuestions(
            questions=self.rows.questions(name, rows),
            origin=str(place),
            sha256=digest,
            is_known=is_known,
            is_other_version=is_other,
        )

    def _from_hub(self, name: str, hub: HubDataset) -> BenchmarkQuestions:
        if hub.revision is None:
            logger.warning("%s has no pinned revision: what is read today may be something else tomorrow.", hub)
        rows = hub_rows(hub, self.rows.columns)
        origin = f"{hub.dataset_id}@{hub.revision or 'main'}, {hub.split}"
        is_other = hub.is_other or self._has_others(rows)
        self._warn(name, origin, is_other)
        return BenchmarkQuestions(questions=self.rows.questions(name, rows), origin=origin, is_other_version=is_other)

    def _has_others(self, rows: Rows) -> bool:
        """Return whether rows are more or fewer than those of the first file, on which numbers were measured."""
        return self.files[0].num_rows not in (None, len(rows))

    def _warn(self, name: str, place: str, is_other: bool) -> None:
        if is_other:
            problem = "%s is another version of %s: its numbers are not comparable. %s"
            logger.warning(problem, place, name, self.note)


def read_rows(path: Path, raw: bytes, columns: Sequence[str]) -> Rows:
    """Return the rows of a file with where they stand; its ending says how it is read.

    Args:
        path: The file.
        raw: What it holds.
        columns: What is read of a parquet file, where it has them. Rows of other files come whole.

    Raises:
        DataError: If it cannot be read in this way.
    """
    suffix = path.suffix.lower()
    if suffix in _TABLES:
        return _table(path, raw, _TABLES[suffix])
    if suffix == ".parquet":
        return [(f"{path}, row {number}", row) for number, row in enumerate(read_parquet(path, (), columns))]
    unit, numbered = read_jsonl(path)
    return [(f"{path}, {unit} {number}", row) for number, row in numbered]


def _table(path: Path, raw: bytes, delimiter: str) -> Rows:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} must be UTF-8, but is not: {error}. Save it as UTF-8.") from error
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[tuple[str, Mapping[str, Any]]] = []
    try:
        for row in reader:
            place = f"{path}, line {reader.line_num}"
            if None in row:
                raise DataError(
                    f"{place} must have one value for each of {reader.fieldnames}, but has more. Repair it."
                )
            rows.append((place, row))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num + 1} must be a row of a table, but is not: {error}.") from error
    return rows


def hub_rows(hub: HubDataset, columns: Sequence[str]) -> Rows:
    """Return the rows of a dataset of the Hub, streamed.

    Args:
        hub: The dataset.
        columns: What is read of it, where it has them.

    Raises:
        ConfigError: If the package `datasets` is not installed.
        DataError: If the Hub cannot be reached or does not give the dataset.
    """
    datasets = datasets_package("put the file where it belongs")
    place = f"{hub.dataset_id}, {hub.split}, row"
    failures: list[Exception] = []
    with boundary(failures.append):  # a network, its clients, and the code that builds datasets, while rows are read
        stream = datasets.load_dataset(
            hub.dataset_id, hub.config, split=hub.split, revision=hub.revision, streaming=True
        )
        if stream.column_names is not None:
            wanted = {column_of(name, stream.column_names) for name in columns}
            stream = stream.select_columns([name for name in stream.column_names if name in wanted])
        return [(f"{place} {number}", row) for number, row in enumerate(stream)]
    told = " It is gated: accept its conditions on its page, then log in with `hf auth login`." if hub.is_gated else ""
    raise DataError(
        f"The Hub must give {hub.dataset_id} at {hub.revision or 'main'}, but it failed: "
        f"{describe_failure(failures[0])}.{told}"
    ) from failures[0]
