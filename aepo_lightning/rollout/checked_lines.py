"""Files of one JSON object per line, each with a checksum of its own text.

Damage that leaves a line valid JSON, another digit in a token or a reward, shows in the checksum, which is the last
field. The last line of a file may be cut: it is not there.
"""

import json
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from aepo_lightning.errors import DataError

_ENCODER = json.JSONEncoder(separators=(",", ":"))
_CHECKSUM = re.compile(rb',"checksum":"([0-9a-f]{8})"\}$')


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A whole line of a file, as it stands there."""

    number: int
    """From 1."""
    content: bytes
    """Without the end of the line."""

    def load(self, needs_checksum: bool = True) -> dict[str, Any]:
        """Return what the line says, without its checksum.

        Args:
            needs_checksum: Refuse a line without one. Earlier versions of this library wrote none.

        Raises:
            DataError: If it is damaged, or no JSON object.
        """
        content, found = self.content, _CHECKSUM.search(self.content)
        if found is None and needs_checksum:
            raise DataError("a line must end in its checksum.")
        if found is not None:
            content = content[: found.start()] + b"}"
            if zlib.crc32(content) != int(found[1], 16):
                raise DataError("its checksum is wrong: the line is damaged.")
        try:
            plain = json.loads(content)
        except (ValueError, RecursionError) as error:  # not UTF-8 or not JSON
            raise DataError(str(error)) from error
        if not isinstance(plain, dict):
            raise DataError(f"a line must be a JSON object, but got {plain!r:.80}.")
        return plain


def read_lines(path: Path) -> Iterator[Line]:
    """Yield the whole lines of a file; none if it is not there."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for number, content in enumerate(file, start=1):
            if content.endswith(b"\n"):
                yield Line(number=number, content=content[:-1])


def to_text(plain: dict[str, Any]) -> str:
    """Return an object as a line with its checksum and its end."""
    text = _ENCODER.encode(plain)
    return f'{text[:-1]},"checksum":"{zlib.crc32(text.encode()):08x}"}}\n'


def open_to_append(path: Path) -> IO[str]:
    """Open a file for further lines. A cut last line is removed: it would spoil the next one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and path.stat().st_size:
        _remove_cut_line(path)
    return path.open("a", encoding="utf-8")


def _remove_cut_line(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
