"""Tables on stdout that fit their terminal: no number and no heading is broken."""

import sys
from collections.abc import Sequence

from ..chat.harmless import harmless

_BETWEEN = 2
_NUMBER = 24
"""What is wider is text, which may be folded."""
_FILE = 160
"""Columns of what is no terminal: rich would take 80."""


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, wide: int = 0) -> None:
    """Print a table on stdout. The first column is text, the others are numbers. What does not fit lies on its side, or
    the column ``wide`` is folded."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else _FILE)
    columns, cells = lay_out(columns, [[harmless(str(cell)) for cell in row] for row in rows], console.width)
    table = Table(
        title=Text(harmless(title)) if title else None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_header=any(columns),
        show_edge=False,
        pad_edge=False,
        padding=(0, _BETWEEN - 1, 0, 0),
    )
    for number, column in enumerate(columns):
        widest = max(map(len, [column, *(row[number] for row in cells)]))
        folds = number == wide or widest > _NUMBER
        table.add_column(
            Text(column),
            justify="right" if number and number != wide else "left",
            overflow="fold",
            no_wrap=not folds,
            min_width=None if folds else widest,
        )
    for row in cells:
        table.add_row(*map(Text, row))
    with console.capture() as drawn:
        console.print(table)
    print("\n".join(line.rstrip() for line in drawn.get().splitlines() if line.strip()))


def lay_out(columns: Sequence[str], rows: list[list[str]], width: int) -> tuple[Sequence[str], list[list[str]]]:
    """The table as it is, or on its side where only that fits into ``width`` columns (pure)."""
    if _width(columns, rows) <= width:
        return columns, rows
    head, *others = zip(columns, *rows, strict=True)
    side = [list(row) for row in others]
    return (head, side) if _width(head, side) <= width else (columns, rows)


def _width(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    return sum(max(map(len, column)) + _BETWEEN for column in zip(columns, *rows, strict=True)) - _BETWEEN
