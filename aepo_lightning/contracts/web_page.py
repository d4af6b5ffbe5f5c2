"""Pages that are given, not fetched: what a task writes, and what search and page readers answer from."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import astuple, dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class WebPage:
    """One page of a web that is held in memory."""

    url: str
    """Its address, unique among the pages."""
    title: str
    text: str
    is_listed: bool = True
    """Whether search finds it. Other pages are reached by following links only."""


def pages_digest(pages: Iterable[WebPage]) -> str:
    """Return a text that names pages: others, or the same in another order, have another one."""
    return hashlib.sha256(json.dumps([astuple(page) for page in pages]).encode()).hexdigest()
