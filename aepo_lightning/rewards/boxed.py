r"""Finds the answer that a policy put into `\boxed{...}`."""

import re

_OPENING = r"\boxed{"
_BRACE = re.compile("[{}]")


def last_boxed(text: str) -> str | None:
    r"""Return what stands inside the last `\boxed{...}`, with nested braces kept.

    The last opening decides: if its braces do not close, an earlier complete box does not count. Every brace counts,
    also an escaped one, so `\boxed{\{1\}}` works and `\boxed{\{}` does not close.

    Args:
        text: Any text.

    Returns:
        The content as written, which may be empty, or None if there is no box or the last one does not close.
    """
    _, opening, tail = text.rpartition(_OPENING)
    if not opening:
        return None
    depth = 1
    for brace in _BRACE.finditer(tail):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return tail[: brace.start()]
    return None
