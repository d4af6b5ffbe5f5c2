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
