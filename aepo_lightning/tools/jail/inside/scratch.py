"""Memory for what belongs to one call: given back to the kernel, where the heap would keep a trace for later children.

Every child is a copy of the zygote, and code can read all of its own memory. So code and output of a call must never be
ordinary objects of the zygote, not even for a moment.
"""

import mmap
import os
import select
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

    def receive_all(self, control: socket.socket, owner: int | None = None) -> bool:
        """Fill it to the end from a socket, and return whether all of that came.

        Args:
            control: The socket.
            owner: Handle of a process with whose end the waiting ends, too. Whoever it forked has the socket as well.
        """
        while self._num_filled < len(self._all):
            if owner is not None and not _wait_for_word(control, owner):
                return False
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


class Mark:
    """One bit that a child can leave for its parent. It starts unset."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, 1, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)

    def set(self) -> None:
        """Set it; this takes no memory."""
        self._map[0] = 1

    def take(self) -> bool:
        """Return whether it was set, and give the memory back."""
        is_set = bool(self._map[0])
        self._map.close()
        return is_set


def _wait_for_word(control: socket.socket, owner: int) -> bool:
    """Wait until a socket has something, or a process has ended and there is nothing."""
    poller = select.poll()
    poller.register(control, select.POLLIN)
    poller.register(owner, select.POLLIN)
    return any(descriptor == control.fileno() for descriptor, _ in poller.poll())
