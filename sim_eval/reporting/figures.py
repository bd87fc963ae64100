"""Figures for a README or a paper: success against minutes or demonstrations, one panel for each task. No counting."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sim_eval.core.files import atomic
from sim_eval.core.types import FloatArray
from sim_eval.policies.spatialvla.configuration_spatialvla import ACTION_EXPERTS
from sim_eval.reporting.panels import Panel, Point
from sim_eval.reporting.summary import Tally

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours (2008), which colour-blind readers can distinguish, and a mark for each.
STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"), ("#56B4E9", "P"))
INK, FAINT, GRID = "#1f2430", "#5c6370", "#e3e6ea"
WIDTH, ROW, HEAD = 9.375, 2.45, 0.78  # inches: the page (900 pixels of an SVG), a row of panels, the room above them
COLUMNS = 4
DODGE = 1.035  # experts stand beside each other at one number of demonstrations: ratio of their places

Draw = Callable[["Axes", Panel, "dict[str, tuple[str, str]]"], None]


def draw_minutes(path: Path, panels: Sequence[Panel]) -> None:
    """Curves over training minutes: thin lines for the seeds, a thick line and a band for all seeds together.

    Raises:
        SimEvalError: the file cannot be written.
    """
    text = "thin line: one seed; thick line and band: all seeds together, Clopper-Pearson 95 % interval"
    _figure(path, panels, _minutes, "Success on the val split while training", text, "training minutes")


def draw_demonstrations(path: Path, panels: Sequence[Panel]) -> None:
    """Points over the number of demonstrations of the task: small for the seeds, large for all seeds together.

    Raises:
        SimEvalError: the file cannot be written.
    """
    text = "small mark: one seed; large mark and whisker: all seeds together, Clopper-Pearson 95 % interval"
    title = "Success on the test split by amount of data"
    _figure(path, panels, _demonstrations, title, text, "demonstrations of the task")


def _figure(path: Path, panels: Sequence[Panel], draw: Draw, title: str, text: str, x_label: str) -> None:
    styles = _styles({series.expert for panel in panels for series in panel.series})
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    height = HEAD + ROW * rows
    with written(path, height, title, text) as figure:
        from matplotlib.lines import Line2D
        from matplotlib.ticker import FixedLocator, PercentFormatter

        axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
        figure.subplots_adjust(
            left=0.077, right=0.985, bottom=0.46 / height, top=1 - (HEAD + 0.28) / height, wspace=0.1, hspace=0.5
        )
        for place, cell in enumerate(axes.flat):
            if place >= len(panels):
                cell.set_axis_off()
                continue
            _dress(cell, panels[place])
            draw(cell, panels[place], styles)
            cell.set_xlabel(x_label, color=INK)
            cell.tick_params(labelleft=place % columns == 0)
            if place % columns == 0:
                cell.set_ylabel("success", color=INK)
            cell.yaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
            cell.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        handles = [
            Line2D([], [], color=colour, marker=mark, markersize=5, linewidth=2, label=expert)
            for expert, (colour, mark) in styles.items()
        ]
        top = 1 - 0.02 / height
        figure.legend(handles=handles, loc="upper right", bbox_to_anchor=(0.99, top), ncols=len(handles), frameon=False)


@contextmanager
def written(path: Path, height: float, title: str, text: str) -> Iterator[Figure]:
    """A page, ``height`` inches high, with a title and a line of text; written when the block ends without an error.

    Raises:
        SimEvalError: the file cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    # A fixed salt and no date: the same numbers give the same file.
    with matplotlib.rc_context({"svg.hashsalt": path.name, "font.size": 8.5, "axes.linewidth": 0.7}):
        figure = Figure(figsize=(WIDTH, height), dpi=192, facecolor="white")
        figure.text(0.012, 1 - 0.1 / height, title, va="top", color=INK, fontsize=11, fontweight="bold")
        figure.text(0.012, 1 - 0.36 / height, text, va="top", color=FAINT)
        yield figure
        with atomic(path) as partial:
            kind = path.suffix.removeprefix(".")
            figure.savefig(partial, format=kind, metadata={"Date": None} if kind == "svg" else None)


def _styles(experts: set[str]) -> dict[str, tuple[str, str]]:
    """Expert -> colour and mark, the same in every figure."""
    order = [*ACTION_EXPERTS, *sorted(experts - set(ACTION_EXPERTS))]
    return {expert: STYLES[place % len(STYLES)] for place, expert in enumerate(order) if expert in experts}


def _dress(axes: Axes, panel: Panel) -> None:
    axes.set_ylim(-0.04, 1.04)
    axes.set_title(panel.task, loc="left", fontsize=9, fontweight="bold", color=INK, pad=15)
    axes.text(0, 1.025, panel.sample, transform=axes.transAxes, va="bottom", fontsize=7.5, color=FAINT)
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, length=2.5, width=0.7)


def _minutes(axes: Axes, panel: Panel, styles: dict[str, tuple[str, str]]) -> None:
    for series in panel.series:
        colour, mark = styles[series.expert]
        if len(series.seeds) > 1:
            for seed in series.seeds:
                axes.plot(*_line(seed), color=colour, linewidth=0.7, alpha=0.6, clip_on=False)
        if not series.pooled:
            continue
        x, rates = _line(series.pooled)
        low, high = zip(*(point.tally.interval for point in series.pooled), strict=True)
        axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
        axes.plot(x, rates, color=colour, linewidth=1.8, marker=mark, markersize=3.4, clip_on=False, zorder=3)
    axes.set_xlim(left=0)


def _demonstrations(axes: Axes, panel: Panel, styles: dict[str, tuple[str, str]]) -> None:
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    for place, series in enumerate(panel.series):
        colour, mark = styles[series.expert]
        step = 2 * place - len(panel.series) + 1
        shift, beside = DODGE**step, DODGE ** (step + (1.6 if step > 0 else -1.6))
        x, rates = _line(series.pooled, shift)
        errors = whiskers([point.tally for point in series.pooled])
        whole = axes.errorbar(
            x, rates, yerr=errors, color=colour, marker=mark, markersize=4.5, linewidth=1.1, capsize=2.5
        )
        for part in whole.get_children():
            part.set_clip_on(False)
        several = {point.x for point in series.pooled if point.seeds > 1}
        if several:
            for seed in series.seeds:
                own = [point for point in seed if point.x in several]
                axes.scatter(
                    *_line(own, beside), s=7, color=colour, marker=mark, alpha=0.75, linewidths=0, clip_on=False
                )
    counts = sorted({point.x for series in panel.series for point in series.pooled})
    axes.set_xscale("log")
    axes.set_xlim(counts[0] / 1.25, counts[-1] * 1.25)
    axes.xaxis.set_major_locator(FixedLocator(counts))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{count:g}" for count in counts]))
    axes.xaxis.set_minor_locator(NullLocator())


def whiskers(tallies: Sequence[Tally]) -> FloatArray:
    """Lengths of the intervals below and above the rates [2, n]."""
    lengths: FloatArray = np.abs(np.transpose([each.interval for each in tallies]) - [each.rate for each in tallies])
    return lengths


def _line(points: Sequence[Point], shift: float = 1.0) -> tuple[list[float], list[float]]:
    return [point.x * shift for point in points], [point.tally.rate for point in points]
