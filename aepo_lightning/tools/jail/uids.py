"""A user number for each worker that root starts, unique on this machine.

The kernel counts processes for each user, so two workers must not share one. What reserves a number is a bound abstract
socket: it needs no file, and the kernel frees it when its holder ends, however it ends.
"""

import socket

from aepo_lightning.errors import ConfigError

# Above what distributions give to people, below the 61184 where systemd's dynamic users begin.
_FIRST, _LAST = 60_000, 61_183


class UserLease:
    """The right to use one user number until it is closed.

    Raises:
        ConfigError: If all are taken.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        for uid in range(_FIRST, _LAST + 1):
            try:
                self._socket.bind(f"\0aepo-lightning-python-{uid}")
            except OSError:
                continue
            self.uid = uid
            return
        self._socket.close()
        raise ConfigError(
            f"There must be fewer than {_LAST - _FIRST + 1} Python workers on one machine, but all user numbers are "
            "taken. Lower `num_workers`."
        )

    def close(self) -> None:
        """Give the number back."""
        self._socket.close()
