"""Reader of question files with one JSON object a line, or one list of objects."""

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aepo_lightning.errors import DataError
from aepo_lightning.tasks.own_files import NumberedRows, OwnFiles

_BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


@dataclass(frozen=True, slots=True)
class JsonlQuestions(OwnFiles):
    """Questions of JSONL files: one object a line, in UTF-8, or in what a byte order mark says.

    A file that is one JSON list of objects is read as well. Every field is explained in `OwnFiles`.

    Raises:
        ConfigError: If no file is named or a setting has no meaning.
        DataError: If a file is missing, a line is not a JSON object, or a field is missing or of the wrong type.
    """

    def _read(self, path: Path) -> NumberedRows:
        """Return the objects of one file."""
        return read_jsonl(path)


def read_jsonl(path: Path) -> NumberedRows:
    """Return the objects of a JSON file: by line, counted from 1, where every line has one, else by item of its list.

    Raises:
        DataError: If it has something else.
    """
    unit, found = scan_jsonl(path)
    rows = []
    for number, row in found:
        if isinstance(row, DataError):
            raise row
        rows.append((number, row))
    return unit, rows


def scan_jsonl(path: Path) -> tuple[str, Iterator[tuple[int, dict[str, Any] | DataError]]]:
    """Return what `read_jsonl` does, with the error in place of each line or item that is no object.

    Raises:
        DataError: If the file is a list that cannot be read, or has another encoding than it says.
    """
    raw = path.read_bytes()
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if raw.startswith(mark)), None)
    if encoding is not None:
        raw = _decode(path, raw, encoding).encode("utf-8")
    if raw.lstrip().startswith(b"["):
        items = _parse(f"{path}", "one JSON list of objects", raw)
        if isinstance(items, list):
            return "item", ((number, _row(f"{path}, item {number}", row)) for number, row in enumerate(items, 1))
    lines = ((number, line) for number, line in enumerate(raw.split(b"\n"), 1) if line.strip())
    return "line", ((number, _row(f"{path}, line {number}", line)) for number, line in lines)


def _row(where: str, value: object) -> dict[str, Any] | DataError:
    """Return an object, which bytes are parsed to, or what is wrong."""
    try:
        return _object(where, _parse(where, "one JSON object", value) if isinstance(value, bytes) else value)
    except DataError as error:
        return error


def _decode(path: Path, raw: bytes, encoding: str) -> str:
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} must be {encoding}, as its first bytes say, but is not: {error}. Save it as UTF-8."
        ) from error


def _parse(where: str, what: str, raw: bytes) -> object:
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=_distinct)
    except RecursionError as error:
        raise DataError(f"{where} must be {what}, but is nested too deeply. Flatten it.") from error
    except ValueError as error:  # malformed JSON, malformed UTF-8 and numbers of thousands of digits
        raise DataError(f"{where} must be {what}, but is not: {error}. Repair it.") from error


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the fields of an object; of two with one name nobody knows which is meant."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has the field {twice!r} twice")
    return fields


def _object(where: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where} must be one JSON object, but got {value!r:.80}. Repair it.")
    return value
