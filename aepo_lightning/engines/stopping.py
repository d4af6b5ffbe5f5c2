"""Finding stop strings in a growing sequence of tokens without decoding it anew at each token."""

from transformers import PreTrainedTokenizerBase


class TokenPieces:
    """The text that each token adds to others before it, decoded once per token id.

    Many tokenizers leave out the space before a first token, so each is decoded after another one. Pieces are exact for
    ASCII stop strings: a token that holds part of a multi-byte character decodes to a replacement character, which no
    stop string contains.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._pieces: dict[int, str] = {}
        self._before: list[int] = tokenizer.encode("x", add_special_tokens=False)
        self._text_before = self._decode(self._before)

    def __getitem__(self, token_id: int) -> str:
        """Return the text of one token; special tokens are spelled out."""
        piece = self._pieces.get(token_id)
        if piece is None:
            both = self._decode([*self._before, token_id])
            is_added = both.startswith(self._text_before)
            piece = both.removeprefix(self._text_before) if is_added else self._decode([token_id])
            self._pieces[token_id] = piece
        return piece

    def _decode(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids, clean_up_tokenization_spaces=False))


class StopMatcher:
    """Follows one generation and says when one of its stop strings is complete."""

    __slots__ = ("_keep", "_stop", "_tail")

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._keep = max((len(s) for s in stop), default=1) - 1
        self._tail = ""

    def push(self, piece: str) -> bool:
        """Add the text of the next token; return True if a stop string ended in it."""
        text = self._tail + piece
        if any(stop in text for stop in self._stop):
            return True
        self._tail = text[-self._keep :] if self._keep else ""
        return False
