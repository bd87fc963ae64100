"""A suite's figure: what stands in it and in which order, and that it is the same file for the same numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import matplotlib
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from trainings_and_runs import result

from sim_eval.core.types import EpisodeKey
from sim_eval.envs.tasks import suite_tasks, suites
from sim_eval.reporting.figures import STYLES
from sim_eval.reporting.suite_figure import draw_suite
from sim_eval.reporting.summary import SuiteScore, suite_score

COD, EEL, PIKE, RAY = "sea/cod", "sea/eel", "sea/pike", "sea/ray"


@pytest.fixture(autouse=True)
def sea(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, parts in {"sea/All": ("sea/easy", "sea/hard"), "sea/easy": (COD, EEL), "sea/hard": (PIKE, RAY)}.items():
        monkeypatch.setitem(suites(), name, parts)


def score(label: str, successes: Mapping[str, int], suite: str = "sea/All", episodes: int = 10) -> SuiteScore:
    return suite_score(
        label,
        suite,
        [
            result(EpisodeKey(task, "test", index), index < count, at_end=True)
            for task, count in successes.items()
            for index in range(episodes)
        ],
    )


def words(path: Path, suite: str, *scores: SuiteScore) -> list[str]:
    """All texts of a figure, as they are drawn."""
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        draw_suite(path, suite, scores, "under these conditions")
    return [text.strip() for text in re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text())]


FIRST = {COD: 2, EEL: 10, PIKE: 3, RAY: 3}
SECOND = {COD: 8, EEL: 1, PIKE: 0, RAY: 7}


def test_tasks_stand_in_their_groups_in_the_order_of_the_first_run(tmp_path: Path) -> None:
    texts = words(tmp_path / "f.svg", "sea/All", score("one", FIRST), score("two", SECOND))
    names = [word for word in texts if word in ("cod", "eel", "pike", "ray")]
    assert names == ["eel", "cod", "ray", "pike"]  # equals by the second run
    assert {"easy", "hard", "under these conditions", "one", "two"} <= set(texts)
    other = words(tmp_path / "f.svg", "sea/All", score("two", SECOND), score("one", FIRST))
    assert [word for word in other if word in names] == ["cod", "eel", "ray", "pike"]


def test_means_of_tasks_of_groups_and_of_each_group_stand_in_it(tmp_path: Path) -> None:
    one = score("one", FIRST)
    texts = words(tmp_path / "f.svg", "sea/All", one, score("two", SECOND))
    assert {"mean of 4 tasks", "mean of 2 groups"} <= set(texts)
    tasks, of_groups = one.of("sea/All")
    assert tasks.cell.startswith("45.0 %")
    assert {tasks.cell, of_groups.cell} <= set(texts)
    assert [word for word in texts if re.fullmatch(r"\d+\.\d", word)] == ["60.0", "45.0", "30.0", "35.0"]


def test_a_suite_of_tasks_has_no_heads(tmp_path: Path) -> None:
    texts = words(tmp_path / "f.svg", "sea/easy", score("one", {COD: 2, EEL: 10}, "sea/easy"))
    assert "mean of 2 tasks" in texts
    assert not {"easy", "mean of 2 groups"} & set(texts)


def test_at_most_as_many_runs_as_colours_are_drawn_and_it_says_so(tmp_path: Path) -> None:
    scores = [score(f"run{n}", {task: 1 + n for task in FIRST}) for n in range(len(STYLES) + 2)]
    texts = words(tmp_path / "f.svg", "sea/All", *scores)
    assert "run5" in texts
    assert "run6" not in texts
    assert any("the first 6 of 8 runs" in word for word in texts)
    assert not any("the first" in word and "runs" in word for word in words(tmp_path / "g.svg", "sea/All", *scores[:6]))


def test_marks_and_whiskers_are_the_runs_tallies_in_the_row_of_their_task(tmp_path: Path, drawn: list[Figure]) -> None:
    scores = [score("one", FIRST), score("two", SECOND)]
    draw_suite(tmp_path / "f.svg", "sea/All", scores, "conditions")
    (axes,) = drawn[0].axes
    rows = dict(zip(axes.get_yticks(), [label.get_text() for label in axes.get_yticklabels()], strict=True))
    for each, (colour, _) in zip(scores, STYLES, strict=False):
        marks, whiskers = (
            next(line for line in axes.lines if line.get_color() == colour and len(line.get_xdata()) == len(FIRST)),
            next(each for each in axes.collections if to_hex(each.get_color()[0]).upper() == colour),
        )
        for rate, height, segment in zip(*marks.get_data(), whiskers.get_segments(), strict=True):
            task = rows[min(rows, key=lambda tick: abs(tick - height))]
            tally = each.tasks[f"sea/{task}"]
            assert (rate, tuple(segment[:, 0])) == (tally.rate, pytest.approx(tally.interval))


def test_fifty_tasks_and_six_runs_fit_a_page_of_readme_width(tmp_path: Path, drawn: list[Figure]) -> None:
    suite = "metaworld/MT50"
    scores = [score("policy" * 8, dict.fromkeys(suite_tasks(suite), 2 * n), suite) for n in range(6)]
    draw_suite(tmp_path / "f.svg", suite, scores, "conditions")
    (figure,) = drawn
    assert figure.get_size_inches()[0] * 96 == 900  # pixels of an SVG
    box, page = figure.get_tightbbox(), figure.bbox_inches
    assert 0 <= box.x0 < box.x1 <= page.width  # nothing is cut off
    assert 0 <= box.y0 < box.y1 <= page.height
    names = []
    for axes in figure.axes:
        boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
        assert all(upper.y0 >= lower.y1 for upper, lower in pairwise(boxes))  # no name covers the next
        assert sum(len(line.get_xdata()) > 1 for line in axes.lines) == 6  # no run is missing
        names += [f"metaworld/{label.get_text()}" for label in axes.get_yticklabels()]
    assert sorted(names) == sorted(suite_tasks(suite))


def test_the_same_numbers_give_the_same_svg_and_no_leftovers(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        draw_suite(tmp_path / folder / "s.svg", "sea/All", [score("one", FIRST)], "conditions")
    first, second = ((tmp_path / folder / "s.svg").read_bytes() for folder in ("one", "two"))
    assert first == second
    assert [file.name for file in (tmp_path / "one").iterdir()] == ["s.svg"]
