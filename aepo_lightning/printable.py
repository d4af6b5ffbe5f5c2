"""Texts of models, tools and judges in the log and on a terminal."""


def printable(text: str) -> str:
    """Return a text in one line of which a terminal obeys nothing: somebody else has written it."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)
