"""What the episodes of a run add up to, and how that stands in a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from statistics import median
from typing import TYPE_CHECKING, Literal, TypeAlias

from sim_eval.envs.tasks import get_task, groups, suite_tasks, task_names, whole_suites
from sim_eval.reporting.intervals import Share, mean_interval, success_interval
from sim_eval.reporting.tables import Grid, counted, interval, limits, percent, rate

if TYPE_CHECKING:
    from sim_eval.core.types import EpisodeKey
    from sim_eval.evaluation.engine import EpisodeResult

Part: TypeAlias = tuple[str, str]  # task and goal; goal "" is the whole task
NOTHING = "none"  # the furthest phase of an episode that reached none

# What a summary says in every table: its `summary_cells`.
COLUMNS = (
    "success / planned",
    "rate",
    "95 % interval",
    "success / completed",
    "at the end",
    "steps to success",
    "errors",
)
COLUMNS_NOTE = (
    "Intervals are Clopper-Pearson's 95 %. Rates are over all planned episodes, one that broke off with an error being "
    "a failure; completed ones had no error. Success counts at any step; at the end: at the last one. "
    "Steps to success: the median over the successes."
)
MEANS_NOTE = (
    "A suite's mean of tasks counts each task alike, its mean of groups each of the suites alike that it is made of, "
    "as the mean of that one's tasks. Their 95 % intervals take the tasks as fixed: Clopper-Pearson's over episodes "
    "that weigh alike, combined by Zou, Huang and Zhang's method where groups differ in size."
)


@dataclass(frozen=True)
class Tally:
    """Successes among episodes; at least one episode."""

    successes: int
    episodes: int

    @property
    def rate(self) -> float:
        return self.successes / self.episodes

    @property
    def interval(self) -> tuple[float, float]:
        """Clopper and Pearson's 95 % interval of the rate."""
        return success_interval(self.successes, self.episodes)


@dataclass(frozen=True)
class TaskSummary:
    """What the episodes of one task, or of one goal of it, add up to. Intervals are Clopper and Pearson's 95 %.

    Attributes:
        task: the task's name.
        goal: one of the sentences that ask for the goal; empty: all goals together.
        successes: episodes in which the task's rule held at some step.
        episodes: all that were planned; an episode with an error is a failure among them.
        rate, interval: of the successes among all episodes.
        completed: episodes without an error.
        rate_completed, interval_completed: of the successes among those; the rate is None when there are none.
        successes_end: episodes in which the rule held at the last step.
        rate_end, interval_end: of those among all episodes.
        errors: episodes that broke off.
        steps_to_success: control steps to the first success, the median over the successes; None: there are none.
        phases: phase -> episodes that came no further, along the way; first "none".
        mean_steps: control steps an episode took on average.
        episodes_per_minute: while episodes ran, loading not counted.
    """

    task: str
    goal: str
    successes: int
    episodes: int
    rate: float
    interval: tuple[float, float]
    completed: int
    rate_completed: float | None
    interval_completed: tuple[float, float]
    successes_end: int
    rate_end: float
    interval_end: tuple[float, float]
    errors: int
    steps_to_success: float | None
    phases: Mapping[str, int]
    mean_steps: float
    episodes_per_minute: float


def summarize(task: str, results: Sequence[EpisodeResult], goal: str = "") -> TaskSummary:
    """Adds up one or more episodes; an episode with an error counts as a failure."""
    count, successes = len(results), sum(result.success for result in results)
    ends, errors = sum(result.success_end for result in results), sum(result.error is not None for result in results)
    completed = count - errors
    firsts = [result.first_success for result in results if result.first_success is not None]
    return TaskSummary(
        task=task,
        goal=goal,
        successes=successes,
        episodes=count,
        rate=successes / count,
        interval=success_interval(successes, count),
        completed=completed,
        rate_completed=successes / completed if completed else None,
        interval_completed=success_interval(successes, completed),
        successes_end=ends,
        rate_end=ends / count,
        interval_end=success_interval(ends, count),
        errors=errors,
        steps_to_success=median(firsts) if firsts else None,
        phases=furthest_phases(task, results),
        mean_steps=sum(result.steps for result in results) / count,
        episodes_per_minute=60 * count / max(sum(result.seconds for result in results), 1e-9),
    )


def furthest_phases(task: str, results: Iterable[EpisodeResult]) -> dict[str, int]:
    """Phase -> episodes that came no further; in the task's order, if this installation knows the task."""
    counts = Counter(result.phase for result in results)
    known = get_task(task).phases if task in task_names() else ()
    return {phase: counts[phase] for phase in dict.fromkeys((NOTHING, *known, *counts))}


def parts(keys: Sequence[EpisodeKey]) -> Iterator[tuple[Part, list[EpisodeKey]]]:
    """The episodes of each task, in the order of the keys; after a task with several goals, those of each goal."""
    for name in dict.fromkeys(key.task for key in keys):
        task, mine = get_task(name), [key for key in keys if key.task == name]
        yield (name, ""), mine
        for index, sentences in enumerate(task.goals if len(task.goals) > 1 else ()):
            if chosen := [key for key in mine if task.goal(key) == index]:
                yield (name, sentences[0]), chosen


def summaries(results: Sequence[EpisodeResult]) -> Iterator[TaskSummary]:
    """One a task, in the order of the results; after a task with several goals, one a goal."""
    by_key = {result.key: result for result in results}
    for (task, goal), keys in parts(list(by_key)):
        yield summarize(task, [by_key[key] for key in keys], goal)


