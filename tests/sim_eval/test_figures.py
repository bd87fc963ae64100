"""Figures are written, show every series, and are the same file for the same numbers."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sim_eval.core.errors import SimEvalError
from sim_eval.reporting.comparison import Panel, Point, Series
from sim_eval.reporting.figures import STYLES, draw_demonstrations, draw_minutes
from sim_eval.reporting.summary import Tally


def panel(task: str, *experts: str, seeds: int = 2) -> Panel:
    def line(successes: int) -> tuple[Point, ...]:
        return tuple(Point(x, Tally(min(20, successes + n), 20)) for n, x in enumerate((25, 50, 100)))

    series = tuple(
        Series(
            expert,
            tuple(Point(p.x, Tally(p.tally.successes * seeds, 20 * seeds), seeds) for p in line(8 * place)),
            tuple(line(8 * place) for _ in range(seeds)),
        )
        for place, expert in enumerate(experts)
    )
    return Panel(task, "", series, ())


def pixels(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path).convert("RGB"))


def count(picture: NDArray[np.uint8], colour: str) -> int:
    wanted = tuple(int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return int((picture == wanted).all(-1).sum())


@pytest.mark.parametrize("draw", [draw_minutes, draw_demonstrations])
def test_every_expert_has_its_colour_on_a_white_page(tmp_path: Path, draw) -> None:
    path = tmp_path / "figure.png"
    draw(path, [panel("a", "deep_llama", "late_gemma", "third")], "test")
    picture = pixels(path)
    used = [colour for colour, _ in STYLES if count(picture, colour) > 200]
    assert used == [colour for colour, _ in STYLES[:3]]
    assert count(picture, "#ffffff") > picture[..., 0].size / 2
    borders = [picture[0], picture[-1], picture[:, 0], picture[:, -1]]
    assert all((border == 255).all() for border in borders)  # nothing is cut off


def test_an_expert_keeps_its_colour_when_it_stands_alone(tmp_path: Path) -> None:
    colours = []
    for name in ("deep_llama", "late_gemma"):
        path = tmp_path / f"{name}.png"
        draw_minutes(path, [panel("a", name)], "val")
        colours += [colour for colour, _ in STYLES if count(pixels(path), colour) > 200]
    assert len(set(colours)) == 2


def test_panels_wrap_into_rows_at_readme_width(tmp_path: Path) -> None:
    sizes = []
    for number in (1, 4, 5):
        draw_minutes(tmp_path / "f.png", [panel(f"task{n}", "deep_llama") for n in range(number)], "val")
        sizes.append(pixels(tmp_path / "f.png").shape)
    assert sizes[0] == sizes[1]
    assert sizes[2][0] > 1.5 * sizes[0][0]
    assert sizes[2][1] == sizes[0][1] == 1800  # 900 at two pixels each


def test_the_same_numbers_give_the_same_svg_and_no_leftovers(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        draw_demonstrations(tmp_path / folder / "d.svg", [panel("a", "deep_llama", seeds=1)], "test")
    first, second = ((tmp_path / folder / "d.svg").read_bytes() for folder in ("one", "two"))
    assert first == second
    assert b"<svg" in first
    assert [file.name for file in (tmp_path / "one").iterdir()] == ["d.svg"]


def test_seeds_that_are_not_pooled_are_drawn_all_the_same(tmp_path: Path) -> None:
    pooled = panel("a", "deep_llama")
    alone = Panel("a", "", (Series("deep_llama", (), pooled.series[0].seeds),), ())
    draw_minutes(tmp_path / "f.png", [alone], "val")
    draw_minutes(
        tmp_path / "none.png", [Panel("a", "", (Series("deep_llama", (), pooled.series[0].seeds[:1]),), ())], "val"
    )
    assert (pixels(tmp_path / "f.png") != pixels(tmp_path / "none.png")).any()


def test_without_matplotlib_one_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SimEvalError, match=r"f\.svg needs matplotlib: pip install matplotlib"):
        draw_minutes(tmp_path / "f.svg", [panel("a", "deep_llama")], "val")
