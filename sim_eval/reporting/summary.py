"""What the episodes of a run add up to: for each task and goal, and for each suite."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import median
from typing import Literal, TypeAlias, TypeVar

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import Task
from sim_eval.envs.tasks import get_task, groups, suite_tasks, task_names, whole_suites
from sim_eval.evaluation.engine import EpisodeResult
from sim_eval.reporting.intervals import Share, mean_interval, success_interval
from sim_eval.reporting.tables import Column, Table, estimate

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")
Part: TypeAlias = tuple[str, str]  # task and goal; goal "" is the whole task
NOTHING = "none"  # the furthest phase of an episode that reached none

COLUMNS_NOTE = (
    "Success: at any step; at the end: at the last step. Rates are over all planned episodes, with Clopper-Pearson's "
    "95 % interval; an episode that broke off with an error is a failure. Steps: the median number of control steps to "
    "the first success."
)
MEANS_NOTE = (
    "A suite's mean of tasks weighs each task alike. Its mean of groups weighs each of the suites alike of which it is "
    "made, each as the mean of its tasks. Their 95 % intervals take the tasks as fixed: Clopper-Pearson's over "
    "episodes of equal weight, combined by Zou, Huang and Zhang's method where groups differ in size."
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

    def __str__(self) -> str:
        return estimate(self.rate, self.interval)


def tally(results: Sequence[EpisodeResult]) -> Tally:
    """Successes at any step among one or more episodes."""
    return Tally(sum(result.success for result in results), len(results))


@dataclass(frozen=True)
class TaskSummary:
    """The counts of one task's episodes, or of those of one goal. Intervals are Clopper and Pearson's 95 %.

    Attributes:
        task: the task's name.
        goal: one of the sentences that ask for the goal; empty: all goals together.
        successes: episodes in which the task's rule held at some step.
        episodes: all that were planned; an episode with an error counts as a failure.
        rate, interval: successes among all episodes.
        completed: episodes without an error.
        rate_completed, interval_completed: successes among those; the rate is None if every episode had an error.
        successes_end: episodes in which the rule held at the last step.
        rate_end, interval_end: those among all episodes.
        errors: episodes that broke off.
        steps_to_success: control steps to the first success, the median over the successes; None without successes.
        phases: phase -> episodes for which it was the furthest, in the task's order; the first is "none".
        mean_steps: control steps of an episode on average.
        episodes_per_minute: while episodes ran, without loading.
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

    @property
    def part(self) -> Part:
        return self.task, self.goal


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


def known_task(name: str) -> Task | None:
    """The task, or None where what it needs is not installed: a table of its episodes needs no simulator.

    Of a task with another robot, the task with its own, whose goals and phases are the same.
    """
    known = next((each for each in (name, name.partition("@")[0]) if each in task_names()), None)
    try:
        return get_task(known) if known else None
    except SimEvalError:  # a plugin that cannot be loaded
        return None


def furthest_phases(task: str, results: Iterable[EpisodeResult]) -> dict[str, int]:
    """Phase -> episodes for which it was the furthest; in the task's order where the task is known."""
    counts = Counter(result.phase for result in results)
    known = known_task(task)
    return {phase: counts[phase] for phase in dict.fromkeys((NOTHING, *(known.phases if known else ()), *counts))}


def parts(results: Sequence[EpisodeResult]) -> dict[Part, list[EpisodeResult]]:
    """The episodes of each task, in the order of the results; after a task with several goals, those of each goal.

    For a task that is not installed here, each instruction that its episodes were given counts as a goal.
    """
    split: dict[Part, list[EpisodeResult]] = {}
    for name, mine in by_task(results).items():
        split[name, ""] = mine
        task = known_task(name)
        if task:
            goals = [task.goals[task.goal(result.key)][0] for result in mine]
            order = [sentences[0] for sentences in task.goals]
        else:
            goals = [result.instruction for result in mine]
            order = list(dict.fromkeys(goals))
        for goal in order if len(order) > 1 else ():
            if chosen := [result for result, its_goal in zip(mine, goals, strict=True) if its_goal == goal]:
                split[name, goal] = chosen
    return split


