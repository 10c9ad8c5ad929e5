"""Tables in a terminal: by rich where it is installed, otherwise in plain columns."""

import sys

from ..errors import MissingDependency, require


def print_table(rows: list[list[str]]) -> None:
    """Prints rows of text, the first one as titles; all columns but the first are set to the right."""
    try:
        console, table = require("rich.console", "tables"), require("rich.table", "tables")
        box = require("rich.box", "tables")
    except MissingDependency:
        _print_plain(rows)
        return
    made = table.Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for number, title in enumerate(rows[0]):
        made.add_column(title, justify="left" if number == 0 else "right", no_wrap=not sys.stdout.isatty())
    for row in rows[1:]:
        made.add_row(*row)
    wide = None if sys.stdout.isatty() else 10_000  # a file has no width
    console.Console(width=wide, highlight=False, markup=False).print(made)


def _print_plain(rows: list[list[str]]) -> None:
    rows = [[cell.replace("\n", " ") for cell in row] for row in rows]
    widths = [max(len(row[number]) for row in rows) for number in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        print("  ".join(cells).rstrip())
