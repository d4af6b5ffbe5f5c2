"""Messages between the pool and the zygote: two lengths, a JSON object, and raw bytes."""

import json
import struct
from collections.abc import Mapping
from typing import Any

_LENGTHS = struct.Struct("!II")
NUM_LENGTH_BYTES = _LENGTHS.size
MAX_HEADER_BYTES = 1 << 16
MAX_BODY_BYTES = 1 << 26


def pack_frame(header: Mapping[str, Any], body: bytes = b"") -> bytes:
    """Encode one message."""
    return pack_start(header, len(body)) + body


def pack_start(header: Mapping[str, Any], num_body: int) -> bytes:
    """Encode all of a message but its body."""
    encoded = json.dumps(header).encode()
    return _LENGTHS.pack(len(encoded), num_body) + encoded


def read_lengths(data: bytes | bytearray) -> tuple[int, int]:
    """Read the number of bytes of header and body at the start of a message.

    Raises:
        ValueError: If one is beyond its limit.
    """
    num_header, num_body = _LENGTHS.unpack_from(data)
    if num_header > MAX_HEADER_BYTES or num_body > MAX_BODY_BYTES:
        raise ValueError(f"a message must stay within its limits, but got {num_header} and {num_body} bytes")
    return num_header, num_body


class FrameBuffer:
    """Collects bytes and gives back whole messages."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, chunk: bytes) -> None:
        """Add bytes that have arrived."""
        self._data += chunk

    def next_frame(self) -> tuple[dict[str, Any], bytes] | None:
        """Take the oldest message out, or return None while it is incomplete.

        Raises:
            ValueError: If what has arrived is no message.
        """
        if len(self._data) < _LENGTHS.size:
            return None
        num_header, num_body = read_lengths(self._data)
        end = _LENGTHS.size + num_header + num_body
        if len(self._data) < end:
            return None
        header = json.loads(self._data[_LENGTHS.size : end - num_body])
        body = bytes(self._data[end - num_body : end])
        del self._data[:end]
        if not isinstance(header, dict):
            raise ValueError("a message must start with an object")
        return header, body
