"""Compare trainings: ``python -m sim_eval.results --trainings runs/train --runs runs --out docs/results``.

Joins trainings and the complete test runs of their weights, and writes ``results.md`` with tables and intervals, and
the figures that the trainings allow: ``minutes.svg``, success against training minutes, and ``demonstrations.svg``,
success against the number of demonstrations. What could not be counted is listed with the reason.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import tyro

from sim_eval.console import make_folder, run
from sim_eval.core.errors import SimEvalError

if TYPE_CHECKING:
    from sim_eval.evaluation.engine import RolloutProtocol
    from sim_eval.reporting.comparison import Comparison, Panel, Setting, Tested, Training
    from sim_eval.reporting.summary import Part, SuiteMean, Tally

PAGE, MINUTES, DEMONSTRATIONS = "results.md", "minutes.svg", "demonstrations.svg"
SETTING_HEADER = ("changes", "demonstrations")

INTERVALS = (
    "Success rate and Clopper-Pearson's 95 % interval; n counts episodes, one that broke off with an error being a "
    "failure."
)
POOLED = (
    "All seeds' episodes together, and in brackets each seed's own rate. The interval takes every episode as "
    "independent: how much seeds differ is not in it, but in the brackets."
)

AT_END = (
    "Episodes go on for a few steps after the first success: whether it still held at the last one. What falls far "
    "below the table above succeeded for a moment only."
)


@dataclass(frozen=True)
class ResultsArguments:
    """Compare trainings: tables and figures from their records and test runs.

    Attributes:
        trainings: checkpoint folders of sim_eval.train, or folders that hold some.
        runs: run folders of sim_eval.rollout, or folders that hold some.
        out: folder for results.md and the figures.
    """

    trainings: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="DIR [DIR ...]")]
    out: Path
    runs: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="DIR [DIR ...]")] = ()


@dataclass(frozen=True)
class Figure:
    """A figure, or why there is none.

    Attributes:
        file: its name.
        split: of the episodes it counts.
        text: what it shows, under which protocol.
        missing: what is not there when it has no panels, and so is not drawn.
        panels: one a task.
    """

    file: str
    split: str
    text: str
    missing: str
    panels: tuple[Panel, ...]


class Row(NamedTuple):
    """A row of a table of scores.

    Attributes:
        name: where it is a column's head.
        cells: what stands before the scores.
        tested: whose episodes count, all together.
    """

    name: str
    cells: tuple[str, ...]
    tested: Sequence[Tested]


class Entry(NamedTuple):
    """A score.

    Attributes:
        text: rate and interval.
        own: each training's own rate.
        episodes: of all.
    """

    text: str
    own: Sequence[float]
    episodes: int


class Column(NamedTuple):
    """What the rows scored on one thing; None: nothing. n stands in the head where it has one."""

    name: str
    entries: Sequence[Entry | None]

    @property
    def sizes(self) -> list[int]:
        return [entry.episodes for entry in self.entries if entry]

    @property
    def head(self) -> str:
        from sim_eval.reporting.comparison import span

        return f"{self.name} (n = {span(self.sizes)})"

    @property
    def cells(self) -> list[str]:
        several = len(set(self.sizes)) > 1
        return [self._cell(entry, several) if entry else "-" for entry in self.entries]

    @staticmethod
    def _cell(entry: Entry, several: bool) -> str:
        own = f" ({', '.join(f'{100 * rate:.1f}' for rate in entry.own)})" if len(entry.own) > 1 else ""
        return f"{entry.text}{own}" + f", n = {entry.episodes}" * several


def main(arguments: ResultsArguments) -> int:
    """Runs the command; returns the exit code, 1 when there is neither a table nor a figure."""
    from sim_eval.core.files import atomic
    from sim_eval.reporting.comparison import compare
    from sim_eval.reporting.figures import draw_demonstrations, draw_minutes

    make_folder(arguments.out)
    comparison = compare(arguments.trainings, arguments.runs)
    if not comparison.trainings:
        reason = f"; {comparison.left_out[0][0]}: {comparison.left_out[0][1]}" if comparison.left_out else ""
        raise SimEvalError(f"--trainings holds no finished training of sim_eval.train{reason}")
    minutes, demonstrations = figures(comparison)
    written = []
    for figure, draw in ((minutes, draw_minutes), (demonstrations, draw_demonstrations)):
        if figure.panels:
            draw(arguments.out / figure.file, figure.panels, figure.split)
            written.append(figure.file)
    with atomic(arguments.out / PAGE) as partial:
        partial.write_text(page(comparison, (minutes, demonstrations)))
    for folder, reason in comparison.left_out:
        print(f"left out: {folder}: {reason}", file=sys.stderr)
    counted = (
        f"{len(comparison.trainings)} trainings, {len({each.training.folder for each in comparison.tested})} tested"
    )
    print(f"{counted}: {', '.join([PAGE, *written])} in {arguments.out}")
    return 0 if comparison.tested or written else 1


def figures(comparison: Comparison) -> tuple[Figure, Figure]:
    """Success against minutes, and against demonstrations under the protocol that tested most trainings."""
    from sim_eval.evaluation.engine import RolloutProtocol
    from sim_eval.reporting.comparison import SCORED, VALIDATED, demonstrations_panels, minutes_panels

    told_right = [
        group
        for group in by_protocol(comparison.tested)
        if group[0].protocol.instruction_condition == "correct" and not group[0].variant
    ]
    group = max(told_right, key=len, default=())  # of equals the first, which is the default
    scoring = ", ".join(describe(group[0].protocol if group else RolloutProtocol()))
    return (
        Figure(
            MINUTES,
            VALIDATED,
            "The averaged weights, tried as they trained, replanning every "
            f"{RolloutProtocol().n_action_steps} control steps.",
            "no training was validated",
            minutes_panels(comparison.trainings),
        ),
        Figure(
            DEMONSTRATIONS,
            SCORED,
            f"The kept weights, {scoring}.",
            "no task has tested trainings on two numbers of demonstrations that are alike otherwise",
            demonstrations_panels(group),
        ),
    )


def by_protocol(tested: Iterable[Tested]) -> list[list[Tested]]:
    """Test results that compare: one group a protocol and variant, the default first, wrong tellings last."""
    from sim_eval.evaluation.engine import RolloutProtocol

    groups: dict[tuple[RolloutProtocol, str], list[Tested]] = {}
    for each in tested:
        groups.setdefault((each.protocol, each.variant), []).append(each)
    default = RolloutProtocol()

    def place(group: tuple[RolloutProtocol, str]) -> tuple[bool, bool, str, str]:
        protocol, variant = group
        return protocol.instruction_condition == "counterfactual", protocol != default, variant, str(protocol)

    return [groups[group] for group in sorted(groups, key=place)]


def describe(protocol: RolloutProtocol) -> tuple[str, ...]:
    """A protocol in words."""
    shown = protocol.render
    return (
        f"replanning every {protocol.n_action_steps} control steps",
        f"settling for {protocol.post_success_steps}",
        f"{shown.mode} rendering",
        f"{shown.height}x{shown.width} pixels",
        *["goal hidden"] * shown.hide_goal,
        f"told the {protocol.instruction_condition} instruction",
    )


def page(comparison: Comparison, drawn: Sequence[Figure]) -> str:
    """The whole of ``results.md``."""
    from sim_eval.envs.tasks import whole_suites
    from sim_eval.reporting.summary import MEANS_NOTE

    averaged = any(whole_suites(each.tasks) for each in comparison.tested)
    parts = ["# Results", INTERVALS + f" {MEANS_NOTE}" * averaged]
    for group in by_protocol(comparison.tested):
        parts += score_tables(group)
    for figure in drawn:
        parts += figure_text(figure, comparison.trainings)
    parts += ["## Networks", network_table(comparison.trainings)]
    if comparison.left_out:
        parts += ["## Left out", "\n".join(f"- {folder}: {reason}" for folder, reason in comparison.left_out)]
    return "\n\n".join(parts) + "\n"


def score_tables(group: Sequence[Tested]) -> list[str]:
    """The tables of one protocol and variant: a row a training, and a row a setting that has several seeds."""
    from sim_eval.evaluation.engine import RolloutProtocol
    from sim_eval.reporting.comparison import SCORED

    protocol, usual = group[0].protocol, describe(RolloutProtocol())
    unusual = [part for part in (*describe(protocol), group[0].variant) if part and part not in usual]
    parts = [
        f"## {', '.join([f'{SCORED.capitalize()} split', *unusual])}",
        f"Protocol: {', '.join(describe(protocol))}.",
    ]
    if protocol.instruction_condition == "counterfactual":
        parts += [
            "The policy was told another goal than the one that is scored and stands in the head: "
            "the lower the rate, the better it obeys."
        ]
    ordered = sorted(group, key=lambda each: order(each.training))
    rows = [Row(each.training.folder.name, training_cells(each.training), [each]) for each in ordered]
    parts += score_texts(("training", "expert", "seed", *SETTING_HEADER, "minutes", "steps"), rows)
    settings: dict[Setting, list[Tested]] = {}
    for each in ordered:
        settings.setdefault(each.training.setting, []).append(each)
    several = [members for members in settings.values() if len(members) > 1]
    if several:
        parts += ["### Seeds together", POOLED]
        header = ("expert", "seeds", *SETTING_HEADER, "budget")
        parts += score_texts(header, [seeds_row(members) for members in several])
    ends = [Row(row.name, (row.name,), row.tested) for row in rows]
    parts += ["### Success at the last step", AT_END, *score_texts(("training",), ends, at_end=True)]
    return [*parts, "### Errors, steps and phases", *detail_tables(ordered)]


def detail_tables(ordered: Sequence[Tested]) -> list[str]:
    """Both denominators, steps to success and the furthest phases: a row a training, task and goal."""
    from sim_eval.reporting.summary import COLUMNS, COLUMNS_NOTE, part_name, phase_grid, summaries, summary_cells
    from sim_eval.reporting.tables import folded

    rows = [
        ((each.training.folder.name, part_name((summary.task, summary.goal))), summary)
        for each in ordered
        for summary in summaries(each.results)
    ]
    figures = [(*left, *summary_cells(summary)) for left, summary in rows]
    phases = phase_grid(("training", "furthest phase"), rows)
    return [COLUMNS_NOTE, folded(("training", "task", *COLUMNS), figures), folded(*phases)]


def training_cells(training: Training) -> tuple[str, ...]:
    record = training.record
    return (
        training.folder.name,
        record.config.expert,
        str(record.config.seed),
        *setting_cells(training.setting),
        f"{record.minutes:.1f}",
        str(record.steps),
    )


def setting_cells(setting: Setting) -> tuple[str, str]:
    """Under :data:`SETTING_HEADER`."""
    return changes(setting), str(sum(count for _, count in setting.demonstrations))


def changes(setting: Setting) -> str:
    return ", ".join(setting.changes) or "-"


def seeds_row(members: Sequence[Tested]) -> Row:
    """One setting: what it was, and its trainings, one a seed."""
    setting = members[0].training.setting
    seeds = ", ".join(str(each.training.record.config.seed) for each in members)
    cells = (setting.expert, seeds, *setting_cells(setting), setting.budget)
    return Row(", ".join(each.training.folder.name for each in members), cells, members)


def score_texts(header: Sequence[str], rows: Sequence[Row], at_end: bool = False) -> list[str]:
    """Markdown: cells under the header, then a column a task and goal.

    The tasks of whole suites stand a row each in a table of their own, and the suites' means in the first one.

    Args:
        at_end: count success at the last step, not at any.
    """
    from sim_eval.envs.tasks import outer_suites, suite_tasks
    from sim_eval.reporting.tables import folded, markdown

    tested = [each for row in rows for each in row.tested]
    suites = list(dict.fromkeys(suite for each in tested for suite in outer_suites(each.tasks)))
    inside = list(dict.fromkeys(task for suite in suites for task in suite_tasks(suite)))
    tasks = task_columns(rows, at_end)
    shown = [*mean_columns(rows, suites, at_end), *(tasks[part] for part in tasks if part[0] not in inside)]
    lines = zip(*(column.cells for column in shown), strict=True)
    texts = [
        markdown(
            (*header, *(column.head for column in shown)), [(*r.cells, *c) for r, c in zip(rows, lines, strict=True)]
        )
    ]
    if inside:
        below = [tasks[part] for task in inside for part in tasks if part[0] == task]
        texts.append(folded(("task", *(row.name for row in rows)), [(column.head, *column.cells) for column in below]))
    return texts


def task_columns(rows: Sequence[Row], at_end: bool) -> dict[Part, Column]:
    """A column a task and goal, by name."""
    from sim_eval.reporting.comparison import pool
    from sim_eval.reporting.tables import counted

    def entry(tallies: Sequence[Tally]) -> Entry | None:
        if not tallies:
            return None
        both = pool(tallies)
        return Entry(counted(both.successes, both.episodes), [each.rate for each in tallies], both.episodes)

    scores = [[each.scores(at_end) for each in row.tested] for row in rows]
    columns = sorted({part for row in scores for each in row for part in each})
    return {
        part: Column(
            ": ".join(name for name in part if name),
            [entry([each[part] for each in row if part in each]) for row in scores],
        )
        for part in columns
    }


def mean_columns(rows: Sequence[Row], suites: Sequence[str], at_end: bool) -> Iterator[Column]:
    """A column a mean of each suite; it is of the trainings that were tested on the whole suite."""
    from sim_eval.reporting.summary import suite_means

    def means(tested: Sequence[Tested]) -> dict[str, list[SuiteMean]]:
        found: dict[str, list[SuiteMean]] = {}
        for mean in suite_means([result for each in tested for result in each.results]):
            found.setdefault(mean.suite, []).append(mean.at_end if at_end else mean)
        return found

    own = [[(each, means([each])) for each in row.tested] for row in rows]
    for suite in suites:
        seeds = [[(each, found[suite]) for each, found in row if suite in found] for row in own]
        together = [
            means([each for each, _ in row])[suite] if len(row) > 1 else row[0][1] if row else [] for row in seeds
        ]
        for place, name in enumerate(mean.name for mean in max(together, key=len)):
            entries = [
                Entry(all_of_it[place].cell, [mine[place].rate for _, mine in row], all_of_it[place].episodes)
                if row
                else None
                for all_of_it, row in zip(together, seeds, strict=True)
            ]
            yield Column(f"{suite}, {name}", entries)


def figure_text(figure: Figure, trainings: Sequence[Training]) -> list[str]:
    """A figure with its caption: what stands behind each panel, and which trainings are not in it."""
    titles = {MINUTES: "against training minutes", DEMONSTRATIONS: "against demonstrations"}
    parts = [f"## Success {titles[figure.file]}, {figure.split} split"]
    if not figure.panels:
        return [*parts, f"Not drawn: {figure.missing}."]
    parts += [f"![Success {titles[figure.file]}, {figure.split} split]({figure.file})", figure.text]
    behind: dict[str, list[str]] = {}
    for panel in figure.panels:
        behind.setdefault(f"{panel.sample}; {panel.conditions}", []).append(panel.task)
    parts += ["\n".join(f"- {', '.join(tasks)}: {text}" for text, tasks in behind.items())]
    shown = {folder for panel in figure.panels for folder in panel.shown}
    if absent := [each.folder.name for each in trainings if each.folder not in shown]:
        parts += [
            f"Not in it, since they differ in more than the figure shows or were not scored: {', '.join(absent)}."
        ]
    return parts


def network_table(trainings: Sequence[Training]) -> str:
    from sim_eval.reporting.tables import markdown

    rows = {
        (
            record.config.expert,
            record.size,
            changes(each.setting),
            f"{record.parameters:,}",
            f"{record.trainable:,}",
        ): None
        for each in sorted(trainings, key=order)
        for record in [each.record]
    }
    return markdown(("expert", "size", "changes", "parameters", "trained"), list(rows))


def order(training: Training) -> tuple[str | int, ...]:
    """Where a training stands in a table: the unchanged network first, more data first, seeds beside each other."""
    setting, record = training.setting, training.record
    data = -sum(record.demonstrations.values())
    return (
        record.config.expert,
        record.size,
        changes(setting),
        data,
        setting.budget,
        record.config.seed,
        str(training.folder),
    )


if __name__ == "__main__":
    run(main, ResultsArguments, "python -m sim_eval.results")
