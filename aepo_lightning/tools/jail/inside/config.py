"""What the pool tells a fresh zygote over the socket; the command line of a process can be read by others."""

from dataclasses import dataclass

JAIL_FOLDER = "/jail"
"""What is ours inside. All else inside stands where it stands on the host, so no common name may be taken."""

WORK_FOLDER = f"{JAIL_FOLDER}/work"
"""The one place that code may write to, and its working directory."""

DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


@dataclass(frozen=True, slots=True, kw_only=True)
class ZygoteConfig:
    """Settings of one worker, the same for all its calls."""

    uid: int | None
    """User to become, or None to stay who one is (in a user namespace of one's own)."""
    owner: int
    """Descriptor of a handle of the process that started the worker, which must not outlive it."""
    host_pid_namespace: str
    """Name of the namespace that the worker must not be in, as `/proc/self/ns/pid` links to it."""
    site_paths: list[str]
    """Folders with packages, beyond the standard library."""
    preload: list[str]
    """Packages imported before the first call. Missing ones are skipped."""
    readable: list[str]
    """Folders that code may read."""
    memory_mb: int
    """Address space of a call in MiB."""
    max_output_bytes: int
    """Most of standard output and of standard error, each."""
    max_files: int
    """Most files and folders that a call may have at a time."""
    max_file_mb: int
    """Size of the largest file in MiB."""
    demote_after_s: float
    """Seconds after which a call yields the processor to shorter ones."""
