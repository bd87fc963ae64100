"""Rank runs: ``python -m sim_eval.leaderboard runs/ --markdown leaderboard.md``.

Everything is counted from the episode lines themselves. Only complete runs on one manifest under one protocol share a
table; the others are listed with the reason.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from sim_eval.console import run
from sim_eval.envs.contract import SimEvalError

if TYPE_CHECKING:
    from sim_eval.evaluation.run_folder import Run
    from sim_eval.reporting.tables import Grid

NOTE = (
    "Rank: 1 + how many policies are significantly better on the same episodes (exact McNemar, Holm over the table, "
    "p < 0.05); who cannot be told apart shares a rank. "
    "A privileged policy sees the simulator's state: its score is a bound, not a policy's score."
)


@dataclass(frozen=True)
class LeaderboardArguments:
    """Rank runs by success, with intervals and ties.

    Attributes:
        runs: run folders, or folders that hold run folders.
        markdown: write the tables to this file as well.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    markdown: Path | None = None


@dataclass(frozen=True)
class Table:
    """One ranking.

    Attributes:
        ranking: best first.
        details: in the same order; how far a task's episodes came, or how a suite's tasks went; None: over several
            tasks that are no suite, or stand in the table of a larger one.
    """

    title: str
    ranking: Grid
    details: Grid | None

    @property
    def grids(self) -> tuple[Grid, ...]:
        return (self.ranking, self.details) if self.details else (self.ranking,)


@dataclass(frozen=True)
class Board:
    """All rankings, and the folders that are in none of them, each with the reason."""

    tables: tuple[Table, ...]
    left_out: tuple[tuple[Path, str], ...]


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """Run folders among the paths and their children, each once.

    Raises:
        SimEvalError: a path is neither a run folder nor holds one.
    """
    from sim_eval.evaluation.run_folder import MANIFEST

    found: dict[Path, Path] = {}
    for path in paths:
        folders = [path] if (path / MANIFEST).exists() else sorted(file.parent for file in path.glob(f"*/{MANIFEST}"))
        if not folders:
            raise SimEvalError(f"{path} is neither a run folder nor a folder that holds some: name what rollout wrote")
        found.update({folder.resolve(): folder for folder in folders})
    return list(found.values())


def build(folders: Sequence[Path]) -> Board:
    """Reads the runs and ranks those that compare."""
    from sim_eval.evaluation.manifest import digest
    from sim_eval.evaluation.run_folder import read_run

    groups: dict[tuple[str, str], list[Run]] = {}
    left_out: list[tuple[Path, str]] = []
    for folder in folders:
        try:
            found = read_run(folder)
        except SimEvalError as error:
            left_out.append((folder, str(error)))
            continue
        if found.complete:
            groups.setdefault((found.manifest.digest, digest(asdict(found.protocol))), []).append(found)
        else:
            reason = (
                f"{len(found.episodes)} of {len(found.manifest.keys)} episodes: resume it by rollout --out {folder}"
            )
            left_out.append((folder, reason))
    return Board(tuple(table for group in groups.values() for table in tables(group)), tuple(left_out))


def tables(runs: Sequence[Run]) -> list[Table]:
    """The rankings of runs on one manifest and protocol.

    One a suite that is whole, one a task that is in none, and one over all tasks where there are several of these.
    """
    from sim_eval.envs.tasks import suite_tasks, whole_suites

    manifest, protocol = runs[0].manifest, runs[0].protocol
    told = f"told the {protocol.telling} instruction, " * (protocol.telling != "right")
    conditions = (
        f"{'/'.join(sorted({key.split for key in manifest.keys}))} split, manifest {manifest.digest[:8]}; "
        f"replan {protocol.replan}, settle {protocol.settle_steps}, {told}{protocol.simulator}"
    )
    inside = {suite: suite_tasks(suite) for suite in whole_suites(manifest.tasks)}
    alone = [task for task in manifest.tasks if not any(task in tasks for tasks in inside.values())]
    parts: dict[str, Sequence[str]] = {**inside, **{task: (task,) for task in alone}}
    if all(set(part) < set(manifest.tasks) for part in parts.values()):
        parts["all tasks"] = manifest.tasks
    return [
        ranked(
            f"{name} ({conditions})",
            [replace(each, episodes=tuple(r for r in each.episodes if r.key.task in part)) for each in runs],
            name if name in inside else "",
            not any(set(part) < set(other) for other in inside.values()),
        )
        for name, part in parts.items()
    ]


