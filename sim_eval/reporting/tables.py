"""Tables for the terminal and in Markdown, and how numbers are written in them."""

from __future__ import annotations

from collections.abc import Sequence

from sim_eval.reporting.intervals import success_interval


def rate(successes: int, episodes: int) -> str:
    return f"{100 * successes / episodes:.1f} %" if episodes else "-"


def interval(successes: int, episodes: int) -> str:
    low, high = success_interval(successes, episodes)
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def terminal(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, two spaces apart."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