def summaries(results: Sequence[EpisodeResult]) -> list[TaskSummary]:
    """One for each of the :func:`parts`."""
    return [summarize(task, mine, goal) for (task, goal), mine in parts(results).items()]


def part_name(part: Part) -> str:
    """A task, or a goal indented below it, in a table's first column."""
    task, goal = part
    return f"  {goal}" if goal else task


RATE = "rate [95 %]"
# Two columns stand only where an episode broke off.
COLUMNS: tuple[Column[TaskSummary], ...] = (
    Column("success", lambda each: f"{each.successes}/{each.episodes}"),
    Column(RATE, lambda each: estimate(each.rate, each.interval)),
    Column("at the end", lambda each: estimate(each.rate_end, each.interval_end)),
    Column("steps", lambda each: "-" if each.steps_to_success is None else f"{each.steps_to_success:g}"),
    Column("errors", lambda each: str(each.errors), lambda each: each.errors > 0),
    Column("without errors", lambda each: f"{each.successes}/{each.completed}", lambda each: each.errors > 0),
)


def phase_table(labels: Sequence[str], rows: Sequence[tuple[Sequence[str], TaskSummary]]) -> Table:
    """How many episodes had each phase as their furthest; "-" where a task has no such phase."""

    def column(phase: str) -> Column[TaskSummary]:
        return Column(phase, lambda each: str(each.phases.get(phase, "-")))

    phases = dict.fromkeys(phase for _, summary in rows for phase in summary.phases)
    return Table.of(labels, [column(phase) for phase in phases], rows)


@dataclass(frozen=True)
class SuiteMean:
    """A success rate over a suite. Intervals are 95 %; see :func:`sim_eval.reporting.intervals.mean_interval`.

    Attributes:
        suite: the suite's name.
        of: what is averaged: the suite's tasks, or the suites ("groups") of which it is made, each as the mean of its
            tasks.
        count: the number of tasks or groups.
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
    def cell(self) -> str:
        return estimate(self.rate, self.interval)


MEAN_COLUMNS: tuple[Column[SuiteMean], ...] = (
    Column("suite", lambda mean: mean.suite),
    Column("", lambda mean: mean.name),
    Column("episodes", lambda mean: str(mean.episodes)),
    Column(RATE, lambda mean: mean.cell),
    Column("at the end", lambda mean: estimate(mean.rate_end, mean.interval_end)),
)


def suite_means(results: Iterable[EpisodeResult]) -> Iterator[SuiteMean]:
    """Of every suite all of whose tasks have results: the mean of its tasks, and of its groups if it is made of any."""
    tasks_results = by_task(results)
    for suite in whole_suites(tasks_results):
        tasks = suite_tasks(suite)
        mine = {task: tasks_results[task] for task in tasks}
        yield _mean(suite, "tasks", [(task,) for task in tasks], mine)
        if made_of := groups(suite):
            yield _mean(suite, "groups", [suite_tasks(group) for group in made_of], mine)


@dataclass(frozen=True)
class SuiteScore:
    """The score of one run on a suite.

    Attributes:
        label: names the run.
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
    """The score of a run that has one or more episodes of every task of the suite."""
    mine = by_task(results)
    tasks = {task: tally(mine[task]) for task in suite_tasks(suite)}
    wanted = (suite, *groups(suite))
    return SuiteScore(label, tasks, tuple(mean for mean in suite_means(results) if mean.suite in wanted))


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """Key -> its items; both in the order of the items."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def by_task(results: Iterable[EpisodeResult]) -> dict[str, list[EpisodeResult]]:
    """Task -> its episodes, in the order of the results."""
    return grouped(results, lambda result: result.key.task)


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
