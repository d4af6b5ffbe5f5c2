"""Offline search over a corpus in JSONL or parquet files: a BM25 index on disk, built once."""

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import tantivy
from tqdm.auto import tqdm

from aepo_lightning.errors import DataError
from aepo_lightning.tools.search.hits import SearchHit
from aepo_lightning.tools.search.snippets import plain_words

_TEXT, _TITLE, _URL = "text", "title", "url"
_META = "corpus.json"
_FORMAT = 1
_PARQUET_ROWS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusFields:
    """Which fields of a row mean what. Empty names are fields that the corpus does not have."""

    text: str = "text"
    title: str = ""
    url: str = ""


class CorpusIndex:
    """A BM25 index over files, with English stemming.

    It is built next to nothing else in a folder of its own, and built again if the files, or the fields, have changed.
    """

    def __init__(
        self,
        files: Sequence[str | Path],
        folder: str | Path,
        fields: CorpusFields | None = None,
        show_progress: bool = True,
    ) -> None:
        """Open the index of some files, or build it.

        Args:
            files: JSONL files (`.jsonl`, one object per line) and parquet files.
            folder: Where the index is kept.
            fields: Which fields mean what.
            show_progress: Show a bar while the index is built.

        Raises:
            DataError: If a file is missing, of another kind, or has a row without text; or if the folder holds
                something else.
        """
        self._files = [Path(file) for file in files]
        self._fields = fields or CorpusFields()
        self._folder = Path(folder)
        self._show_progress = show_progress
        self.digest = self._digest()
        """Names the files and the fields: another corpus has another one."""
        self._make()

    def _make(self) -> None:
        """Open the index, built if need be. Of several processes, one builds and the others wait for it."""
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        with self._folder.with_name(f".{self._folder.name}.lock").open("w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the system frees it when its holder dies
            if self._stored_digest() != self.digest:
                self._build(self.digest)
            try:
                self._index = tantivy.Index.open(str(self._folder))
            except ValueError as error:
                raise DataError(f"`folder` must hold a whole index, but {self._folder}: {error}. Remove it.") from None
        if not len(self):
            raise DataError(f"`files` must hold a document, but {[str(file) for file in self._files]} hold none.")

    def __len__(self) -> int:
        """Return the number of documents."""
        return int(self._index.searcher().num_docs)

    def search(self, query: str, max_results: int) -> list[SearchHit]:
        """Return the documents that share at least one word with a query, best first.

        Args:
            query: Free text. Only its letters and digits count, and of these its first 100 words.
            max_results: Upper bound on the number of documents.
        """
        words = plain_words(query)
        if not words:
            return []
        parsed, _ = self._index.parse_query_lenient(" ".join(words), [_TEXT, _TITLE])
        searcher = self._index.searcher()
        documents = (searcher.doc(address) for _, address in searcher.search(parsed, max_results, count=False).hits)
        return [SearchHit(snippet=found[_TEXT][0], title=found[_TITLE][0], url=found[_URL][0]) for found in documents]

    def _digest(self) -> str:
        """Name the content by size and time of the files: reading them all would take as long as building."""
        parts: list[Any] = [_FORMAT, repr(self._fields)]
        for file in self._files:
            if file.suffix not in (".jsonl", ".parquet"):
                raise DataError(f"`files` must end in .jsonl or .parquet, but got {file}.")
            try:
                status = file.stat()
            except OSError as error:
                raise DataError(f"`files` must exist, but {file} does not ({error.strerror}).") from None
            parts.append([str(file.resolve()), status.st_size, status.st_mtime_ns])
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _stored_digest(self) -> str | None:
        try:
            if not self._folder.exists() or not any(self._folder.iterdir()):
                return None
            stored: str = json.loads((self._folder / _META).read_text(encoding="utf-8"))["digest"]
        except (OSError, ValueError, KeyError, TypeError):
            raise DataError(
                f"`folder` must be empty or hold an index, but {self._folder} holds other things."
            ) from None
        return stored

    def _build(self, digest: str) -> None:
        """Build beside the folder and put the whole in place: a build that is cut off leaves no half index."""
        partial = self._folder.with_name(f"{self._folder.name}.partial")  # what a killed process left goes
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            builder = tantivy.SchemaBuilder()
            builder.add_text_field(_TEXT, stored=True, tokenizer_name="en_stem")
            builder.add_text_field(_TITLE, stored=True, tokenizer_name="en_stem")
            builder.add_text_field(_URL, stored=True, tokenizer_name="raw")
            writer = tantivy.Index(builder.build(), path=str(partial)).writer(num_threads=1)
            for row in tqdm(self._rows(), desc="index", unit="doc", disable=not self._show_progress):
                writer.add_document(tantivy.Document.from_dict(row))
            writer.commit()
            writer.wait_merging_threads()
            (partial / _META).write_text(json.dumps({"digest": digest}), encoding="utf-8")
            shutil.rmtree(self._folder, ignore_errors=True)
            partial.rename(self._folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _rows(self) -> Iterator[dict[str, str]]:
        for file in self._files:
            rows = _parquet_rows(file) if file.suffix == ".parquet" else _jsonl_rows(file)
            for number, row in rows:
                text = row.get(self._fields.text)
                if not isinstance(text, str):
                    raise DataError(
                        f"{file}, row {number}: `{self._fields.text}` must be text, but got {text!r:.80}. "
                        f"It has {sorted(map(str, row))[:20]}: set `fields.text` to one of them."
                    )
                title, url = (
                    str(row.get(name) or "") if name else "" for name in (self._fields.title, self._fields.url)
                )
                yield {_TEXT: _clean(text), _TITLE: _clean(title), _URL: _clean(url)}


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode()  # half a surrogate pair, which JSON can write, is no text


def _jsonl_rows(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:
                raise DataError(f"{file}, line {number} must be JSON, but: {error}.") from None
            if not isinstance(row, dict):
                raise DataError(f"{file}, line {number} must be an object, but got {type(row).__name__}.")
            yield number, row


def _parquet_rows(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    number = 0
    try:
        with pq.ParquetFile(file) as opened:
            for batch in opened.iter_batches(_PARQUET_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file} must be a whole parquet file, but: {str(error)[:200]}.") from None
