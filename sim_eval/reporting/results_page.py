"""The page of ``results``: tables of trainings and of their test episodes, seeds pooled, and the figures' captions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sim_eval.envs.tasks import outer_suites, whole_suites
from sim_eval.evaluation.engine import RolloutProtocol
from sim_eval.reporting.figures import draw_demonstrations, draw_minutes
from sim_eval.reporting.panels import Panel, demonstrations_panels, minutes_panels
from sim_eval.reporting.runs import describe
from sim_eval.reporting.summary import (
    COLUMNS,
    COLUMNS_NOTE,
    MEAN_COLUMNS,
    MEANS_NOTE,
    SuiteMean,
    TaskSummary,
    grouped,
    part_name,
    parts,
    phase_table,
    suite_means,
    summaries,
    summarize,
)
from sim_eval.reporting.tables import Column, Table
from sim_eval.reporting.trainings import SCORED, FinishedTraining, Results, ScoredTraining

COUNTERFACTUAL = (
    "The policy was given the instruction of another goal than the one that is scored: success under a counterfactual "
    "instruction means that the policy ignores language."
)
POOLED = (
    "Below the trainings of one setting stands a row for the episodes of all its seeds together. Its interval takes "
    "every episode as independent, so it does not contain how much seeds differ."
)


@dataclass(frozen=True)
class Figure:
    """A figure, or why it is missing.

    Attributes:
        file: its name.
        title: names what it shows, and the split.
        text: which weights and protocol.
        missing: why it is not drawn if it has no panels.
        panels: one for each task.
        write: draws panels to a path.
    """

    file: str
    title: str
    text: str
    missing: str
    panels: tuple[Panel, ...]
    write: Callable[[Path, Sequence[Panel]], None]


def figures(results: Results) -> tuple[Figure, Figure]:
    """Success against minutes, and against demonstrations under the protocol that tested most trainings."""
    usual = [
        group
        for group in by_protocol(results.scored)
        if group[0].protocol.instruction_condition == "correct" and not group[0].variant
    ]
    group = max(usual, key=len, default=())  # of equals the first, which is the default
    protocol = group[0].protocol if group else RolloutProtocol()
    return (
        Figure(
            "minutes.svg",
            "Success against training minutes, val split",
            f"The averaged weights, validated during training with n_action_steps {RolloutProtocol().n_action_steps}.",
            "no training was validated",
            minutes_panels(results.trainings),
            draw_minutes,
        ),
        Figure(
            "demonstrations.svg",
            f"Success against demonstrations, {SCORED} split",
            f"The kept weights; {', '.join(describe(protocol))}.",
            "no task has tested trainings that differ only in its number of demonstrations",
            demonstrations_panels(group),
            draw_demonstrations,
        ),
    )


def by_protocol(scored: Iterable[ScoredTraining]) -> list[list[ScoredTraining]]:
    """One group for each protocol and variant: the default first, counterfactual instructions last."""
    groups = grouped(scored, lambda each: (each.protocol, each.variant))
    default = RolloutProtocol()

    def place(group: tuple[RolloutProtocol, str]) -> tuple[bool, bool, str, str]:
        protocol, variant = group
        return protocol.instruction_condition == "counterfactual", protocol != default, variant, str(protocol)

    return [groups[group] for group in sorted(groups, key=place)]


def page(results: Results, drawn: Sequence[Figure]) -> str:
    """The whole of ``results.md``."""
    text = ["# Results", COLUMNS_NOTE, "## Trainings", training_table(results.trainings).markdown()]
    for group in by_protocol(results.scored):
        text += protocol_section(group)
    for figure in drawn:
        text += figure_section(figure, results.trainings)
    if results.left_out:
        text += ["## Left out", "\n".join(f"- {each}" for each in results.left_out)]
    return "\n\n".join(text) + "\n"


def records(results: Results) -> list[dict[str, object]]:
    """Each training under each protocol, with the figures of its tasks and goals."""
    return [
        {
            "training": each.training.folder,
            "seed": each.training.seed,
            **asdict(each.training.setting),
            "protocol": ", ".join([*describe(each.protocol), *filter(None, [each.variant])]),
            **asdict(summary),
        }
        for each in results.scored
        for summary in summaries(each.results)
    ]


def training_table(trainings: Sequence[FinishedTraining]) -> Table:
    """A row for each training: its setting, and what it took."""
    columns: list[Column[FinishedTraining]] = [
        Column("training", lambda each: each.folder.name),
        Column("expert", lambda each: each.setting.expert),
        Column("seed", lambda each: str(each.seed)),
        Column("budget", lambda each: f"{each.setting.budget} on {each.setting.device}"),
        Column("changes", lambda each: ", ".join(each.setting.changes) or "-"),
        Column("demonstrations", lambda each: str(sum(each.metadata.demonstrations.values()))),
        Column("minutes", lambda each: f"{each.metadata.minutes:.1f}"),
        Column("steps", lambda each: str(each.metadata.steps)),
        Column("parameters", lambda each: f"{each.metadata.parameters:,}"),
        Column("trained", lambda each: f"{each.metadata.trainable:,}"),
    ]
    return Table.of((), columns, [((), each) for each in sorted(trainings, key=order)])


def order(training: FinishedTraining) -> tuple[str | int, ...]:
    """The place of a training in a table: few changes first, more data first, seeds beside each other."""
    setting = training.setting
    changes, data = ", ".join(setting.changes), -sum(training.metadata.demonstrations.values())
    return setting.expert, len(setting.changes), changes, data, setting.budget, training.seed, str(training.folder)


def protocol_section(group: Sequence[ScoredTraining]) -> list[str]:
    """The tables of one protocol and variant."""
    protocol, usual = group[0].protocol, describe(RolloutProtocol())
    unusual = [part for part in (*describe(protocol), group[0].variant) if part and part not in usual]
    text = [
        f"## {', '.join([f'{SCORED.capitalize()} split', *unusual])}",
        f"Protocol: {', '.join(describe(protocol))}.",
    ]
    text += [COUNTERFACTUAL] * (protocol.instruction_condition == "counterfactual")
    in_order = sorted(group, key=lambda each: order(each.training))
    settings = list(grouped(in_order, lambda each: each.training.setting).values())
    text += [POOLED] * any(len(seeds) > 1 for seeds in settings)
    if means := mean_rows(settings):
        text += [MEANS_NOTE, Table.of(("training",), MEAN_COLUMNS, means).folded()]
    scores = score_rows(settings)
    return [
        *text,
        Table.of(("task", "training"), COLUMNS, scores).folded(),
        "### Furthest phases",
        phase_table(("task", "training"), scores).folded(),
    ]


def score_rows(settings: Sequence[Sequence[ScoredTraining]]) -> list[tuple[tuple[str, str], TaskSummary]]:
    """Each task and goal, and for each of them the trainings that were tested on it."""
    split = {each.training.folder: parts(each.results) for seeds in settings for each in seeds}
    rows = []
    for part in sorted({part for mine in split.values() for part in mine}):
        task, goal = part
        for seeds in settings:
            for pooled in alone_and_together([each for each in seeds if part in split[each.training.folder]]):
                results = [result for each in pooled for result in split[each.training.folder][part]]
                rows.append(((part_name(part), names(pooled)), summarize(task, results, goal)))
    return rows


def mean_rows(settings: Sequence[Sequence[ScoredTraining]]) -> list[tuple[tuple[str], SuiteMean]]:
    """Each suite, and for each of them the trainings that were tested on all its tasks."""
    suites = {each.training.folder: whole_suites(each.tallies) for seeds in settings for each in seeds}
    rows = []
    for suite in dict.fromkeys(suite for seeds in settings for each in seeds for suite in outer_suites(each.tallies)):
        for seeds in settings:
            for pooled in alone_and_together([each for each in seeds if suite in suites[each.training.folder]]):
                means = suite_means(result for each in pooled for result in each.results)
                rows += [((names(pooled),), mean) for mean in means if mean.suite == suite]
    return rows


def alone_and_together(seeds: list[ScoredTraining]) -> list[list[ScoredTraining]]:
    """Each training of a setting, and then all of them if there are several."""
    return [*([each] for each in seeds), *[seeds] * (len(seeds) > 1)]


def names(pooled: Sequence[ScoredTraining]) -> str:
    together = f"{len(pooled)} seeds: " * (len(pooled) > 1)
    return together + ", ".join(each.training.folder.name for each in pooled)


def figure_section(figure: Figure, trainings: Sequence[FinishedTraining]) -> list[str]:
    """A figure with its caption: the episodes behind each panel, and which trainings are not in it."""
    text = [f"## {figure.title}"]
    if not figure.panels:
        return [*text, f"Not drawn: {figure.missing}."]
    text += [f"![{figure.title}]({figure.file})", figure.text]
    behind = grouped(figure.panels, lambda panel: f"{panel.sample}; {panel.conditions}")
    text += ["\n".join(f"- {', '.join(each.task for each in same)}: {words}" for words, same in behind.items())]
    shown = {folder for panel in figure.panels for folder in panel.shown}
    if absent := [each.folder.name for each in trainings if each.folder not in shown]:
        text += [f"Without {', '.join(absent)}: they were not scored, or differ in more than the figure shows."]
    return text
