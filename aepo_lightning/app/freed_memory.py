"""What becomes of memory that a process has freed."""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of <malloc.h>."""
_LARGEST_KEPT = 2**25
"""glibc accepts no larger threshold on 64-bit machines."""


def keep_freed_memory() -> bool:
    """Let the C library keep what tensors below 32 MiB have freed, instead of giving it back to the system.

    The next tensors then need no new pages, each of which costs a fault. The process stays as large as it once was.

    Returns:
        Whether the C library can do that: glibc does, others are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    settings = ((_MMAP_THRESHOLD, _LARGEST_KEPT), (_TRIM_THRESHOLD, 2**31 - 1))
    return all(mallopt(name, value) == 1 for name, value in settings)
