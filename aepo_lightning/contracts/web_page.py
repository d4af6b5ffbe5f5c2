"""Pages that are given, not fetched: what a task writes, and what search and page readers answer from."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class WebPage:
    """One page of a web that is held in memory."""

    url: str
    """Its address, unique among the pages."""
    title: str
    text: str
    is_listed: bool = True
    """Whether search finds it. Other pages are reached by following links only."""
