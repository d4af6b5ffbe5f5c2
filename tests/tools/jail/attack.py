"""How an attack is written down."""

from dataclasses import dataclass

DENIED = "PermissionError|FileNotFoundError|Read-only file system"


@dataclass(frozen=True)
class Attack:
    """Code, how it must end, and what it must have written (a regular expression over stdout and stderr)."""

    name: str
    code: str
    exits: str
    writes: str = ""
    timeout_s: float = 20.0  # those that need their deadline set a short one; the rest must not depend on the load


def denied(name, code):
    return Attack(name, code, "error", DENIED)
