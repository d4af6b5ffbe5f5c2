"""Tables of evaluations on a terminal."""

from collections.abc import Iterable

from rich.table import Table as RichTable

from aepo_lightning.app.printed import plain_console
from aepo_lightning.evaluation.report import Table
from aepo_lightning.printable import printable


def print_tables(tables: Iterable[Table], notes: Iterable[str] = ()) -> None:
    """Print tables that have rows, then notes, each on a line of its own."""
    console = plain_console()
    for table in tables:
        if table.rows:
            console.print(_rich(table))
    for note in notes:
        console.print(note, soft_wrap=True)


def _rich(table: Table) -> RichTable:
    found = RichTable(title=table.title, title_justify="left")
    for number, heading in enumerate(table.headings):
        found.add_column(heading, justify="left" if table.is_of_words(number) else "right", overflow="fold")
    for row in table.rows:
        found.add_row(*map(printable, row))
    return found