def ranked(title: str, runs: Sequence[Run], suite: str, detailed: bool) -> Table:
    """Runs by rank, then by successes.

    Args:
        runs: of the same episodes.
        suite: whose tasks they are; empty: of none.
        detailed: the suite's tasks stand in no other table.
    """
    from sim_eval.reporting.intervals import ranks
    from sim_eval.reporting.summary import COLUMNS, phase_grid, suite_means, summarize, summary_cells
    from sim_eval.reporting.tables import Grid, policy_label

    # Two runs on one manifest may have been planned in another order of tasks.
    successes = [[result.success for result in sorted(run.episodes, key=lambda result: result.key)] for run in runs]
    tasks = sorted({result.key.task for result in runs[0].episodes})
    scored = [summarize(", ".join(tasks), run.episodes) for run in runs]
    order = sorted(
        zip(ranks(successes), runs, scored, strict=True),
        key=lambda entry: (entry[0], -entry[2].successes, entry[1].policy, str(entry[1].folder)),
    )
    means = {
        found.folder: [mean for mean in suite_means(found.episodes) if mean.suite == suite] for _, found, _ in order
    }
    header = ("rank", "policy", *COLUMNS, *(f"mean of {mean.count} {mean.of}" for mean in means[runs[0].folder]), "run")
    rows = [
        (
            str(rank),
            policy_label(found),
            *summary_cells(summary),
            *(mean.cell for mean in means[found.folder]),
            found.folder.name,
        )
        for rank, found, summary in order
    ]
    details = None
    if len(tasks) == 1:
        details = phase_grid(("furthest phase",), [((policy_label(found),), summary) for _, found, summary in order])
    elif suite and detailed:
        details = task_grid([found for _, found, _ in order])
    return Table(title, Grid(header, tuple(rows)), details)


def task_grid(runs: Sequence[Run]) -> Grid:
    """Successes of planned episodes: a row a task, a column a run."""
    from sim_eval.reporting.summary import summarize
    from sim_eval.reporting.tables import Grid, policy_label

    rows = []
    for task in dict.fromkeys(result.key.task for result in runs[0].episodes):
        mine = [summarize(task, [result for result in run.episodes if result.key.task == task]) for run in runs]
        rows.append((task, *(f"{each.successes} / {each.episodes}" for each in mine)))
    return Grid(("success / planned", *(policy_label(run) for run in runs)), tuple(rows))


def main(arguments: LeaderboardArguments) -> int:
    """Runs the command; returns the exit code, 1 when no run could be ranked."""
    from sim_eval.evaluation.run_folder import atomic
    from sim_eval.reporting.summary import COLUMNS_NOTE, MEANS_NOTE
    from sim_eval.reporting.tables import markdown, terminal

    board = build(find_runs(arguments.runs))
    averaged = any("mean of" in column for table in board.tables for column in table.ranking.header)
    note = f"{COLUMNS_NOTE} {NOTE}" + f" {MEANS_NOTE}" * averaged
    for table in board.tables:
        print(f"{table.title}\n" + "".join(f"{terminal(*grid)}\n\n" for grid in table.grids), end="")
    for folder, reason in board.left_out:
        print(f"left out: {folder}: {reason}", file=sys.stderr)
    if board.tables:
        print(note)
    if arguments.markdown:
        parts = []
        for table in board.tables:
            parts += [f"## {table.title}\n", *(f"{markdown(*grid)}\n" for grid in table.grids)]
        parts += [note + "\n"] if board.tables else []
        left = "\n".join(f"- {folder.name}: {reason}" for folder, reason in board.left_out)
        parts += [f"## Left out\n\n{left}\n"] if left else []
        with atomic(arguments.markdown) as partial:
            partial.write_text("\n".join(parts))
    return 0 if board.tables else 1


if __name__ == "__main__":
    run(main, LeaderboardArguments, "python -m sim_eval.leaderboard")
