"""Rank runs: ``python -m sim_eval.leaderboard runs/ --markdown leaderboard.md --figures figures``.

Everything is counted from the episode lines themselves. Only complete runs on one manifest under one protocol share a
table; the others are listed with the reason.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from sim_eval.console import run
from sim_eval.core.errors import SimEvalError

if TYPE_CHECKING:
    from sim_eval.evaluation.run_folder import Run
    from sim_eval.reporting.summary import SuiteScore
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
        figures: folder for a figure of every suite that is ranked, its tasks one by one.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    markdown: Path | None = None
    figures: Path | None = None


@dataclass(frozen=True)
class Table:
    """One ranking.

    Attributes:
        name: of the task or suite.
        conditions: split, manifest and protocol of the runs, in words.
        ranking: best first.
        details: in the same order; how far a task's episodes came, or how a suite's tasks went; None: over several
            tasks that are no suite, or stand in the table of a larger one.
        scores: of a suite, for its figure: policies before bounds, and all suites of these runs in one order.
    """

    name: str
    conditions: str
    ranking: Grid
    details: Grid | None
    scores: tuple[SuiteScore, ...]

    @property
    def title(self) -> str:
        return f"{self.name} ({self.conditions})"

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
    from sim_eval.evaluation.run_folder import task_versions_apart

    manifest, protocol = runs[0].manifest, runs[0].protocol
    told = f"{protocol.instruction_condition} instruction, " * (protocol.instruction_condition != "correct")
    conditions = (
        f"{'/'.join(sorted({key.split for key in manifest.keys}))} split, manifest {manifest.digest[:8]}; "
        f"replan {protocol.n_action_steps}, settle {protocol.post_success_steps}, {told}{protocol.render}"
    )
    if apart := task_versions_apart(runs):
        conditions += f"; not of one version: {apart}"
    inside = {suite: suite_tasks(suite) for suite in whole_suites(manifest.tasks)}
    alone = [task for task in manifest.tasks if not any(task in tasks for tasks in inside.values())]
    parts: dict[str, Sequence[str]] = {**inside, **{task: (task,) for task in alone}}
    if all(set(part) < set(manifest.tasks) for part in parts.values()):
        parts["all tasks"] = manifest.tasks
    # The figures of all suites show the same runs in the same colours.
    in_order = sorted((each for _, each in by_rank(runs)), key=lambda each: each.privileged)
    return [
        ranked(
            name,
            conditions,
            [replace(each, episodes=tuple(r for r in each.episodes if r.key.task in part)) for each in in_order],
            name in inside,
            not any(set(part) < set(other) for other in inside.values()),
        )
        for name, part in parts.items()
    ]


def by_rank(runs: Sequence[Run]) -> list[tuple[int, Run]]:
    """Runs of the same episodes with their ranks; by rank, then by successes."""
    from sim_eval.reporting.intervals import ranks

    # Two runs on one manifest may have been planned in another order of tasks.
    successes = [[result.success for result in sorted(run.episodes, key=lambda result: result.key)] for run in runs]
    order = sorted(
        zip(ranks(successes), runs, map(sum, successes), strict=True),
        key=lambda entry: (entry[0], -entry[2], entry[1].policy, str(entry[1].folder)),
    )
    return [(rank, each) for rank, each, _ in order]


def ranked(name: str, conditions: str, runs: Sequence[Run], suite: bool, detailed: bool) -> Table:
    """Runs by rank, then by successes.

    Args:
        name: of the task or suite.
        conditions: of the runs, in words.
        runs: of the same episodes.
        suite: the name is a suite's.
        detailed: the suite's tasks stand in no other table.
    """
    from sim_eval.reporting.summary import COLUMNS, phase_grid, suite_score, summarize, summary_cells
    from sim_eval.reporting.tables import Grid, policy_label

    order = by_rank(runs)
    tasks = sorted({result.key.task for result in runs[0].episodes})
    summaries = {each.folder: summarize(", ".join(tasks), each.episodes) for each in runs}
    scores = {each.folder: suite_score(policy_label(each), name, each.episodes) for each in runs} if suite else {}
    means = {folder: score.of(name) for folder, score in scores.items()}
    header = ("rank", "policy", *COLUMNS, *(mean.name for mean in means.get(runs[0].folder, ())), "run")
    rows = [
        (
            str(rank),
            policy_label(each),
            *summary_cells(summaries[each.folder]),
            *(mean.cell for mean in means.get(each.folder, ())),
            each.folder.name,
        )
        for rank, each in order
    ]
    details = None
    if len(tasks) == 1:
        details = phase_grid(
            ("furthest phase",), [((policy_label(each),), summaries[each.folder]) for _, each in order]
        )
    elif suite and detailed:
        details = task_grid([each for _, each in order])
    return Table(name, conditions, Grid(header, tuple(rows)), details, tuple(scores.values()))


def task_grid(runs: Sequence[Run]) -> Grid:
    """Successes of planned episodes: a row a task, a column a run."""
    from sim_eval.reporting.summary import summarize
    from sim_eval.reporting.tables import Grid, policy_label

    rows = []
    for task in dict.fromkeys(result.key.task for result in runs[0].episodes):
        mine = [summarize(task, [result for result in run.episodes if result.key.task == task]) for run in runs]
        rows.append((task, *(f"{each.successes} / {each.episodes}" for each in mine)))
    return Grid(("success / planned", *(policy_label(run) for run in runs)), tuple(rows))


def draw(board: Board, folder: Path) -> dict[int, Path]:
    """A figure of every suite in the folder: the table's place -> the figure's file."""
    from sim_eval.reporting.suite_figure import draw_suite

    drawn: dict[int, Path] = {}
    for place, table in enumerate(board.tables):
        if not table.scores:
            continue
        earlier = sum(board.tables[other].name == table.name for other in drawn)
        name = table.name.replace("/", "-") + f"-{earlier + 1}" * bool(earlier)  # under another protocol, say
        drawn[place] = folder / f"{name}.svg"
        draw_suite(drawn[place], table.name, table.scores, table.conditions)
    return drawn


def main(arguments: LeaderboardArguments) -> int:
    """Runs the command; returns the exit code, 1 when no run could be ranked."""
    from sim_eval.core.files import atomic
    from sim_eval.reporting.summary import COLUMNS_NOTE, MEANS_NOTE
    from sim_eval.reporting.tables import markdown, terminal

    board = build(find_runs(arguments.runs))
    drawn = draw(board, arguments.figures) if arguments.figures else {}
    averaged = any("mean of" in column for table in board.tables for column in table.ranking.header)
    note = f"{COLUMNS_NOTE} {NOTE}" + f" {MEANS_NOTE}" * averaged
    for table in board.tables:
        print(f"{table.title}\n" + "".join(f"{terminal(*grid)}\n\n" for grid in table.grids), end="")
    for folder, reason in board.left_out:
        print(f"left out: {folder}: {reason}", file=sys.stderr)
    if board.tables:
        print(note)
    if arguments.figures:
        print(f"{len(drawn)} figures in {arguments.figures}: {', '.join(path.name for path in drawn.values())}")
    if arguments.markdown:
        parts = []
        for place, table in enumerate(board.tables):
            parts += [f"## {table.title}\n"]
            if place in drawn:
                link = Path(os.path.relpath(drawn[place], arguments.markdown.parent)).as_posix()
                parts += [f"![{table.name}: success on each task]({link})\n"]
            parts += [f"{markdown(*grid)}\n" for grid in table.grids]
        parts += [note + "\n"] if board.tables else []
        left = "\n".join(f"- {folder.name}: {reason}" for folder, reason in board.left_out)
        parts += [f"## Left out\n\n{left}\n"] if left else []
        with atomic(arguments.markdown) as partial:
            partial.write_text("\n".join(parts))
    return 0 if board.tables else 1


if __name__ == "__main__":
    run(main, LeaderboardArguments, "python -m sim_eval.leaderboard")
