"""Where conversations are read: JSONL and parquet files, and datasets on the Hugging Face Hub."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aepo_lightning.contracts.question import Split
from aepo_lightning.errors import ConfigError, DataError, boundary
from aepo_lightning.tasks.conversations.conversation import Conversation, Fault, UnusableRowError
from aepo_lightning.tasks.conversations.dialects import read_conversation
from aepo_lightning.tasks.hub import datasets_package
from aepo_lightning.tasks.jsonl import scan_jsonl
from aepo_lightning.tasks.parquet import read_parquet
from aepo_lightning.tasks.paths import FilePaths, find_files

_COLUMNS = ("messages", "conversations", "instruction", "input", "output", "system")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationRow:
    """A row and where it stands."""

    origin: str
    """The file, or the dataset."""
    place: str
    """Which row of it, such as `line 12`."""
    content: Conversation | UnusableRowError
    """What it holds, or why that cannot be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationFiles:
    """Conversations of files or of one dataset on the Hub, a row each, in any spelling that `read_conversation` knows.

    Raises:
        ConfigError: If neither a file nor a dataset is named, both are, or a dataset without its revision.
    """

    path: FilePaths | None = None
    """Files to train on: one, a pattern (`data/*.jsonl`) or a list. Those that end in `.parquet` are read as such, all
    others as one JSON object a line, or one list of objects. Relative paths start from the working directory if the
    file is there, else from `data_dir`."""
    val_path: FilePaths | None = None
    """Files to measure the validation loss on, in the same way."""
    data_dir: str | None = None
    """None takes the environment variable `AEPO_DATA_DIR`, else `shared/data` beside the checkout."""
    hub: str | None = None
    """Name of a dataset on the Hub, in place of `path`. It is read through the `datasets` package."""
    revision: str | None = None
    """Which commit of the dataset, so that the same rows are read again."""
    subset: str | None = None
    """Which configuration of the dataset, where it has several."""
    split: str = "train"
    """Which split of the dataset."""
    messages_field: str | None = None
    """Where a row has its list of messages. None looks for `messages`, `conversations`, then `instruction`."""

    def __post_init__(self) -> None:
        """Refuse settings that name no rows."""
        if (self.path is None) == (self.hub is None):
            raise ConfigError(
                f"`path` or `hub` must name conversations, one of them, but got {self.path!r} and {self.hub!r}. Write "
                "coldstart.data.path=my.jsonl."
            )
        if self.hub is not None and not self.revision:
            raise ConfigError(
                f"`revision` must name a commit of the dataset {self.hub}, but got {self.revision!r}. Copy it from the "
                "history of its files on the Hub."
            )

    def rows(self, split: Split) -> Iterator[ConversationRow]:
        """Yield the rows to train on, or those of `val_path`, in order.

        Raises:
            ConfigError: If `datasets` is not installed.
            DataError: If a file or a dataset cannot be read.
        """
        if split == "train" and self.hub is not None:
            yield from (self._row(self.hub, f"row {number}", row) for number, row in enumerate(self._from_hub()))
            return
        paths = self.path if split == "train" else self.val_path
        for path in [] if paths is None else find_files(paths, self.data_dir, split):
            yield from (self._row(str(path), place, row) for place, row in self._from_file(path))

    def _row(self, origin: str, place: str, fields: Mapping[str, Any] | DataError) -> ConversationRow:
        content: Conversation | UnusableRowError
        try:
            if isinstance(fields, DataError):
                raise UnusableRowError(Fault.UNREADABLE, str(fields))
            content = read_conversation(fields, self.messages_field)
        except UnusableRowError as error:
            content = error
        return ConversationRow(origin=origin, place=place, content=content)

    def _from_file(self, path: Path) -> Iterator[tuple[str, Mapping[str, Any] | DataError]]:
        if path.suffix == ".parquet":
            needed = () if self.messages_field is None else (self.messages_field,)
            rows = read_parquet(path, needed, _COLUMNS)
            yield from ((f"row {number}", row) for number, row in enumerate(rows))
            return
        unit, found = scan_jsonl(path)
        yield from ((f"{unit} {number}", row) for number, row in found)

    def _from_hub(self) -> Iterator[Mapping[str, Any]]:
        datasets = datasets_package("name files in `path`")
        failures: list[Exception] = []
        with boundary(failures.append):  # a network, a cache and the code of others, while rows are read, too
            yield from datasets.load_dataset(self.hub, self.subset, split=self.split, revision=self.revision)
            return
        raise DataError(
            f"The dataset {self.hub} at {self.revision} must be readable, but: {failures[0]}. Correct `hub`, "
            "`revision` and `split`, or download its files and name them in `path`."
        ) from failures[0]
