"""Tables and texts of evaluations on a terminal."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table as RichTable

from aepo_lightning.evaluation.report import Table

_WIDE = 200


def print_tables(tables: Iterable[Table], notes: Iterable[str] = ()) -> None:
    """Print tables that have rows, then notes, each on a line of its own."""
    console = plain_console()
    for table in tables:
        if table.rows:
            console.print(_rich(table))
    for note in notes:
        console.print(note, soft_wrap=True)


def print_text(text: str, end: str = "\n") -> None:
    """Print a text as it is, in lines as long as its own."""
    plain_console().out(text, end=end, highlight=False)


def plain_console() -> Console:
    """Return where answers go: what stands in brackets stays, and lines that are not on a terminal are long."""
    console = Console(markup=False, emoji=False, highlight=False)
    return console if console.is_terminal else Console(markup=False, emoji=False, highlight=False, width=_WIDE)


def _rich(table: Table) -> RichTable:
    found = RichTable(title=table.title, title_justify="left")
    for number, heading in enumerate(table.headings):
        found.add_column(heading, justify="left" if table.is_of_words(number) else "right", overflow="fold")
    for row in table.rows:
        found.add_row(*map(_printable, row))
    return found


def _printable(text: str) -> str:
    """Return a text of which a terminal obeys nothing: questions and ids are somebody else's."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)
