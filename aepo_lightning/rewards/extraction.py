r"""Reads the answer from a response, by the evaluation protocol of the paper and by simpler ones.

Unlike the reward, which asks for a well-formed response first (`answer_format.py`), evaluation takes what it finds.
"""

import re
from typing import Literal, get_args

from aepo_lightning.rewards.boxed import last_boxed

ExtractionMode = Literal["paper", "boxed", "answer", "whole"]
"""Where the answer stands: see `extract_answer`."""
EXTRACTION_MODES: tuple[str, ...] = get_args(ExtractionMode)

_NUM_LAST_LINES = 5
_OPENING, _CLOSING = "<answer>", "</answer>"
_TEXT = r"\text{"
_BRACES = re.compile(r"\\text\{|[{}]")


def extract_answer(text: str, mode: ExtractionMode = "paper") -> str:
    r"""Return the answer that a response gives.

    Args:
        text: Everything after the prompt.
        mode: `paper`: the last `\boxed{...}` of the last `<answer>` block, else that of the whole text, each without
            `\text{...}` around its words; else the last five lines. `boxed`: the last box of the text or nothing.
            `answer`: the last `<answer>` block, of which its last box if it has one, or nothing. `whole`: all of it.

    Returns:
        The answer without white space around it. Empty if there is none.

    Raises:
        ValueError: If the mode is unknown.

    References:
        AEPO, arXiv:2510.14545, section 4 and the released evaluation, by their public description. Where that leaves
        it open: a block that the end of the response cuts off counts to its end, and a box whose braces do not close is
        none.
    """
    if mode not in EXTRACTION_MODES:
        raise ValueError(f"`mode` must be one of {', '.join(EXTRACTION_MODES)}, but got {mode!r}.")
    if mode == "whole":
        return text.strip()
    block = last_answer_block(text) if mode != "boxed" else None
    boxed = None if block is None else last_boxed(block)
    if boxed is None and mode != "answer":
        boxed = last_boxed(text)
    if boxed is not None:
        return without_text_command(boxed).strip()
    if mode == "answer":
        return (block or "").strip()
    return "\n".join(text.strip().splitlines()[-_NUM_LAST_LINES:]).strip() if mode == "paper" else ""


def last_answer_block(text: str) -> str | None:
    """Return what stands in the last `<answer>` block, or None if there is none.

    Args:
        text: Any text. A stop string may have taken `</answer>` away.
    """
    _, opening, tail = text.rpartition(_OPENING)
    return tail.partition(_CLOSING)[0] if opening else None


def without_text_command(text: str) -> str:
    r"""Return a formula with every `\text{words}` replaced by its words; one that does not close stays as it is."""
    if _TEXT not in text:
        return text
    dropped: list[tuple[int, int]] = []
    open_at: list[tuple[int, int] | None] = []
    for brace in _BRACES.finditer(text):
        if brace.group() != "}":
            open_at.append(brace.span() if brace.group() == _TEXT else None)
        elif open_at and (opening := open_at.pop()) is not None:
            dropped += [opening, brace.span()]
    kept, end = [], 0
    for start, stop in sorted(dropped):
        kept.append(text[end:start])
        end = stop
    return "".join([*kept, text[end:]])
