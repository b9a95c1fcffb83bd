"""Prints tables and pairs: with rich on a terminal, else as stable lines."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from dlpool.cli.console import show_lines, stream_for_rich
from dlpool.usertext import escape_unsafe

SHORT = 10  # characters; columns up to this width, and the first column, do not wrap

Cells = Sequence[object]


def show_table(columns: Sequence[str], rows: Sequence[Cells]) -> None:
    """Print a table.

    On a terminal, empty columns are left out. Otherwise prints a header line and a line
    per row; tabs separate the columns, and no column is left out.
    """
    texts = [[clean(cell) for cell in row] for row in rows]
    if not _is_terminal():
        show_lines("\t".join(cells) for cells in [list(columns), *texts])
        return
    _draw(columns, texts)


def show_row(cells: Cells, widths: Sequence[int]) -> None:
    """Print one row of a table before its other rows are known.

    On a terminal, cells are padded to ``widths``; otherwise tabs separate the cells.
    """
    texts = [clean(cell) for cell in cells]
    if _is_terminal():
        padded = [f"{text:{width}}" for text, width in zip(texts, widths, strict=False)]
        show_lines(["  ".join([*padded, *texts[len(padded) :]])])
    else:
        show_lines(["\t".join(texts)])


def show_pairs(pairs: Iterable[tuple[str, object]]) -> None:
    """Print a name and a value per line: in columns on a terminal, else with a tab."""
    texts = [(name, clean(value)) for name, value in pairs]
    width = max((len(name) for name, _ in texts), default=0)
    is_terminal = _is_terminal()
    show_lines(
        f"{name:{width}}  {value}" if is_terminal else f"{name}\t{value}"
        for name, value in texts
    )


def _draw(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Draw the table on the terminal, without its empty columns."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    used = [
        number
        for number in range(len(columns))
        if not rows or any(row[number] for row in rows)
    ]
    table = Table(box=None, pad_edge=False)
    for number in used:
        is_short = (
            number == 0 or max((len(row[number]) for row in rows), default=0) <= SHORT
        )
        table.add_column(columns[number], overflow="fold", no_wrap=is_short)
    for row in rows:
        table.add_row(*(Text(row[number]) for number in used))
    Console(file=stream_for_rich(sys.stdout)).print(table)


def clean(value: object) -> str:
    """Return a value as text with control characters escaped; "" for None."""
    text = "" if value is None else str(value)
    return escape_unsafe(text)


def _is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()
