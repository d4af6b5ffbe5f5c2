"""Messages between the pool and the zygote: two lengths, a JSON object, and raw bytes."""

import json
import struct
from collections.abc import Mapping
from typing import Any

_LENGTHS = struct.Struct("!II")
MAX_HEADER_BYTES = 1 << 16
MAX_BODY_BYTES = 1 << 26


def pack_frame(header: Mapping[str, Any], body: bytes = b"") -> bytes:
    """Encode one message."""
    encoded = json.dumps(header).encode()
    return _LENGTHS.pack(len(encoded), len(body)) + encoded + body


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
        num_header, num_body = _LENGTHS.unpack_from(self._data)
        if num_header > MAX_HEADER_BYTES or num_body > MAX_BODY_BYTES:
            raise ValueError(f"a message must stay within its limits, but got {num_header} and {num_body} bytes")
        end = _LENGTHS.size + num_header + num_body
        if len(self._data) < end:
            return None
        header = json.loads(self._data[_LENGTHS.size : end - num_body])
        body = bytes(self._data[end - num_body : end])
        del self._data[:end]
        if not isinstance(header, dict):
            raise ValueError("a message must start with an object")
        return header, body
