"""Model-written Python in a warm jail: one pool, a fresh child process for each call."""

from aepo_lightning.tools.jail.execution import (
    Execution,
    ExitKind,
    Isolation,
    PoolBusyError,
    PoolUnavailableError,
    SandboxUnavailableError,
)
from aepo_lightning.tools.jail.pool import PythonPool
from aepo_lightning.tools.jail.session import PythonSession
from aepo_lightning.tools.jail.settings import PoolSettings

__all__ = [
    "Execution",
    "ExitKind",
    "Isolation",
    "PoolBusyError",
    "PoolSettings",
    "PoolUnavailableError",
    "PythonPool",
    "PythonSession",
    "SandboxUnavailableError",
]
