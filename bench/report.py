"""Results for people: tables on the terminal and in Markdown, everything in JSON."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from penstock.kernels.machine.machine import describe


@dataclass(frozen=True, slots=True)
class Table:
    """A table of text cells. The first column names the row."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def markdown(self) -> str:
        """The table in Markdown."""
        lines = [f"| {' | '.join(cells)} |" for cells in (self.columns, ("---",) * len(self.columns), *self.rows)]
        return "\n".join([self.title, "", *lines, ""])

    def show(self, console: Console) -> None:
        """Print the table."""
        table = RichTable(title=self.title)
        for number, column in enumerate(self.columns):
            table.add_column(column, justify="right" if number else "left")
        for row in self.rows:
            table.add_row(*row)
        console.print(table)


def publish(
    tables: Sequence[Table], results: Mapping[str, Any], *, json_file: Path | None, markdown: Path | None
) -> None:
    """Print ``tables``, and write them to ``markdown`` and ``results`` to ``json_file`` if these are given."""
    console = Console(width=max(120, Console().width))
    for table in tables:
        table.show(console)
    if markdown:
        command = f"```\npython {' '.join(sys.argv)}\n```\n"
        markdown.write_text("\n".join([command, *(table.markdown() for table in tables)]))
    if json_file:
        write_results(results, json_file)


def write_results(results: Mapping[str, Any], file: Path) -> None:
    """Write ``results`` with the command and the machine. Long runs call it half-way too."""
    document = {"command": sys.argv, "machine": asdict(describe())} | dict(results)
    aside = file.with_name(file.name + ".part")
    aside.write_text(json.dumps(document, indent=1, default=str))
    aside.rename(file)
