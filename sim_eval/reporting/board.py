"""The rankings of ``leaderboard``: which runs share a table, their ranks, and the figures of suites."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sim_eval.envs.tasks import suite_tasks, whole_suites
from sim_eval.evaluation.manifest import digest
from sim_eval.evaluation.run_folder import MANIFEST, Run, task_versions_apart
from sim_eval.reporting.intervals import ranks
from sim_eval.reporting.run_report import run_tables
from sim_eval.reporting.runs import LeftOut, complete_runs, describe, folders_with, policy_label
from sim_eval.reporting.suite_figure import draw_suite
from sim_eval.reporting.summary import (
    COLUMNS,
    COLUMNS_NOTE,
    MEANS_NOTE,
    SuiteMean,
    SuiteScore,
    TaskSummary,
    by_task,
    grouped,
    phase_table,
    suite_score,
    summarize,
    tally,
)
from sim_eval.reporting.tables import Column, Table

NOTE = (
    "Rank: 1 + the number of policies that are significantly better on the same episodes (exact McNemar, Holm over the "
    "table, p < 0.05); policies that do not differ significantly share a rank. "
    "A privileged policy sees the simulator's state: its score is an upper bound, not a policy's score."
)


@dataclass(frozen=True)
class Standing:
    """The place of a run in a ranking; the means are those of a suite."""

    rank: int
    run: Run
    summary: TaskSummary
    means: tuple[SuiteMean, ...]

    def record(self) -> dict[str, object]:
        """The figures, for JSON and CSV."""
        run, spec = self.run.folder, self.run.spec
        about = {"rank": self.rank, "policy": policy_label(self.run), "privileged": spec.privileged, "run": run}
        means = {mean.of: {**asdict(mean)} for mean in self.means}
        return {**about, **asdict(self.summary), **({"means": means} if means else {})}


@dataclass(frozen=True)
class Ranking:
    """The runs of one task or suite, by rank.

    Attributes:
        name: of the task or suite.
        conditions: split, manifest and protocol of the runs, in words.
        standings: the best first.
        details: the furthest phases of a task that has some, or the tasks of a suite, in the same order; None: over
            several tasks that are no suite, or the suite is part of a larger one, which shows the tasks.
        scores: of a suite, for its figure: policies before privileged ones, and the same order in all suites.
    """

    name: str
    conditions: str
    standings: tuple[Standing, ...]
    details: Table | None
    scores: tuple[SuiteScore, ...]

    @property
    def title(self) -> str:
        return f"{self.name} ({self.conditions})"

    @property
    def table(self) -> Table:
        """The standings. A suite has its means instead of the rate over all its episodes."""
        success, rate, end, steps, *errors = (column.of(_summary) for column in COLUMNS)
        means = [_mean_column(number, mean) for number, mean in enumerate(self.standings[0].means)]
        columns = [success, *(means or (rate, end, steps)), *errors, Column("run", lambda each: each.run.folder.name)]
        return Table.of(
            ("rank", "policy"), columns, [((str(each.rank), policy_label(each.run)), each) for each in self.standings]
        )

    @property
    def tables(self) -> tuple[Table, ...]:
        return (self.table, self.details) if self.details else (self.table,)


def _summary(standing: Standing) -> TaskSummary:
    return standing.summary


def _mean_column(number: int, mean: SuiteMean) -> Column[Standing]:
    return Column(mean.name, lambda each: each.means[number].cell)


@dataclass(frozen=True)
class Section:
    """A part of the board under a title of its own.

    Attributes:
        name: of the task or suite, or of a run that is alone.
        conditions: split, manifest and protocol, in words.
        tables: the first ranks, or is a run's own.
        rankings: that it shows.
    """

    name: str
    conditions: str
    tables: tuple[Table, ...]
    rankings: tuple[Ranking, ...]

    @property
    def title(self) -> str:
        return f"{self.name} ({self.conditions})"


@dataclass(frozen=True)
class Board:
    """All sections, and the folders that are in none of them."""

    sections: tuple[Section, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def rankings(self) -> tuple[Ranking, ...]:
        return tuple(ranking for section in self.sections for ranking in section.rankings)

    @property
    def note(self) -> str:
        ranked = any(len(ranking.standings) > 1 for ranking in self.rankings)
        averaged = any(ranking.scores for ranking in self.rankings)
        return COLUMNS_NOTE + f" {NOTE}" * ranked + f" {MEANS_NOTE}" * averaged

    def records(self) -> Iterator[dict[str, object]]:
        """Each run in each ranking, with its figures."""
        for ranking in self.rankings:
            for standing in ranking.standings:
                yield {"ranking": ranking.name, "conditions": ranking.conditions, **standing.record()}

    def to_json(self) -> dict[str, object]:
        left_out = [each._asdict() for each in self.left_out]
        return {"standings": list(self.records()), "left_out": left_out}

    def markdown(self, folder: Path, figures: Mapping[int, Path]) -> str:
        """The page.

        Args:
            folder: where the page will be, for its links.
            figures: what :func:`draw` returned.
        """
        text, drawn = [], {id(self.rankings[place]): path for place, path in figures.items()}
        for section in self.sections:
            text += [f"## {section.title}\n"]
            for ranking in section.rankings:
                if path := drawn.get(id(ranking)):
                    link = Path(os.path.relpath(path, folder)).as_posix()
                    text += [f"![{ranking.name}: success on each task]({link})\n"]
            text += [f"{table.markdown()}\n" for table in section.tables]
        text += [f"{self.note}\n"] * bool(self.sections)
        left_out = "\n".join(f"- {each.folder.name}: {each.reason}" for each in self.left_out)
        text += [f"## Left out\n\n{left_out}\n"] * bool(left_out)
        return "\n".join(text)


def build(paths: Sequence[Path]) -> Board:
    """Reads the runs at or beneath the paths, and ranks those of one manifest and protocol against each other.

    Raises:
        SimEvalError: a path holds no run.
    """
    runs, left_out = complete_runs(folders_with(MANIFEST, paths, "run"))
    groups = grouped(runs, lambda run: (run.manifest.digest, digest(asdict(run.protocol))))
    return Board(tuple(section for group in groups.values() for section in sections(group)), tuple(left_out))


def sections(runs: Sequence[Run]) -> list[Section]:
    """A section for each ranking of runs on one manifest and protocol; one in all for a run that is alone."""
    ranked = rankings(runs)
    if len(runs) > 1:
        return [Section(each.name, each.conditions, each.tables, (each,)) for each in ranked]
    (run,) = runs
    name = f"{policy_label(run)}, run {run.folder.name}"
    return [Section(name, ranked[0].conditions, tuple(run_tables(run.episodes)), tuple(ranked))]


def rankings(runs: Sequence[Run]) -> list[Ranking]:
    """The rankings of runs on one manifest and protocol.

    One for each whole suite, one for each task that is in none, and one over all tasks where there are several of
    these.
    """
    manifest = runs[0].manifest
    splits = "/".join(sorted({key.split for key in manifest.keys}))
    conditions = f"{splits} split, manifest {manifest.digest[:8]}; {', '.join(describe(runs[0].protocol))}"
    if apart := task_versions_apart(runs):
        conditions += f"; versions differ: {apart}"
    inside = {suite: suite_tasks(suite) for suite in whole_suites(manifest.tasks)}
    alone = [task for task in manifest.tasks if not any(task in tasks for tasks in inside.values())]
    parts: dict[str, Sequence[str]] = {**inside, **{task: (task,) for task in alone}}
    if all(set(part) < set(manifest.tasks) for part in parts.values()):
        parts["all tasks"] = manifest.tasks
    # The figures of all suites show the same runs in the same colours.
    in_order = sorted((each for _, each in by_rank(runs)), key=lambda each: each.spec.privileged)
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
    # Two runs on one manifest may have been planned in another order of tasks.
    successes = [[result.success for result in sorted(run.episodes, key=lambda result: result.key)] for run in runs]
    order = sorted(
        zip(ranks(successes), runs, map(sum, successes), strict=True),
        key=lambda entry: (entry[0], -entry[2], entry[1].spec.name, str(entry[1].folder)),
    )
    return [(rank, each) for rank, each, _ in order]


def ranked(name: str, conditions: str, runs: Sequence[Run], suite: bool, detailed: bool) -> Ranking:
    """Runs by rank, then by successes.

    Args:
        name: of the task or suite.
        conditions: of the runs, in words.
        runs: of the same episodes.
        suite: the name is a suite's.
        detailed: the suite's tasks are shown in no other table.
    """
    tasks = sorted({result.key.task for result in runs[0].episodes})
    scores = {each.folder: suite_score(policy_label(each), name, each.episodes) for each in runs} if suite else {}
    standings = tuple(
        Standing(rank, run, summarize(name, run.episodes), scores[run.folder].of(name) if suite else ())
        for rank, run in by_rank(runs)
    )
    details = None
    if len(tasks) == 1 and len(standings[0].summary.phases) > 2:  # phases besides "none" and success
        details = phase_table(("furthest phase",), [((policy_label(each.run),), each.summary) for each in standings])
    elif suite and detailed:
        details = task_table([each.run for each in standings])
    return Ranking(name, conditions, standings, details, tuple(scores.values()))


def task_table(runs: Sequence[Run]) -> Table:
    """Successes of planned episodes: a row for each task, a column for each run."""
    tallies = [{task: tally(results) for task, results in by_task(run.episodes).items()} for run in runs]
    rows = [(task, *(f"{scores[task].successes}/{scores[task].episodes}" for scores in tallies)) for task in tallies[0]]
    return Table(("success", *(policy_label(run) for run in runs)), tuple(rows))


def draw(board: Board, folder: Path) -> dict[int, Path]:
    """Draws a figure of every suite into the folder; returns the ranking's place -> the figure's file."""
    drawn: dict[int, Path] = {}
    for place, ranking in enumerate(board.rankings):
        if not ranking.scores:
            continue
        earlier = sum(board.rankings[other].name == ranking.name for other in drawn)
        name = ranking.name.replace("/", "-") + f"-{earlier + 1}" * bool(earlier)  # under another protocol, say
        drawn[place] = folder / f"{name}.svg"
        draw_suite(drawn[place], ranking.name, ranking.scores, ranking.conditions)
    return drawn
