"""A model's tokenizer as its own file defines it.

Since version 5, transformers builds the class that a folder names from the vocabulary alone. Where the tokenizer was
made by another (DeepSeek's models and those distilled from them name Llama's class), the spaces of every text are lost
without a word.
"""

import logging
from contextlib import suppress

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

logger = logging.getLogger(__name__)
_TEXT = "one two"


def load_tokenizer(place: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder or the Hub, by the class that it names or, if that loses spaces, without it.

    Args:
        place: A folder, or a model's name on the Hub.
        trust_remote_code: Whether code that a model brings along may run.

    Raises:
        OSError: If there is no tokenizer.
        ValueError: If it cannot be read.
    """
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(place, trust_remote_code=trust_remote_code)
    named = type(tokenizer)
    if named is PreTrainedTokenizerFast or not tokenizer.is_fast or _keeps_spaces(tokenizer):
        return tokenizer
    as_stored = _as_stored(place)
    if as_stored is None or not _keeps_spaces(as_stored):
        return tokenizer
    logger.warning(
        "The tokenizer of %s is read as its tokenizer.json defines it, because %s, the class that it names, loses the "
        "spaces of every text.",
        place,
        named.__name__,
    )
    return as_stored


def _as_stored(place: str) -> PreTrainedTokenizerBase | None:
    """Return what tokenizer.json defines; None if there is no such file, as beside vocabularies of SentencePiece."""
    with suppress(OSError, ValueError):
        tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(place)
        return tokenizer
    return None


def _keeps_spaces(tokenizer: PreTrainedTokenizerBase) -> bool:
    ids = tokenizer.encode(_TEXT, add_special_tokens=False)
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False)).strip() == _TEXT
