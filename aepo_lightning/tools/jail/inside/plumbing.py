"""The descriptors between the zygote and one child."""

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plumbing:
    """Both ends of everything; each process keeps its own."""

    out: tuple[int, int]
    err: tuple[int, int]
    failures: tuple[int, int]
    """Says why a child could not be locked down. It is closed before code runs."""

    @classmethod
    def lay(cls) -> "Plumbing":
        """Make all of it."""
        return cls(*(os.pipe2(os.O_CLOEXEC) for _ in range(3)))

    def keep_child_ends(self, stdin: bytes) -> None:
        """Become the first three descriptors; the lockdown closes all others.

        Args:
            stdin: What the child will read.
        """
        file = os.memfd_create("stdin", os.MFD_CLOEXEC)
        while stdin:
            stdin = stdin[os.write(file, stdin) :]
        os.lseek(file, 0, os.SEEK_SET)
        for target, descriptor in enumerate((file, self.out[1], self.err[1])):
            os.dup2(descriptor, target)

    def keep_parent_ends(self) -> None:
        """Close what is the child's, and never wait for what it may write."""
        for descriptor in (self.out[1], self.err[1], self.failures[1]):
            os.close(descriptor)
        for descriptor in (self.out[0], self.err[0], self.failures[0]):
            os.set_blocking(descriptor, False)

    def close(self) -> bytes:
        """Close the parent's ends.

        Returns:
            Why the child could not be locked down; empty if it could.
        """
        try:
            return os.read(self.failures[0], 1 << 12)
        except BlockingIOError:
            return b""
        finally:
            for descriptor in (self.out[0], self.err[0], self.failures[0]):
                os.close(descriptor)
