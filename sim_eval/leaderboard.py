"""Rank runs: ``python -m sim_eval.leaderboard runs/ --markdown leaderboard.md``.

Everything is counted from the episode lines themselves. Only complete runs on one manifest under one protocol share a
table; the others are listed with the reason.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from sim_eval.console import run
from sim_eval.envs.contract import SimEvalError

if TYPE_CHECKING:
    from sim_eval.evaluation.engine import EpisodeResult
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
        phases: how far episodes came, in the same order; None: over several tasks, whose phases differ.
    """

    title: str
    ranking: Grid
    phases: Grid | None

    @property
    def grids(self) -> tuple[Grid, ...]:
        return (self.ranking, self.phases) if self.phases else (self.ranking,)


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
    """One table a task, and one over all tasks when there are several, of runs on one manifest and protocol."""
    manifest, protocol = runs[0].manifest, runs[0].protocol
    shown = protocol.simulator
    conditions = (
        f"{'/'.join(sorted({key.split for key in manifest.keys}))} split, manifest {manifest.digest[:8]}; "
        f"replan {protocol.replan}, settle {protocol.settle_steps}, {shown.render} {shown.height}x{shown.width}"
    )
    parts = {task: {task} for task in manifest.tasks}
    if len(parts) > 1:
        parts["all tasks"] = set(manifest.tasks)
    return [
        ranked(
            f"{name} ({conditions})",
            runs,
            [[result for result in each.episodes if result.key.task in part] for each in runs],
        )
        for name, part in parts.items()
    ]


def ranked(title: str, runs: Sequence[Run], results: Sequence[Sequence[EpisodeResult]]) -> Table:
    """Runs by rank, then by successes; each run's results are of the same episodes."""
    from sim_eval.reporting.intervals import ranks
    from sim_eval.reporting.summary import COLUMNS, phase_grid, summarize, summary_cells
    from sim_eval.reporting.tables import Grid, policy_label

    # Two runs on one manifest may have been planned in another order of tasks.
    in_order = [sorted(each, key=lambda result: result.key) for each in results]
    successes = [[result.success for result in each] for each in in_order]
    tasks = {result.key.task for result in in_order[0]}
    scored = [summarize(", ".join(sorted(tasks)), each) for each in in_order]
    order = sorted(
        zip(ranks(successes), runs, scored, strict=True),
        key=lambda entry: (entry[0], -entry[2].successes, entry[1].policy, str(entry[1].folder)),
    )
    rows = [
        (str(rank), policy_label(found), *summary_cells(summary), found.folder.name) for rank, found, summary in order
    ]
    phases = phase_grid(("furthest phase",), [((policy_label(found),), summary) for _, found, summary in order])
    return Table(title, Grid(("rank", "policy", *COLUMNS, "run"), tuple(rows)), phases if len(tasks) == 1 else None)


def main(arguments: LeaderboardArguments) -> int:
    """Runs the command; returns the exit code, 1 when no run could be ranked."""
    from sim_eval.evaluation.run_folder import atomic
    from sim_eval.reporting.summary import COLUMNS_NOTE
    from sim_eval.reporting.tables import markdown, terminal

    board = build(find_runs(arguments.runs))
    note = f"{COLUMNS_NOTE} {NOTE}"
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
