"""The report that ``rollout`` prints of a finished run: tables, JSON or CSV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from sim_eval.core.errors import SimEvalError
from sim_eval.core.programs import command
from sim_eval.evaluation.engine import EpisodeResult
from sim_eval.evaluation.run_folder import VIDEOS
from sim_eval.reporting.records import Format, print_records
from sim_eval.reporting.summary import (
    COLUMNS,
    COLUMNS_NOTE,
    MEAN_COLUMNS,
    MEANS_NOTE,
    by_task,
    part_name,
    phase_table,
    suite_means,
    summaries,
)
from sim_eval.reporting.tables import Table, wrapped

FEW, ENOUGH = 50, 200  # episodes of a task


def print_run(folder: Path, results: Sequence[EpisodeResult], asked: Format) -> None:
    """Prints the score of each task and goal, and the means of whole suites.

    Raises:
        SimEvalError: every episode broke off, so there is no score; the report is printed before.
    """
    each_part, means = summaries(results), list(suite_means(results))
    videos = folder / VIDEOS if (folder / VIDEOS).is_dir() else None
    if not print_records(
        asked,
        lambda: {"out": folder, "videos": videos, "tasks": each_part, "means": means},
        lambda: [*map(asdict, each_part), *map(asdict, means)],
    ):
        print("\n\n".join(map(str, run_tables(results))), end="\n\n")
        print(wrapped(COLUMNS_NOTE + f" {MEANS_NOTE}" * bool(means)))
        print(f"run folder: {folder}\nvideos: {videos or 'none'}\n{next_steps(folder, results)}")
    if all(result.error for result in results):
        raise SimEvalError(f"every episode ended with an error; the first: {results[0].error}")


def run_tables(results: Sequence[EpisodeResult]) -> list[Table]:
    """The tables of one run: its tasks and goals, their furthest phases, and the means of whole suites."""
    rows = [((part_name(each.part),), each) for each in summaries(results)]
    tables = [Table.of(("task",), COLUMNS, rows)]
    if several := [row for row in rows if len(row[1].phases) > 2]:  # phases besides "none" and success
        tables.append(phase_table(("furthest phase",), several))
    if means := list(suite_means(results)):
        tables.append(Table.of((), MEAN_COLUMNS, [((), mean) for mean in means]))
    return tables


def next_steps(folder: Path, results: Sequence[EpisodeResult]) -> str:
    """What to type next, one line each."""
    fewest = min(map(len, by_task(results).values()))
    more = f"n = {fewest} a task leaves wide intervals; for narrower ones: --episodes {ENOUGH}\n"
    return f"{more * (fewest < FEW)}to replay every episode and compare: {command('verify')} {folder}"
