"""How long tools may tidy up: less where a signal has told the run to end, which then has only seconds left."""

from aepo_lightning.distributed.ranks import ending_signal

_AT_THE_END_S = 1.0
"""Many tools and chains may have something to free, and a checkpoint is still to be written."""


def tidying_s(deadline_s: float) -> float:
    """Return the seconds that closing a tool or freeing a state may take.

    Args:
        deadline_s: What it may take in a run that goes on.
    """
    return deadline_s if ending_signal() is None else min(deadline_s, _AT_THE_END_S)
