"""Reads stored search results: one JSON object from query to formatted result, as the official code writes it."""

import json
import re
from pathlib import Path

from aepo_lightning.errors import DataError

_PAGE = re.compile(r"^Page \d+: ", re.MULTILINE)


def load_search_cache(path: str | Path) -> dict[str, str]:
    """Read a file of stored search results.

    Args:
        path: A UTF-8 JSON file with one object: each key a query, each value the text the search tool answered.

    Returns:
        The stored text of each query, in the order of the file.

    Raises:
        DataError: If the file cannot be read, is not such an object, or holds a result that is not text. The message
            names the file and the key.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"`path` must be a readable file, but got {path} ({error.strerror}). Check the path."
        ) from error
    except ValueError as error:
        raise DataError(f"{path} must be UTF-8 JSON, but got: {error}. Fetch the file again.") from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise DataError(f"{path} must hold one JSON object (query to result), but got {kind}. Check the file.")
    for query, result in content.items():
        if not isinstance(result, str):
            kind = type(result).__name__
            raise DataError(f"{path}: the result of key {query!r} must be text, but got {kind}. Drop or fix the key.")
    return content


def split_snippets(result: str) -> list[str]:
    """Split a stored result into its snippets.

    Args:
        result: A formatted result, `Page i: snippet` per line, or any other text.

    Returns:
        The snippets without their `Page i: ` labels, white space squeezed, in order. A text without labels is one
        snippet; a blank one is none.
    """
    return [" ".join(piece.split()) for piece in _PAGE.split(result) if piece.strip()]
