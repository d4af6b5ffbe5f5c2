"""Results of a search, and how the policy reads them."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchHit:
    """One result. Providers leave out what they do not have."""

    snippet: str
    title: str = ""
    url: str = ""


def write_hits(hits: Sequence[SearchHit], style: str, max_snippet_chars: int) -> str:
    """Return results as the policy reads them; empty if there are none."""
    pieces = []
    for number, hit in enumerate(hits, start=1):
        snippet = _squeeze(hit.snippet)[:max_snippet_chars]
        if style == "paper":
            pieces.append(f"Page {number}: {snippet}")
        else:
            pieces.append(
                "\n".join(filter(None, (f"[{number}] {_squeeze(hit.title)}".strip(), _squeeze(hit.url), snippet)))
            )
    return ("\n" if style == "paper" else "\n\n").join(pieces)


def _squeeze(text: str) -> str:
    return " ".join(text.split())
