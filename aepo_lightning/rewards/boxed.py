r"""Finds the answer that a policy put into `\boxed{...}`."""

import re
from typing import Literal

from aepo_lightning.errors import ConfigError

BoxRule = Literal["strict", "official"]
"""Which box of an answer counts: the last `\\boxed{...}`, or what the released reward function reads."""
_OPENING = r"\boxed{"
_SPACED = r"\boxed "
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


def official_boxed(text: str) -> str | None:
    r"""Return the answer that the released reward function reads.

    A `\boxed` before a space takes precedence, wherever it stands: the answer is all that follows the last one, up to a
    `$`. Else the last `\boxed` decides, and must be a `\boxed{...}` whose braces close.

    Args:
        text: Any text with a `\boxed{` in it, as the format asks for.

    Returns:
        The answer as written, which may be empty, or None if there is none.
    """
    _, spaced, tail = text.rpartition(_SPACED)
    if spaced:
        return tail.partition("$")[0]
    is_opened = text.rfind(_OPENING) == text.rfind(_OPENING[:-1])
    return last_boxed(text) if is_opened else None


def boxed_answer(text: str, rule: BoxRule) -> str | None:
    """Return what stands in the box of the first `<answer>` block, or None if there is no box that can be read.

    Args:
        text: A response, well-formed but for its box.
        rule: Which box counts.
    """
    return _READERS[rule](text[text.find("<answer>") : text.find("</answer>")])


def no_box_problem(rule: BoxRule) -> str:
    """Return what is wrong with a response whose box cannot be read."""
    return _NO_BOX[rule]


def check_box_rule(rule: str) -> None:
    """Refuse an unknown rule.

    Raises:
        ConfigError: If there is no such rule.
    """
    if rule not in _READERS:
        raise ConfigError(f"`box` must be one of {', '.join(_READERS)}, but got {rule!r}.")


_READERS = {"strict": last_boxed, "official": official_boxed}
_NO_BOX = {
    "strict": r"The braces of the last \boxed{...} do not close inside the answer.",
    "official": r"The last \boxed in the answer is no \boxed{...} whose braces close.",
}
