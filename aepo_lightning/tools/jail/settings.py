"""Settings of a pool, checked."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from aepo_lightning.errors import ConfigError
from aepo_lightning.tools.jail.inside.framing import MAX_BODY_BYTES

ISOLATION_MODES = ("auto", "bubblewrap", "remote", "unsafe")
_MIN_MEMORY_MB = 256
_MIN_SPARE_WORKERS = 4
_MAX_SECONDS = 86_400.0
# What a message between pool and worker holds: both outputs, or text in which each byte may take six.
_MAX_OUTPUT_BYTES, _MAX_INPUT_BYTES = (MAX_BODY_BYTES - 1) // 2, MAX_BODY_BYTES // 8


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """Everything that can be set about a pool.

    Raises:
        ConfigError: If a setting cannot work.
    """

    num_workers: int | None = None
    """Worker processes, each with about 50 MB of its own. By default twice the cores, and at least four more than
    cores, so that a few hanging calls leave room for others."""
    num_active: int | None = None
    """Calls that may be in their first `demote_after_s` seconds at a time. By default the number of cores."""
    demote_after_s: float = 0.03
    """Seconds after which a call no longer counts as active, and seconds of processor time after which its priority is
    lowered for the first time."""
    max_waiting: int = 10_000
    """Calls that may wait for a worker. Further ones are refused with `PoolBusyError`."""
    timeout_s: float = 10.0
    """Seconds a call may run, unless it says otherwise. They start when it gets a worker."""
    memory_mb: int = 1024
    """Address space of a call in MiB, imported packages included."""
    max_output_bytes: int = 1 << 16
    """Most of standard output and of standard error, each. One byte more ends the code."""
    max_input_bytes: int = 1 << 20
    """Most of code and standard input of one call together."""
    work_mb: int = 64
    """Size of the work folder in MiB. It lies in memory."""
    max_files: int = 4096
    """Most files and folders in the work folder at a time."""
    preload: Sequence[str] = ("numpy", "sympy")
    """Packages that are imported before the first call. Missing ones are left out."""
    isolation: str = "auto"
    """`auto`: bubblewrap, else the remote sandbox, else refuse. `unsafe` runs code as the user of this process."""
    remote_url: str | None = None
    """Address of a sandbox that speaks the SandboxFusion protocol."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        for name in ("timeout_s", "demote_after_s"):
            check_seconds(name, getattr(self, name))
        for name in (
            "num_workers",
            "num_active",
            "max_waiting",
            "max_output_bytes",
            "max_input_bytes",
            "work_mb",
            "max_files",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"`{name}` must be at least 1, but got {value}. Raise it.")
        for name, most in (("max_output_bytes", _MAX_OUTPUT_BYTES), ("max_input_bytes", _MAX_INPUT_BYTES)):
            if getattr(self, name) > most:
                raise ConfigError(f"`{name}` must be at most {most}, but got {getattr(self, name)}. Lower it.")
        if self.memory_mb < _MIN_MEMORY_MB:
            raise ConfigError(
                f"`memory_mb` must be at least {_MIN_MEMORY_MB}, but got {self.memory_mb}. Python with its packages "
                "alone needs about that much."
            )
        if self.isolation not in ISOLATION_MODES:
            raise ConfigError(
                f"`isolation` must be one of {', '.join(ISOLATION_MODES)}, but got {self.isolation!r}. Use auto."
            )
        if self.isolation == "remote" and not self.remote_url:
            raise ConfigError("`remote_url` must be set for isolation=remote, but got nothing. Give its address.")

    @property
    def workers(self) -> int:
        """Number of worker processes."""
        return self.num_workers or max(2 * num_cores(), num_cores() + _MIN_SPARE_WORKERS)

    @property
    def active(self) -> int:
        """Number of calls that may be in their first moments at a time."""
        return min(self.workers, self.num_active or num_cores())


def check_seconds(name: str, value: float) -> None:
    """Refuse a time limit that no call could keep.

    Raises:
        ConfigError: If it is not positive, or longer than a day.
    """
    if not 0 < value <= _MAX_SECONDS:
        raise ConfigError(
            f"`{name}` must be positive and finite, at most {_MAX_SECONDS:g}, but got {value}. Give seconds."
        )


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
