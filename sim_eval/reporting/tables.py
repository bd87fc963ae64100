"""Tables for the terminal and in Markdown, and how numbers are written in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from sim_eval.reporting.intervals import success_interval

if TYPE_CHECKING:
    from sim_eval.evaluation.run_folder import Run


class Grid(NamedTuple):
    """A table's header and its rows, cell by cell."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def rate(successes: int, episodes: int) -> str:
    return f"{100 * successes / episodes:.1f} %" if episodes else "-"


def interval(successes: int, episodes: int) -> str:
    return limits(success_interval(successes, episodes))


def limits(bounds: tuple[float, float]) -> str:
    """An interval of fractions, in per cent."""
    low, high = (round(100 * bound, 1) + 0.0 for bound in bounds)  # no "-0.0"
    return f"[{low:.1f}, {high:.1f}]"


def counted(successes: int, episodes: int) -> str:
    """A rate with its interval."""
    return f"{rate(successes, episodes)} {interval(successes, episodes)}"


def policy_label(run: Run) -> str:
    """Whose run it is: name, weights, how it was run otherwise than its checkpoint says, and whether it sees all."""
    weights = f"@{run.digest[:8]}" if run.digest else ""
    variant = f", {run.variant}" if run.variant else ""
    return f"{run.policy}{weights}{variant}{' (privileged)' if run.privileged else ''}"


def terminal(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, two spaces apart."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
