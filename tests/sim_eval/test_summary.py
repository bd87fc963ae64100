"""Both denominators, both meanings of success, steps and phases, against episodes counted by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from trainings_and_runs import LIFT, STACK

from sim_eval.core.types import EpisodeKey
from sim_eval.envs.tasks import suites
from sim_eval.evaluation.engine import EpisodeResult
from sim_eval.reporting.intervals import success_interval
from sim_eval.reporting.summary import COLUMNS, MEAN_COLUMNS, phase_table, suite_means, summaries, summarize
from sim_eval.reporting.tables import Table


def episode(task: str, index: int, first: int | None, phase: str, end: bool = False, error: str | None = None):
    return EpisodeResult(
        EpisodeKey(task, "test", index), "go", first is not None, end, 30, first, phase, 8, error, seconds=2.0
    )


# Stack's goals take turns by index.
STACKS = [
    episode(STACK, 0, 10, "place", end=True),
    episode(STACK, 1, None, "lift"),
    episode(STACK, 2, 90, "place"),
    episode(STACK, 3, 12, "place", end=True),
    episode(STACK, 4, None, "none", error="simulator: diverged"),
]


def test_every_figure_has_its_denominator():
    whole = summarize(STACK, STACKS)
    assert (whole.successes, whole.episodes, whole.rate) == (3, 5, 0.6)
    assert (whole.completed, whole.rate_completed, whole.errors) == (4, 0.75, 1)
    assert (whole.successes_end, whole.rate_end) == (2, 0.4)
    assert whole.interval == success_interval(3, 5)
    assert whole.interval_completed == success_interval(3, 4)
    assert whole.interval_end == success_interval(2, 5)


def test_steps_to_success_are_the_median_of_the_successes():
    assert summarize(STACK, STACKS).steps_to_success == 12  # one that took long does not move it
    assert summarize(STACK, STACKS[1:2]).steps_to_success is None


def test_phases_stand_in_the_tasks_order_and_add_up_to_all_episodes():
    assert list(summarize(STACK, STACKS).phases.items()) == [
        ("none", 1),
        ("reach", 0),
        ("grasp", 0),
        ("lift", 1),
        ("place", 3),
    ]
    elsewhere = f"{STACK}@UR5e"
    assert summarize(elsewhere, STACKS).phases == summarize(STACK, STACKS).phases
    goals = [each.goal for each in summaries([replace(each, key=replace(each.key, task=elsewhere)) for each in STACKS])]
    assert goals == [each.goal for each in summaries(STACKS)]
    strange = summarize("strange/Task", [episode("strange/Task", 0, None, "wiped")])
    assert strange.phases == {"none": 0, "wiped": 1}  # a task of a package that is not installed here


def test_phases_of_several_tasks_share_a_table():
    lift, stack = summarize(LIFT, [episode(LIFT, 0, 9, "lift")]), summarize(STACK, STACKS)
    table = phase_table(("task",), [(("a",), lift), (("b",), stack)])
    assert table.header == ("task", "none", "reach", "grasp", "lift", "place")
    assert table.rows == (("a", "0", "0", "0", "1", "-"), ("b", "1", "0", "0", "1", "3"))


def test_goals_follow_their_task():
    found = summaries([*STACKS, episode(LIFT, 0, 9, "lift")])
    assert [(each.task, bool(each.goal), each.episodes) for each in found] == [
        (STACK, False, 5),
        (STACK, True, 3),
        (STACK, True, 2),
        (LIFT, False, 1),
    ]


@pytest.mark.parametrize(
    ("results", "cells"),
    [
        (STACKS, ("3/5", "60.0 % [14.7, 94.7]", "40.0 % [5.3, 85.3]", "12", "1", "3/4")),
        (STACKS[4:], ("0/1", "0.0 % [0.0, 97.5]", "0.0 % [0.0, 97.5]", "-", "1", "0/0")),
    ],
)
def test_cells_say_it_in_a_row(results: list[EpisodeResult], cells: tuple[str, ...]):
    assert Table.of((), COLUMNS, [((), summarize(STACK, results))]).rows == (cells,)


def test_a_suite_has_the_mean_of_its_tasks_and_of_its_groups(monkeypatch: pytest.MonkeyPatch):
    wide = "robosuite/LiftWide"
    for name, parts in {"made/All": ("made/lifts", STACK), "made/Deep": ("made/lifts", "made/one")}.items():
        monkeypatch.setitem(suites(), name, parts)
    monkeypatch.setitem(suites(), "made/lifts", (LIFT, wide))
    monkeypatch.setitem(suites(), "made/one", (STACK,))
    monkeypatch.setitem(suites(), "made/More", (LIFT, "robosuite/PickPlaceCan"))
    first = {LIFT: 4, wide: 2, STACK: 1}  # successes of 4
    results = [
        episode(task, index, 10 if index < count else None, "none", end=index < count - 1)
        for task, count in first.items()
        for index in range(4)
    ]
    found = {(mean.suite, mean.of): mean for mean in suite_means(results)}
    tasks = [suite for suite, of in found if of == "tasks"]
    assert tasks == ["made/All", "made/Deep", "made/lifts", "made/one"]  # and not made/More, of which a task lacks
    assert [suite for suite, of in found if of == "groups"] == ["made/Deep"]  # not made/All, of a suite and a task
    assert found["made/Deep", "tasks"].rate == pytest.approx((1 + 0.5 + 0.25) / 3)
    assert found["made/Deep", "groups"].rate == pytest.approx((0.75 + 0.25) / 2)
    assert found["made/Deep", "groups"].rate_end == pytest.approx(((0.75 + 0.25) / 2 + 0) / 2)
    assert found["made/Deep", "tasks"].interval == pytest.approx(success_interval(7, 12))
    table = Table.of((), MEAN_COLUMNS, [((), mean) for mean in found.values()])
    assert table.rows[2][:4] == ("made/Deep", "mean of 2 groups", "12", "50.0 % [26.5, 79.9]")
    assert list(suite_means(STACKS)) == [mean for mean in suite_means(STACKS) if mean.suite == "made/one"]


def test_goals_of_a_task_that_is_not_installed_are_the_instructions_of_its_episodes():
    results = [
        replace(episode("absent/Sort", index, 5, "placed"), instruction=("red first", "blue first")[index % 2])
        for index in range(5)
    ]
    assert [(each.goal, each.successes, each.phases) for each in summaries(results)] == [
        ("", 5, {"none": 0, "placed": 5}),
        ("red first", 3, {"none": 0, "placed": 3}),
        ("blue first", 2, {"none": 0, "placed": 2}),
    ]
