"""Tables for people, on standard output."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence

import click

_WIDTH_OF_A_FILE = 10_000
_NARROWEST_PROSE = 24
_FRACTION = re.compile(r"(?<=T\d\d:\d\d:\d\d)\.\d+(?=Z$)")


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()
) -> None:
    """Print ``rows`` under ``columns``; those named in ``right`` are aligned to the right.

    None is an empty cell, and instants are told to the second. Nothing is cut, and only prose is wrapped, so
    that an id can be copied: a terminal that is too narrow for that gets each row as lines of its own. A file
    is as wide as it needs to be.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [["" if cell is None else _FRACTION.sub("", str(cell)) for cell in row] for row in rows]
    console = Console(width=None if sys.stdout.isatty() else _WIDTH_OF_A_FILE)
    table = Table(box=box.SIMPLE_HEAD)
    for column, content in zip(
        columns, zip(*cells, strict=True) if cells else [()] * len(columns), strict=True
    ):
        is_prose = any(" " in cell and len(cell) > _NARROWEST_PROSE for cell in content)
        table.add_column(
            column,
            justify="right" if column in right else "left",
            overflow="fold",
            no_wrap=not is_prose,
            min_width=_NARROWEST_PROSE if is_prose else None,
        )
    for row in cells:
        table.add_row(*map(Text, row))  # Text, because a tenant may be called [red]
    unlimited = console.options.update(max_width=_WIDTH_OF_A_FILE)
    if console.measure(table, options=unlimited).minimum <= console.width:
        console.print(table)
    else:
        _print_records(columns, cells)


def _print_records(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    width = max(map(len, columns))
    for row in cells:
        for column, cell in zip(columns, row, strict=True):
            if cell:
                click.echo(f"{column:<{width}}  {cell}")
        click.echo()
