"""What one call is asked to do, on its way from the pool to the child, and the name of how it ended."""

import json
import math
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from aepo_lightning.tools.jail.inside.framing import pack_frame


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Code and what it may use."""

    code: str
    timeout_s: float
    stdin: str = ""
    seed: int = 0
    """For the generators of `random`, numpy and sympy."""
    history: Sequence[tuple[str, int]] = ()
    """Code and seed of earlier calls, which are run again first, in silence."""

    @property
    def cpu_s(self) -> int:
        """Seconds of processor time, in case that the deadline is not kept."""
        return math.ceil(self.timeout_s) + 1

    def pack(self) -> bytes:
        """Encode it as a message. Half surrogate pairs, which are no text, become question marks."""
        fields = {"code": self.code, "stdin": self.stdin, "seed": self.seed, "history": list(self.history)}
        body = json.dumps(fields, ensure_ascii=False).encode("utf-8", "replace")
        return pack_frame({"timeout_s": self.timeout_s}, body)

    @classmethod
    def read(cls, timeout_s: float, body: bytes) -> "Job":
        """Decode a message."""
        return cls(timeout_s=timeout_s, **json.loads(body))


def name_exit(status: int, has_no_memory: bool) -> str:
    """Say how code ended, as `ExitKind` has it. Its exit code is its own choice, so all that is read is if it is zero.

    Args:
        status: Exit code, or minus the number of the signal that ended it.
        has_no_memory: Whether a `MemoryError` ended the code, as whoever ran it says.
    """
    if status == -signal.SIGXCPU:
        return "timeout"
    if status < 0:
        return "killed"
    if status == 0:
        return "ok"
    return "memory" if has_no_memory else "error"
