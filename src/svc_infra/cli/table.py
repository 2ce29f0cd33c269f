"""Tables for people, on standard output."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

_WIDTH_OF_A_FILE = 240


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()
) -> None:
    """Print ``rows`` under ``columns``; those named in ``right`` are aligned to the right.

    None is an empty cell. Where the output is no terminal nothing is cut to the width of a screen.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        # Text, because a tenant may be called [red].
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    Console(width=None if sys.stdout.isatty() else _WIDTH_OF_A_FILE).print(table)
