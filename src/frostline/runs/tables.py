"""Tables on a screen."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table as wide as it needs to be where the output is a file, folded to the screen where it is a terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    widest = sum(max(len(row[column]) for row in (header, *rows)) + 3 for column in range(len(header))) + 1
    console = Console() if sys.stdout.isatty() else Console(width=max(widest, 80))
    table = Table(show_edge=False)
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
