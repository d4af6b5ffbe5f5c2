"""Memory for what belongs to one call: given back to the kernel, where the heap would keep a trace for later children.

Every child is a copy of the zygote, and code can read all of its own memory. So code and output of a call must never be
ordinary objects of the zygote, not even for a moment.
"""

import mmap
import os
import socket


class Scratch:
    """A mapping of its own that fills up from the front.

    Args:
        num_bytes: Most that it holds.
    """

    def __init__(self, num_bytes: int) -> None:
        self._map = mmap.mmap(-1, max(1, num_bytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._all = memoryview(self._map)[:num_bytes]
        self._num_filled = 0

    def __len__(self) -> int:
        return self._num_filled

    @property
    def view(self) -> memoryview:
        """What it holds."""
        return self._all[: self._num_filled]

    def read(self, descriptor: int) -> int:
        """Take what a descriptor has, as far as there is room, and return the number of bytes.

        Raises:
            BlockingIOError: If the descriptor has nothing yet.
        """
        num_bytes = os.readv(descriptor, [self._all[self._num_filled :]])
        self._num_filled += num_bytes
        return num_bytes

    def receive_all(self, control: socket.socket) -> bool:
        """Fill it to the end from a socket, and return whether all of that came."""
        while self._num_filled < len(self._all):
            num_bytes = control.recv_into(self._all[self._num_filled :])
            if not num_bytes:
                return False
            self._num_filled += num_bytes
        return True

    def truncate(self, num_bytes: int) -> None:
        """Forget what lies behind so many bytes."""
        self._num_filled = min(self._num_filled, num_bytes)

    def close(self) -> None:
        """Give the memory back."""
        self._all.release()
        self._map.close()