@dataclass(frozen=True)
class SuiteMean:
    """A success rate over a suite. Intervals are 95 %; see :func:`sim_eval.reporting.intervals.mean_interval`.

    Attributes:
        suite: the suite's name.
        of: what is averaged: the suite's tasks, or the suites ("groups") of which it is made, each as the mean of its
            tasks.
        count: how many of them there are.
        episodes: of all tasks together.
        rate, interval: success at any step.
        rate_end, interval_end: success at the last step.
    """

    suite: str
    of: Literal["tasks", "groups"]
    count: int
    episodes: int
    rate: float
    interval: tuple[float, float]
    rate_end: float
    interval_end: tuple[float, float]

    @property
    def name(self) -> str:
        return f"mean of {self.count} {self.of}"

    @property
    def at_end(self) -> SuiteMean:
        """The same of success at the last step, as its rate and interval."""
        return replace(self, rate=self.rate_end, interval=self.interval_end)

    @property
    def cell(self) -> str:
        return f"{percent(self.rate)} {limits(self.interval)}"


def suite_means(results: Sequence[EpisodeResult]) -> Iterator[SuiteMean]:
    """Of every suite all of whose tasks have results: the mean of its tasks, and of its groups if it is made of any."""
    by_task = _by_task(results)
    for suite in whole_suites(by_task):
        tasks = suite_tasks(suite)
        mine = {task: by_task[task] for task in tasks}
        yield _mean(suite, "tasks", [(task,) for task in tasks], mine)
        if made_of := groups(suite):
            yield _mean(suite, "groups", [suite_tasks(group) for group in made_of], mine)


@dataclass(frozen=True)
class SuiteScore:
    """What one run's episodes of a suite add up to.

    Attributes:
        label: whose run it is.
        tasks: task -> its tally, in the suite's order.
        means: of the suite, and of the suites of which it is made.
    """

    label: str
    tasks: Mapping[str, Tally]
    means: tuple[SuiteMean, ...]

    def of(self, suite: str) -> tuple[SuiteMean, ...]:
        """The means of the suite or of one of its groups: of its tasks, then of its groups if it is made of any."""
        return tuple(mean for mean in self.means if mean.suite == suite)


def suite_score(label: str, suite: str, results: Sequence[EpisodeResult]) -> SuiteScore:
    """Adds up a run's episodes; every task of the suite has one or more."""
    by_task = _by_task(results)
    tasks = {
        task: Tally(sum(result.success for result in by_task[task]), len(by_task[task])) for task in suite_tasks(suite)
    }
    wanted = (suite, *groups(suite))
    return SuiteScore(label, tasks, tuple(mean for mean in suite_means(results) if mean.suite in wanted))


def _by_task(results: Iterable[EpisodeResult]) -> dict[str, list[EpisodeResult]]:
    by_task: dict[str, list[EpisodeResult]] = {}
    for result in results:
        by_task.setdefault(result.key.task, []).append(result)
    return by_task


def _mean(
    suite: str,
    of: Literal["tasks", "groups"],
    parts: Sequence[Sequence[str]],
    results: Mapping[str, Sequence[EpisodeResult]],
) -> SuiteMean:
    """The mean of parts of a suite, each the mean of its tasks."""
    weights = dict.fromkeys(results, Fraction(0))
    for part in parts:
        for task in part:
            weights[task] += Fraction(1, len(parts) * len(part))

    def scored(at_end: bool) -> tuple[float, tuple[float, float]]:
        shares = [
            Share(weights[task], sum(r.success_end if at_end else r.success for r in mine), len(mine))
            for task, mine in results.items()
        ]
        rate = sum(share.weight * Fraction(share.successes, share.episodes) for share in shares)
        return float(rate), mean_interval(shares)

    episodes = sum(len(mine) for mine in results.values())
    return SuiteMean(suite, of, len(parts), episodes, *scored(at_end=False), *scored(at_end=True))


def means_grid(means: Sequence[SuiteMean]) -> Grid:
    """A row a mean."""
    rows = [
        (
            mean.suite,
            mean.name,
            str(mean.episodes),
            percent(mean.rate),
            limits(mean.interval),
            f"{percent(mean.rate_end)} {limits(mean.interval_end)}",
        )
        for mean in means
    ]
    return Grid(("suite", "", "episodes", "rate", "95 % interval", "at the end"), tuple(rows))


def summary_cells(summary: TaskSummary) -> tuple[str, ...]:
    """Cells under :data:`COLUMNS`."""
    return (
        f"{summary.successes} / {summary.episodes}",
        rate(summary.successes, summary.episodes),
        interval(summary.successes, summary.episodes),
        f"{summary.successes} / {summary.completed}",
        counted(summary.successes_end, summary.episodes),
        "-" if summary.steps_to_success is None else f"{summary.steps_to_success:g}",
        str(summary.errors),
    )


def phase_grid(head: Sequence[str], rows: Sequence[tuple[Sequence[str], TaskSummary]]) -> Grid:
    """A table of the furthest phase: cells under the head, then how many episodes came so far and no further.

    "-" stands where a task has no such phase.
    """
    phases = list(dict.fromkeys(phase for _, summary in rows for phase in summary.phases))
    cells = [
        (*left, *(str(summary.phases[phase]) if phase in summary.phases else "-" for phase in phases))
        for left, summary in rows
    ]
    return Grid((*head, *phases), tuple(cells))


def part_name(part: Part) -> str:
    """A task, or beneath it a goal, in a table's first column."""
    task, goal = part
    return f"  {goal}" if goal else task
