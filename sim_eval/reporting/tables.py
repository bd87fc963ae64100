"""The one model of a table: aligned text for a terminal, Markdown for a page, and how numbers are written in both.

Text is at most 100 characters wide, or as wide as the terminal. Programs get figures by ``--json`` and ``--csv``.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import StringIO
from shutil import get_terminal_size
from typing import Generic, TypeVar

LONG = 25  # rows that a page shows at once
FOLDED = 10  # characters to which a column of words may shrink on a narrow screen
WIDTH, WIDEST = 100, 160  # characters of a line in a file or pipe, and at most on a wide terminal
RULE = "    \n    \n -  \n    \n    \n    \n    \n    \n"  # rich's drawing of a border: only a line below the header

Row = TypeVar("Row")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Column(Generic[Row]):
    """A column.

    Attributes:
        head: its name.
        cell: the text that stands in it for a row.
        needed: a table in which this holds for no row does without the column.
    """

    head: str
    cell: Callable[[Row], str]
    needed: Callable[[Row], bool] = lambda row: True

    def of(self, get: Callable[[Value], Row]) -> Column[Value]:
        """The same column for rows that hold this column's row."""
        return Column(self.head, lambda value: self.cell(get(value)), lambda value: self.needed(get(value)))


@dataclass(frozen=True)
class Table:
    """Cells of text in columns. ``str()`` is made for the terminal.

    Attributes:
        header: a name for each column.
        rows: a cell for each column.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    @classmethod
    def of(
        cls, labels: Sequence[str], columns: Sequence[Column[Row]], rows: Iterable[tuple[Sequence[str], Row]]
    ) -> Table:
        """A table of labels and columns.

        Args:
            labels: names of the first columns.
            columns: those that follow.
            rows: the first cells of a row, and the value from which the columns make the others.
        """
        rows = list(rows)
        shown = [column for column in columns if not rows or any(column.needed(row) for _, row in rows)]
        header = (*labels, *(column.head for column in shown))
        return cls(header, tuple((*first, *(column.cell(row) for column in shown)) for first, row in rows))

    def __str__(self) -> str:
        return self.text(screen_width())

    def text(self, width: int = WIDTH) -> str:
        """Aligned columns, at most ``width`` characters wide if the numbers allow that.

        Where the table would be wider, headers and columns of words wrap; cells with numbers never do.
        """
        from rich.box import Box
        from rich.console import Console
        from rich.table import Table as RichTable
        from rich.text import Text

        columns = list(zip(self.header, *self.rows, strict=True))
        words = [all(cell.strip()[:1].isalpha() for cell in cells) for _, *cells in columns]
        whole = [max(map(len, [*cells, *head.split()]), default=0) for head, *cells in columns]
        least = [min(size, FOLDED) if fold else size for size, fold in zip(whole, words, strict=True)]
        gaps = 2 * (len(columns) - 1)
        wide = sum(max(size, len(head)) for size, head in zip(whole, self.header, strict=True)) + gaps > width
        table = RichTable(box=Box(RULE, ascii=True), show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for head, size, fold in zip(self.header, whole, words, strict=True):
            table.add_column(Text(head), width=size if wide and not fold else None, overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(cell) for cell in row))
        screen = Console(file=StringIO(), width=max(width, sum(least) + gaps), color_system=None)
        with screen.capture() as drawn:
            screen.print(table, crop=False)
        return "\n".join(line.rstrip() for line in drawn.get().splitlines())

    def markdown(self) -> str:
        lines = []
        for cells in (self.header, ["---"] * len(self.header), *self.rows):
            text = " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
            lines.append(f"| {text} |")
        return "\n".join(lines)

    def folded(self) -> str:
        """Markdown in which a long table is shown when the reader opens it."""
        if len(self.rows) <= LONG:
            return self.markdown()
        return f"<details><summary>{len(self.rows)} rows</summary>\n\n{self.markdown()}\n\n</details>"


def screen_width() -> int:
    """Characters of a line on standard output."""
    return min(get_terminal_size().columns, WIDEST) if sys.stdout.isatty() else WIDTH


def wrapped(text: str, indent: int = 0) -> str:
    """A paragraph for the terminal, whose first line begins after so many characters and whose others are indented."""
    width = min(screen_width(), WIDTH) - indent
    lines = textwrap.wrap(text, max(width, FOLDED), break_long_words=False, break_on_hyphens=False)
    return f"\n{' ' * indent}".join(lines)


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def limits(bounds: tuple[float, float]) -> str:
    """An interval of fractions, in per cent."""
    low, high = (round(100 * bound, 1) + 0.0 for bound in bounds)  # no "-0.0"
    return f"[{low:.1f}, {high:.1f}]"


def estimate(share: float, bounds: tuple[float, float]) -> str:
    """A rate with its interval."""
    return f"{percent(share)} {limits(bounds)}"
