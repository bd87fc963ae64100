"""The numbers in a figure are the numbers that were counted, every expert looks the same everywhere, nothing is cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sim_eval.reporting.figures import draw_demonstrations, draw_minutes
from sim_eval.reporting.panels import Panel, Point, Series
from sim_eval.reporting.summary import Tally

COUNTS = (25, 50, 100)
SEEDS = {"deep_llama": ((2, 9, 20), (4, 11, 18)), "late_gemma": ((0, 1, 2), (3, 5, 7))}  # successes of 20


def panel(task: str, *experts: str, pooled: bool = True) -> Panel:
    series = []
    for expert in experts:
        seeds = SEEDS.get(expert, SEEDS["deep_llama"])
        together = [Point(x, Tally(sum(each), 40), 2) for x, each in zip(COUNTS, zip(*seeds, strict=True), strict=True)]
        own = tuple(tuple(Point(x, Tally(n, 20)) for x, n in zip(COUNTS, seed, strict=True)) for seed in seeds)
        series.append(Series(expert, tuple(together) if pooled else (), own))
    return Panel(task, "", tuple(series), ())


def lines(axes: Axes, width: float) -> list[list[tuple[float, float]]]:
    """The points of the axes' lines of this width."""
    return [
        [(float(x), float(y)) for x, y in zip(*line.get_data(), strict=True)]
        for line in axes.lines
        if line.get_linewidth() == width and line.get_linestyle() != "None"  # without the caps of whiskers
    ]


def look(figure: Figure) -> dict[str, tuple[str, str]]:
    """Expert -> colour and mark in the legend."""
    return {
        handle.get_label(): (to_hex(handle.get_color()), handle.get_marker())
        for handle in figure.legends[0].legend_handles
        if isinstance(handle, Line2D)
    }


def check_nothing_is_cut(figure: Figure) -> None:
    box, page = figure.get_tightbbox(), figure.bbox_inches
    assert 0 <= box.x0 < box.x1 <= page.width
    assert 0 <= box.y0 < box.y1 <= page.height


def test_curves_are_the_rates_of_each_seed_and_of_all_together(tmp_path: Path, drawn: list[Figure]) -> None:
    shown = panel("a", "deep_llama", "late_gemma")
    draw_minutes(tmp_path / "f.svg", [shown])
    (axes,) = drawn[0].axes
    bands = [collection.get_paths()[0].vertices for collection in axes.collections]
    for place, series in enumerate(shown.series):
        pooled = [(point.x, point.tally.rate) for point in series.pooled]
        assert lines(axes, 1.8)[place] == pooled
        for number, seed in enumerate(series.seeds):
            assert lines(axes, 0.7)[2 * place + number] == [(point.x, point.tally.rate) for point in seed]
        vertices = {(float(x), float(y)) for x, y in np.asarray(bands[place])}
        assert vertices >= {(point.x, bound) for point in series.pooled for bound in point.tally.interval}
    assert axes.get_title(loc="left") == "a"
    assert shown.sample in [text.get_text() for text in axes.texts]
    low, high = axes.get_ylim()
    assert low < 0 < 1 < high  # whole intervals are seen


def test_points_are_the_rates_by_demonstrations_with_their_intervals(tmp_path: Path, drawn: list[Figure]) -> None:
    shown = panel("a", "deep_llama", "late_gemma")
    draw_demonstrations(tmp_path / "f.svg", [shown])
    (axes,) = drawn[0].axes
    whiskers = [each for each in axes.collections if isinstance(each, LineCollection)]
    small = [each for each in axes.collections if not isinstance(each, LineCollection)]
    for place, series in enumerate(shown.series):
        ((x, y),) = [zip(*points, strict=True) for points in lines(axes, 1.1)[place : place + 1]]
        assert y == tuple(point.tally.rate for point in series.pooled)
        assert x == pytest.approx(COUNTS, rel=0.05)  # experts stand beside each other
        ends = [tuple(segment[:, 1]) for segment in whiskers[place].get_segments()]
        assert ends == [pytest.approx(point.tally.interval) for point in series.pooled]
        for number, seed in enumerate(series.seeds):
            heights = np.asarray(small[2 * place + number].get_offsets())[:, 1]
            assert list(heights) == [point.tally.rate for point in seed]
    first, second = lines(axes, 1.1)
    assert all(left[0] < right[0] for left, right in zip(first, second, strict=True))  # none hides another
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["25", "50", "100"]


def test_seeds_that_are_not_pooled_are_drawn_alone(tmp_path: Path, drawn: list[Figure]) -> None:
    draw_minutes(tmp_path / "f.svg", [panel("a", "deep_llama", pooled=False)])
    (axes,) = drawn[0].axes
    assert len(lines(axes, 0.7)) == 2
    assert lines(axes, 1.8) == [] == list(axes.collections)


def test_an_expert_looks_the_same_in_every_figure_and_like_no_other(tmp_path: Path, drawn: list[Figure]) -> None:
    draw_minutes(tmp_path / "all.svg", [panel("a", "deep_llama", "late_gemma", "third")])
    draw_minutes(tmp_path / "late.svg", [panel("a", "late_gemma")])
    draw_demonstrations(tmp_path / "deep.svg", [panel("a", "deep_llama")])
    together = look(drawn[0])
    colours, marks = zip(*together.values(), strict=True)
    assert len(set(colours)) == len(set(marks)) == 3
    assert look(drawn[1]) == {"late_gemma": together["late_gemma"]}
    assert look(drawn[2]) == {"deep_llama": together["deep_llama"]}
    (axes,) = drawn[2].axes
    assert to_hex(axes.lines[0].get_color()) == together["deep_llama"][0]


@pytest.mark.parametrize("draw", [draw_minutes, draw_demonstrations])
@pytest.mark.parametrize(("number", "rows"), [(1, 1), (4, 1), (5, 2)])
def test_panels_wrap_into_rows_of_a_page_of_readme_width(
    tmp_path: Path, drawn: list[Figure], draw, number: int, rows: int
) -> None:
    draw(tmp_path / "f.svg", [panel(f"task{n}", "deep_llama", "late_gemma") for n in range(number)])
    (figure,) = drawn
    assert figure.get_size_inches()[0] * 96 == 900  # pixels of an SVG
    shown = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title(loc="left") for axes in shown] == [f"task{n}" for n in range(number)]
    assert len({round(axes.get_position().y0, 6) for axes in shown}) == rows
    check_nothing_is_cut(figure)


def test_the_same_numbers_give_the_same_svg_and_no_leftovers(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        draw_demonstrations(tmp_path / folder / "d.svg", [panel("a", "deep_llama")])
    first, second = ((tmp_path / folder / "d.svg").read_bytes() for folder in ("one", "two"))
    assert first == second
    assert b"<svg" in first
    assert [file.name for file in (tmp_path / "one").iterdir()] == ["d.svg"]
