"""How many threads torch computes with in this process."""

import torch

from aepo_lightning.errors import ConfigError


def set_threads(num_threads: object) -> None:
    """Let torch compute with so many threads.

    Args:
        num_threads: As it was given; None leaves it as it is.

    Raises:
        ConfigError: If it is no positive number.
    """
    if num_threads is None:
        return
    if not isinstance(num_threads, int) or isinstance(num_threads, bool) or num_threads < 1:
        raise ConfigError(f"`num_threads` must be null or at least 1, but got {num_threads!r}.")
    torch.set_num_threads(num_threads)
