"""The text of each token of a sequence, such that the pieces together are the text of the sequence."""

from collections.abc import Sequence
from functools import lru_cache
from typing import cast

from transformers import PreTrainedTokenizerBase

_BROKEN = "\ufffd"
_LONGEST_CHARACTER = 8
"""Tokens that one character may need; a longer run of broken bytes is shown token by token."""


class TokenTexts:
    """Decodes tokens one by one. A character that several tokens make stands with the first, the others are empty."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._after = lru_cache(maxsize=1 << 18)(self._decode_after)

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """Return one text for each token. Special tokens are shown, too."""
        pieces: list[str] = []
        while (start := len(pieces)) < len(token_ids):
            before = token_ids[start - 1] if start else None
            text, width = self._character(before, token_ids[start : start + _LONGEST_CHARACTER])
            pieces += [text, *[""] * (width - 1)]
        return pieces

    def _character(self, before: int | None, following: Sequence[int]) -> tuple[str, int]:
        """Return the text of the first tokens that do not end within a character, and how many they are."""
        for width in range(1, len(following) + 1):
            text = self._after(before, tuple(following[:width]))
            if not text.endswith(_BROKEN):
                return text, width
        return self._after(before, (following[0],)), 1

    def _decode_after(self, before: int | None, group: tuple[int, ...]) -> str:
        """Return what a group of tokens adds to the text of the token before it."""
        if before is None:
            return self._decode(group)
        base, both = self._decode((before,)), self._decode((before, *group))
        return both[len(base) :] if both.startswith(base) else self._decode(group)

    def _decode(self, token_ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return cast(str, text)
