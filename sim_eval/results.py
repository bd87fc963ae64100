"""Compare trainings: ``python -m sim_eval.results --trainings runs/train --runs runs --out docs/results``.

Joins trainings and the complete test runs of their weights, and writes ``results.md`` with tables and intervals, and
the figures that the trainings allow: ``minutes.svg``, success against training minutes, and ``demonstrations.svg``,
success against the number of demonstrations. What could not be counted is listed with the reason.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import tyro

from sim_eval.console import make_folder, run
from sim_eval.envs.contract import SimEvalError

if TYPE_CHECKING:
    from sim_eval.evaluation.engine import RolloutProtocol
    from sim_eval.reporting.comparison import Comparison, Panel, Setting, Tested, Training
    from sim_eval.reporting.summary import Part, Tally

PAGE, MINUTES, DEMONSTRATIONS = "results.md", "minutes.svg", "demonstrations.svg"
SETTING_HEADER = ("changes", "demonstrations")
Scores: TypeAlias = "Mapping[Part, Sequence[Tally]]"

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


def main(arguments: ResultsArguments) -> int:
    """Runs the command; returns the exit code, 1 when there is neither a table nor a figure."""
    from sim_eval.evaluation.run_folder import atomic
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
        if group[0].protocol.telling == "right" and not group[0].variant
    ]
    group = max(told_right, key=len, default=())  # of equals the first, which is the default
    scoring = ", ".join(describe(group[0].protocol if group else RolloutProtocol()))
    return (
        Figure(
            MINUTES,
            VALIDATED,
            f"The averaged weights, tried as they trained, replanning every {RolloutProtocol().replan} control steps.",
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
        return protocol.telling == "wrong", protocol != default, variant, str(protocol)

    return [groups[group] for group in sorted(groups, key=place)]


def describe(protocol: RolloutProtocol) -> tuple[str, ...]:
    """A protocol in words."""
    shown = protocol.simulator
    return (
        f"replanning every {protocol.replan} control steps",
        f"settling for {protocol.settle_steps}",
        f"{shown.render} rendering",
        f"{shown.height}x{shown.width} pixels",
        *["goal hidden"] * shown.hide_goal,
        f"told the {protocol.telling} instruction",
    )


def page(comparison: Comparison, drawn: Sequence[Figure]) -> str:
    """The whole of ``results.md``."""
    parts = ["# Results", INTERVALS]
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
    if protocol.telling == "wrong":
        parts += [
            "The policy was told another goal than the one that is scored and stands in the head: "
            "the lower the rate, the better it obeys."
        ]
    ordered = sorted(group, key=lambda each: order(each.training))
    rows = [
        (training_cells(each.training), {column: [tally] for column, tally in each.scores().items()})
        for each in ordered
    ]
    parts += [score_table(("training", "expert", "seed", *SETTING_HEADER, "minutes", "steps"), rows)]
    settings: dict[Setting, list[Tested]] = {}
    for each in ordered:
        settings.setdefault(each.training.setting, []).append(each)
    several = [members for members in settings.values() if len(members) > 1]
    if several:
        parts += ["### Seeds together", POOLED]
        header = ("expert", "seeds", *SETTING_HEADER, "budget")
        parts += [score_table(header, [seeds_row(members) for members in several])]
    ends = [
        ((each.training.folder.name,), {column: [tally] for column, tally in each.scores(at_end=True).items()})
        for each in ordered
    ]
    parts += ["### Success at the last step", AT_END, score_table(("training",), ends)]
    return [*parts, "### Errors, steps and phases", *detail_tables(ordered)]


def detail_tables(ordered: Sequence[Tested]) -> list[str]:
    """Both denominators, steps to success and the furthest phases: a row a training, task and goal."""
    from sim_eval.reporting.summary import COLUMNS, COLUMNS_NOTE, part_name, phase_grid, summaries, summary_cells
    from sim_eval.reporting.tables import markdown

    rows = [
        ((each.training.folder.name, part_name((summary.task, summary.goal))), summary)
        for each in ordered
        for summary in summaries(each.results)
    ]
    figures = [(*left, *summary_cells(summary)) for left, summary in rows]
    phases = phase_grid(("training", "furthest phase"), rows)
    return [COLUMNS_NOTE, markdown(("training", "task", *COLUMNS), figures), markdown(*phases)]


def training_cells(training: Training) -> tuple[str, ...]:
    record = training.record
    return (
        training.folder.name,
        record.expert,
        str(record.seed),
        *setting_cells(training.setting),
        f"{record.minutes:.1f}",
        str(record.steps),
    )


def setting_cells(setting: Setting) -> tuple[str, str]:
    """Under :data:`SETTING_HEADER`."""
    return changes(setting), str(sum(count for _, count in setting.demonstrations))


def changes(setting: Setting) -> str:
    return ", ".join(setting.changes) or "-"


def seeds_row(members: Sequence[Tested]) -> tuple[tuple[str, ...], Scores]:
    """One setting: what it was, and each column's tallies, one a seed."""
    setting = members[0].training.setting
    seeds = ", ".join(str(each.training.record.seed) for each in members)
    scores: dict[Part, list[Tally]] = {}
    for each in members:
        for column, tally in each.scores().items():
            scores.setdefault(column, []).append(tally)
    return (setting.expert, seeds, *setting_cells(setting), setting.budget), scores


def score_table(header: Sequence[str], rows: Sequence[tuple[tuple[str, ...], Scores]]) -> str:
    """Markdown: cells under the header, then a column a task and goal. n stands in the head where a column has one."""
    from sim_eval.reporting.comparison import pool, span
    from sim_eval.reporting.tables import counted, markdown

    columns = sorted({column for _, scores in rows for column in scores})
    samples = {column: [pool(scores[column]).episodes for _, scores in rows if column in scores] for column in columns}

    def cell(column: Part, tallies: Sequence[Tally]) -> str:
        if not tallies:
            return "-"
        both = pool(tallies)
        own = f" ({', '.join(f'{100 * each.rate:.1f}' for each in tallies)})" if len(tallies) > 1 else ""
        sample = f", n = {both.episodes}" if len(set(samples[column])) > 1 else ""
        return f"{counted(both.successes, both.episodes)}{own}{sample}"

    heads = [f"{': '.join(part for part in column if part)} (n = {span(samples[column])})" for column in columns]
    cells = [(*left, *(cell(column, scores.get(column, ())) for column in columns)) for left, scores in rows]
    return markdown((*header, *heads), cells)


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
        (record.expert, record.size, changes(each.setting), f"{record.parameters:,}", f"{record.trainable:,}"): None
        for each in sorted(trainings, key=order)
        for record in [each.record]
    }
    return markdown(("expert", "size", "changes", "parameters", "trained"), list(rows))


def order(training: Training) -> tuple[str | int, ...]:
    """Where a training stands in a table: the unchanged network first, more data first, seeds beside each other."""
    setting, record = training.setting, training.record
    data = -sum(record.demonstrations.values())
    return record.expert, record.size, changes(setting), data, setting.budget, record.seed, str(training.folder)


if __name__ == "__main__":
    run(main, ResultsArguments, "python -m sim_eval.results")
