"""A figure of runs on the tasks of a suite, one row for each task, for a README or a paper. No counting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sim_eval.envs.tasks import groups, suite_tasks
from sim_eval.reporting.figures import FAINT, GRID, INK, STYLES, WIDTH, whiskers, written
from sim_eval.reporting.summary import SuiteScore

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BAND = "#f6f7f9"  # behind every other row
PIXELS = 96  # an inch of an SVG
# In pixels. Heights: to the conditions, to the legend, one of its lines, tick labels above the plots, and below them.
CONDITIONS, LEGEND, LINE, TICKS, FOOT = 52, 76, 17, 26, 24
HEAD, RUN, ROOM, LEAST = 28, 5, 7, 15  # a group's head; in a row a run, what is left free, and a row at least
NAMES, END = 206, 22  # Widths: left of a plot, where the tasks' names are, and right of it.
MARGIN, MEANS, MEAN = 11, 560, 165  # From the left to the text and to the legend's means, and from mean to mean.
SHARE = 40  # of a group's mean beside its head
ONE_COLUMN = 32  # rows and heads that stand below each other


def draw_suite(path: Path, suite: str, scores: Sequence[SuiteScore], conditions: str) -> None:
    """Marks and whiskers, one for each run, in a row for each task, under the groups of which the suite is made.

    Args:
        scores: one for each run; at most as many are drawn as there are colours. The first sorts a group's tasks.
        conditions: of the runs, in words.

    Raises:
        SimEvalError: the file cannot be written.
    """
    shown = scores[: len(STYLES)]
    made_of = groups(suite)
    columns = _in_columns([(group, _by_success(group, shown)) for group in made_of or (suite,)])
    head, row = HEAD if made_of else 0, max(LEAST, ROOM + RUN * len(shown))
    heights = [sum(head + row * len(tasks) for _, tasks in column) for column in columns]
    above = LEGEND + LINE * (len(shown) + 1) + TICKS
    page, width = above + max(heights) + FOOT, WIDTH * PIXELS
    plot = width / len(columns) - NAMES - END
    some = f"; the first {len(shown)} of {len(scores)} runs" * (len(shown) < len(scores))
    counts = sorted({tally.episodes for score in shown for tally in score.tasks.values()})
    text = (
        f"mark and whisker: success in n = {' to '.join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))} "
        f"episodes and its Clopper-Pearson 95 % interval; tasks in the order of the first run's success{some}"
    )
    with written(path, page / PIXELS, f"Success on the tasks of {suite}", text) as figure:
        figure.text(MARGIN / width, 1 - CONDITIONS / page, conditions, va="top", color=FAINT)
        _legend(figure, suite, shown)
        for place, (column, height) in enumerate(zip(columns, heights, strict=True)):
            left = NAMES + place * width / len(columns)
            axes = figure.add_axes((left / width, 1 - (above + height) / page, plot / width, height / page))
            _dress(axes, height)
            top = 0
            centres: dict[str, float] = {}
            for group, tasks in column:
                if made_of:
                    axes.axhspan(top, top + head, color="white", linewidth=0, zorder=1)  # over the grid
                    _head(axes, _short(group, suite), group, shown, top + 0.6 * head)
                top += head
                rows = {task: top + (place + 0.5) * row for place, task in enumerate(tasks)}
                top += row * len(tasks)
                for centre in list(rows.values())[::2]:
                    band = axes.axhspan(centre - row / 2, centre + row / 2, color=BAND, linewidth=0, zorder=0)
                    band.set(x=(MARGIN - NAMES) / plot, width=1 + (NAMES - MARGIN) / plot, clip_on=False)
                centres.update(rows)
            axes.set_yticks(list(centres.values()), [_short(task, suite) for task in centres])
            _marks(axes, centres, shown)


def _by_success(suite: str, scores: Sequence[SuiteScore]) -> list[str]:
    """The suite's tasks, best first by the first run; ties are broken by the next run."""
    return sorted(suite_tasks(suite), key=lambda task: [-score.tasks[task].rate for score in scores])


