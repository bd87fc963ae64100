"""The numbers in the figures of ``results``: success against training minutes and against demonstrations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from sim_eval.reporting.summary import Tally, grouped
from sim_eval.reporting.trainings import FinishedTraining, ScoredTraining, Setting

Key = TypeVar("Key", str, int, tuple[int, tuple[tuple[str, int], ...]])


@dataclass(frozen=True)
class Point:
    """A success rate at so many minutes or demonstrations, over the episodes of so many seeds."""

    x: float
    tally: Tally
    seeds: int = 1


@dataclass(frozen=True)
class Series:
    """One expert in one panel.

    Attributes:
        expert: its name.
        pooled: points over the episodes of all seeds; empty where seeds cannot be pooled point by point.
        seeds: each seed's own points.
    """

    expert: str
    pooled: tuple[Point, ...]
    seeds: tuple[tuple[Point, ...], ...]


@dataclass(frozen=True)
class Panel:
    """One task of a figure.

    Attributes:
        task: its name.
        conditions: what the trainings have in common, in words.
        series: one for each expert, by name.
        shown: the trainings' folders.
    """

    task: str
    conditions: str
    series: tuple[Series, ...]
    shown: tuple[Path, ...]

    @property
    def sample(self) -> str:
        """The episodes behind a point, such as "n = 60 (3 seeds of 20)"."""
        points = [point for series in self.series for point in series.pooled]
        each = span([point.tally.episodes for series in self.series for seed in series.seeds for point in seed])
        if not points:
            return f"n = {each} a seed, not pooled"
        if all(point.seeds == 1 for point in points):
            return f"n = {each} (1 seed)"
        together = span([point.tally.episodes for point in points])
        return f"n = {together} ({span([point.seeds for point in points])} seeds of {each})"


def span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def pool(tallies: Iterable[Tally]) -> Tally:
    """All their episodes together."""
    counts = list(tallies)
    return Tally(sum(each.successes for each in counts), sum(each.episodes for each in counts))


def minutes_panels(trainings: Sequence[FinishedTraining]) -> tuple[Panel, ...]:
    """Validated success against training minutes. The trainings of a task differ in expert and seed only."""
    panels = []
    for task in sorted({task for each in trainings for entry in each.metadata.rounds for task in entry.success}):
        validated = [each for each in trainings if validation(each, task)]
        chosen = fullest(validated, lambda setting: replace(setting, expert=""))
        if not chosen:
            continue
        series = []
        for expert, members in in_groups(chosen, lambda each: each.setting.expert):
            seeds = tuple(validation(each, task) for each in members)
            series.append(Series(expert, pool_rounds(seeds), seeds))
        setting = chosen[0].setting
        data = ", ".join(f"{count} of {name}" for name, count in setting.demonstrations)
        conditions = f"{setting.conditions}; demonstrations: {data}"
        panels.append(Panel(task, conditions, tuple(series), tuple(each.folder for each in chosen)))
    return tuple(panels)


def validation(training: FinishedTraining, task: str) -> tuple[Point, ...]:
    """A training's validations of one task."""
    tallies = [(entry.minutes, Tally(*entry.success.get(task, (0, 0)))) for entry in training.metadata.rounds]
    return tuple(Point(minutes, tally) for minutes, tally in tallies if tally.episodes)


def pool_rounds(seeds: Sequence[Sequence[Point]]) -> tuple[Point, ...]:
    """Seeds pooled round by round, at the mean of their minutes; empty if their numbers of rounds differ."""
    if len({len(points) for points in seeds}) != 1:
        return ()
    return tuple(
        Point(sum(point.x for point in each) / len(each), pool(point.tally for point in each), len(each))
        for each in zip(*seeds, strict=True)
    )


def demonstrations_panels(scored: Sequence[ScoredTraining]) -> tuple[Panel, ...]:
    """Test success, under one protocol, against the number of demonstrations of the task.

    The trainings of a panel were trained on the same tasks and differ only in numbers of demonstrations, expert and
    seed. A task that was trained with one number of demonstrations only has no panel.
    """
    tallies = {each.training.folder: each.tallies for each in scored}
    panels = []
    for task in sorted({task for scores in tallies.values() for task in scores}):
        scores = {folder: mine[task] for folder, mine in tallies.items() if task in mine}
        trained = [each.training for each in scored if each.training.folder in scores and each.training.count(task)]
        chosen = fullest(trained, lambda s: replace(s, expert="", demonstrations=tuple((name, 0) for name in s.tasks)))
        if len({each.count(task) for each in chosen}) < 2:
            continue
        series = tuple(
            data_series(expert, members, task, scores)
            for expert, members in in_groups(chosen, lambda each: each.setting.expert)
        )
        conditions = f"{chosen[0].setting.conditions}; trained on {', '.join(chosen[0].setting.tasks)}"
        panels.append(Panel(task, conditions, series, tuple(each.folder for each in chosen)))
    return tuple(panels)


def data_series(expert: str, members: Sequence[FinishedTraining], task: str, scores: Mapping[Path, Tally]) -> Series:
    """One expert's scores, folder -> tally, by demonstrations of the task.

    Trainings whose other tasks had other data are not pooled, even with as many demonstrations of this one.
    """
    alike = in_groups(members, lambda each: (each.count(task), each.setting.demonstrations))
    together = tuple(Point(count, pool(scores[each.folder] for each in same), len(same)) for (count, _), same in alike)
    seeds = tuple(
        tuple(
            Point(count, scores[each.folder])
            for count, same in in_groups(mine, lambda each: each.count(task))
            for each in same
        )
        for _, mine in in_groups(members, lambda each: each.seed)
    )
    return Series(expert, together, seeds)


def in_groups(
    trainings: Iterable[FinishedTraining], key: Callable[[FinishedTraining], Key]
) -> list[tuple[Key, list[FinishedTraining]]]:
    """Trainings by a key, in the key's order, and within it by seed."""
    groups = grouped(sorted(trainings, key=lambda each: (each.seed, str(each.folder))), key)
    return sorted(groups.items(), key=lambda group: group[0])


def fullest(trainings: Sequence[FinishedTraining], family: Callable[[Setting], Setting]) -> list[FinishedTraining]:
    """The family of comparable trainings that shows most: numbers of demonstrations, then experts, then fields at
    their defaults, trainings and minutes."""

    def worth(members: Sequence[FinishedTraining]) -> tuple[float, ...]:
        return (
            len({each.setting.demonstrations for each in members}),
            len({each.setting.expert for each in members}),
            -len(members[0].setting.changes),
            len(members),
            sum(each.metadata.minutes for each in members),
        )

    families = grouped(trainings, lambda training: family(training.setting))
    return max(families.values(), key=worth, default=[])
