"""What the episodes of a run add up to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sim_eval.envs.tasks import get_task
from sim_eval.reporting.intervals import success_interval

if TYPE_CHECKING:
    from sim_eval.evaluation.engine import EpisodeResult


@dataclass(frozen=True)
class TaskSummary:
    """What the episodes of one task, or of one goal of it, add up to.

    Attributes:
        task: the task's name.
        goal: one of the sentences that ask for the goal; empty: all goals together.
        interval: Wilson's 95 % interval of the rate.
        mean_steps: control steps an episode took on average.
        episodes_per_minute: while episodes ran, loading not counted.
    """

    task: str
    goal: str
    successes: int
    episodes: int
    rate: float
    interval: tuple[float, float]
    successes_end: int
    errors: int
    mean_steps: float
    episodes_per_minute: float


def summarize(task: str, results: Sequence[EpisodeResult], goal: str = "") -> TaskSummary:
    """Adds up one or more episodes; an episode with an error counts as a failure."""
    count, successes = len(results), sum(result.success for result in results)
    return TaskSummary(
        task=task,
        goal=goal,
        successes=successes,
        episodes=count,
        rate=successes / count,
        interval=success_interval(successes, count),
        successes_end=sum(result.success_end for result in results),
        errors=sum(result.error is not None for result in results),
        mean_steps=sum(result.steps for result in results) / count,
        episodes_per_minute=60 * count / max(sum(result.seconds for result in results), 1e-9),
    )


def summaries(results: Sequence[EpisodeResult]) -> Iterator[TaskSummary]:
    """One a task, in the order of the results; after a task with several goals, one a goal."""
    for name in dict.fromkeys(result.key.task for result in results):
        task, mine = get_task(name), [result for result in results if result.key.task == name]
        yield summarize(name, mine)
        for index, sentences in enumerate(task.goals if len(task.goals) > 1 else ()):
            if chosen := [result for result in mine if task.goal(result.key) == index]:
                yield summarize(name, chosen, sentences[0])
