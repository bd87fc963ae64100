"""Suites: their names stand for tasks wherever tasks are named, and a wrong name is told what is like it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from sim_eval.console import named_tasks
from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import EpisodeKey
from sim_eval.envs.tasks import (
    choose_render,
    expand,
    get_task,
    groups,
    in_short,
    outer_suites,
    own_tasks,
    suite_tasks,
    suites,
    task_names,
    whole_suites,
)

LIFT, WIDE, STACK, CAN = "robosuite/Lift", "robosuite/LiftWide", "robosuite/Stack", "robosuite/PickPlaceCan"


@pytest.fixture(autouse=True)
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, parts in {
        "made/All": ("made/lifts", "made/rest"),
        "made/lifts": (LIFT, WIDE),
        "made/rest": (STACK, CAN),
        "made/Two": (STACK, LIFT),
    }.items():
        monkeypatch.setitem(suites(), name, parts)


@pytest.fixture
def many() -> Iterator[list[str]]:
    """A hundred and eighty tasks more."""
    names = [f"sea/{fish}-{number}" for fish in ("cod", "eel", "pike") for number in range(60)]
    own_tasks().update(dict.fromkeys(names, get_task(LIFT)))
    yield names
    for name in names:
        del own_tasks()[name]


def test_a_suite_is_its_tasks_in_its_order_and_each_once() -> None:
    assert expand(["made/All"]) == [LIFT, WIDE, STACK, CAN]
    assert expand(["made/Two", "made/All", STACK]) == [STACK, LIFT, WIDE, CAN]
    assert named_tasks(f" made/rest, {LIFT},") == [STACK, CAN, LIFT]
    assert named_tasks("") == []


def test_a_suite_is_whole_with_all_its_tasks_only() -> None:
    assert whole_suites([LIFT, WIDE, STACK]) == ["made/lifts", "made/Two"]
    assert set(whole_suites([LIFT, WIDE, STACK, CAN])) == {"made/All", "made/lifts", "made/rest", "made/Two"}


def test_the_largest_whole_suites_come_with_their_groups() -> None:
    assert groups("made/All") == ("made/lifts", "made/rest")
    assert groups("made/Two") == ()
    assert outer_suites([LIFT, WIDE, STACK, CAN]) == ["made/All", "made/lifts", "made/rest"]
    assert outer_suites([LIFT, WIDE, STACK]) == ["made/lifts", "made/Two"]


def test_many_tasks_are_told_in_short() -> None:
    assert in_short([CAN, STACK, WIDE, LIFT]) == "made/All"
    assert in_short([CAN, LIFT, WIDE]) == f"made/lifts, {CAN}"
    assert in_short([WIDE]) == WIDE


def test_a_wrong_name_is_told_what_is_like_it_and_not_everything(many: list[str]) -> None:
    with pytest.raises(SimEvalError) as told:
        expand(["robosuite/LiftWid"])
    assert "did you mean robosuite/LiftWide" in str(told.value)
    assert "made/All" in str(told.value)
    assert "sea/" not in str(told.value)
    with pytest.raises(SimEvalError) as told:
        expand(["made/lift"])
    assert "did you mean made/lifts" in str(told.value)
    with pytest.raises(SimEvalError) as told:
        expand(["xyz"])
    assert "such as" in str(told.value)
    assert "sea/cod-0" in str(told.value)
    assert len(str(told.value)) < 400


def test_every_suite_names_tasks_that_exist() -> None:
    for name in suites():
        assert set(suite_tasks(name)) <= set(task_names())


def test_no_two_tasks_share_their_files() -> None:
    names = {EpisodeKey(task, "train", 0).stem for task in task_names()}
    assert len(names) == len(task_names())


def test_tasks_of_a_package_that_is_not_installed_are_refused_with_the_remedy() -> None:
    if "libero_object" in suites():
        pytest.skip("LIBERO is installed")
    with pytest.raises(SimEvalError, match=r"unknown task 'libero_object': LIBERO is not installed: make libero"):
        expand(["libero_object"])


def test_tasks_are_shown_as_they_want_unless_somebody_says(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = replace(get_task(LIFT), name="made/Plain", render="faithful")
    monkeypatch.setitem(own_tasks(), plain.name, plain)
    assert choose_render(None, [LIFT, STACK]) == "fast"
    assert choose_render(None, [plain.name]) == "faithful"
    assert choose_render("fast", [plain.name, LIFT]) == "fast"
    with pytest.raises(SimEvalError, match=r"made/Plain faithful\): give --render fast or --render faithful"):
        choose_render(None, [LIFT, plain.name])
