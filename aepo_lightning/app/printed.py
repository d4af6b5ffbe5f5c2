"""What commands print on the standard output: answers, not the log."""

from rich.console import Console

_WIDE = 200


def plain_console() -> Console:
    """Return where answers go: what stands in brackets stays, and lines that are not on a terminal are long."""
    console = Console(markup=False, emoji=False, highlight=False)
    return console if console.is_terminal else Console(markup=False, emoji=False, highlight=False, width=_WIDE)


def print_text(text: str, end: str = "\n") -> None:
    """Print a text as it is, in lines as long as its own."""
    plain_console().out(text, end=end, highlight=False)


def printable(text: str) -> str:
    """Return a text of which a terminal obeys nothing: questions, ids and results of tools are somebody else's."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)
