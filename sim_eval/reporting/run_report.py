"""The report that ``rollout`` prints of a finished run: tables, or one JSON object."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from sim_eval.core.errors import SimEvalError
from sim_eval.evaluation.engine import EpisodeResult
from sim_eval.evaluation.run_folder import VIDEOS
from sim_eval.reporting.summary import (
    COLUMNS,
    MEAN_COLUMNS,
    MEANS_NOTE,
    TaskSummary,
    by_task,
    part_name,
    phase_table,
    suite_means,
    summaries,
)
from sim_eval.reporting.tables import Column, Table

FEW, ENOUGH = 50, 200  # episodes of a task
PACE: Column[TaskSummary] = Column("episodes/min", lambda each: f"{each.episodes_per_minute:.1f}")


def print_run(folder: Path, results: Sequence[EpisodeResult], as_json: bool) -> None:
    """Prints the score of each task and goal, and the means of whole suites.

    Raises:
        SimEvalError: every episode broke off, so there is no score; the report is printed before.
    """
    each_part, means = summaries(results), list(suite_means(results))
    videos = folder / VIDEOS if (folder / VIDEOS).is_dir() else None
    if as_json:
        values = {
            "out": folder,
            "videos": videos,
            "tasks": [asdict(each) for each in each_part],
            "means": [asdict(each) for each in means],
        }
        print(json.dumps(values, default=str))
    else:
        rows = [((part_name(each.part),), each) for each in each_part]
        print(f"{Table.of(('task',), (*COLUMNS, PACE), rows)}\n")
        if several := [row for row in rows if len(row[1].phases) > 2]:  # phases besides "none" and success
            print(f"{phase_table(('furthest phase',), several)}\n")
        if means:
            print(f"{Table.of((), MEAN_COLUMNS, [((), mean) for mean in means])}\n{MEANS_NOTE}\n")
        print(f"run folder: {folder}\nvideos: {videos or 'none'}\n{next_steps(folder, results)}")
    if all(result.error for result in results):
        raise SimEvalError(f"every episode ended with an error; the first: {results[0].error}")


def next_steps(folder: Path, results: Sequence[EpisodeResult]) -> str:
    """What to type next, one line each."""
    fewest = min(map(len, by_task(results).values()))
    more = f"n = {fewest} a task leaves wide intervals; for narrower ones: --episodes {ENOUGH}\n"
    return f"{more * (fewest < FEW)}to replay every episode and compare: python -m sim_eval.verify {folder}"