def _in_columns(blocks: list[tuple[str, list[str]]]) -> list[list[tuple[str, list[str]]]]:
    """Groups below each other or, if they are long, in two columns of about the same length."""
    lengths = [len(tasks) + 1 for _, tasks in blocks]
    if sum(lengths) <= ONE_COLUMN or len(blocks) == 1:
        return [blocks]
    cut = min(range(1, len(blocks)), key=lambda place: max(sum(lengths[:place]), sum(lengths[place:])))
    return [blocks[:cut], blocks[cut:]]


def _short(name: str, suite: str) -> str:
    """A task or group without the family that it shares with the suite."""
    return name.removeprefix(suite.rpartition("/")[0] + "/")


def _legend(figure: Figure, suite: str, scores: Sequence[SuiteScore]) -> None:
    """One line for each run: mark, name and means."""
    from matplotlib.lines import Line2D

    width, page = (PIXELS * size for size in figure.get_size_inches())
    for column, mean in enumerate(scores[0].of(suite)):
        x = (MEANS + column * MEAN) / width
        figure.text(x, 1 - LEGEND / page, mean.name, va="center", color=FAINT)
    for line, (score, (colour, mark)) in enumerate(zip(scores, STYLES, strict=False), start=1):
        y = 1 - (LEGEND + line * LINE) / page
        ends = [MARGIN / width, (MARGIN + 22) / width]
        figure.add_artist(Line2D(ends, [y, y], color=colour, linewidth=1.1))
        figure.add_artist(Line2D([sum(ends) / 2], [y], color=colour, marker=mark, markersize=5))
        figure.text((MARGIN + 30) / width, y, score.label, va="center", color=INK)
        for column, mean in enumerate(score.of(suite)):
            figure.text((MEANS + column * MEAN) / width, y, mean.cell, va="center", color=INK)


def _dress(axes: Axes, height: float) -> None:
    """Sets up axes whose y is in pixels from the top."""
    from matplotlib.ticker import FixedLocator, PercentFormatter

    axes.set_ylim(height, 0)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["left", "right"]].set_visible(False)
    axes.spines[["top", "bottom"]].set_color(GRID)
    axes.tick_params(axis="x", colors=FAINT, length=0, labeltop=True)
    axes.tick_params(axis="y", colors=INK, length=0, pad=9)


def _head(axes: Axes, title: str, group: str, scores: Sequence[SuiteScore], y: float) -> None:
    """A group's name, and beside it each run's mean of its tasks."""
    across, width = axes.get_yaxis_transform(), axes.bbox.width * PIXELS / axes.figure.dpi
    left = (MARGIN - NAMES) / width
    name = axes.text(left, y, title, va="center", color=INK, fontweight="bold", transform=across)
    axes.annotate(f"  {scores[0].of(group)[0].name}", (1, 0.5), xycoords=name, va="center", color=FAINT)
    for place, (score, (colour, mark)) in enumerate(zip(scores, STYLES, strict=False)):
        x = 1 - (len(scores) - place) * SHARE / width
        axes.plot([x + 10 / width], [y], color=colour, marker=mark, markersize=4.5, transform=across, clip_on=False)
        axes.text(x + 17 / width, y, f"{100 * score.of(group)[0].rate:.1f}", va="center", color=INK, transform=across)


def _marks(axes: Axes, centres: dict[str, float], scores: Sequence[SuiteScore]) -> None:
    for place, (score, (colour, mark)) in enumerate(zip(scores, STYLES, strict=False)):
        shift = RUN * (place - (len(scores) - 1) / 2)
        tallies = [score.tasks[task] for task in centres]
        drawn = axes.errorbar(
            [tally.rate for tally in tallies],
            [centre + shift for centre in centres.values()],
            xerr=whiskers(tallies),
            color=colour,
            linestyle="",
            marker=mark,
            markersize=4.2,
            markeredgewidth=0,
            elinewidth=1.1,
            zorder=3,
        )
        for part in drawn.get_children():
            part.set_clip_on(False)
