"""The tables of ``compare``, its page and its JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from sim_eval.core.decoding import encode
from sim_eval.evaluation.run_folder import Run
from sim_eval.reporting.intervals import MOST
from sim_eval.reporting.pairing import ALL_TASKS, Contrast, covered
from sim_eval.reporting.runs import policy_label, protocol_fields
from sim_eval.reporting.summary import COLUMNS, part_name, phase_table, summaries, summarize
from sim_eval.reporting.tables import Column, Table, limits

NOTE = (
    "Alone: episodes that only one of the two runs won (an error is a failure); p by exact McNemar, corrected after "
    "Holm over all pairs of success at any step, and over all at the last step. A suite's row counts the episodes of "
    "all its tasks together. The difference of the rates is in percentage points, with Tango's score interval (1998), "
    "which, unlike p, rests on a normal approximation and can exclude zero a little earlier. To separate: how many "
    "more episodes that comparison alone would need for a power of 80 % at 5 % (exact, Duffy 1984) if the rates are as "
    "observed; they are estimates, so take it as an order of magnitude."
)


def run_table(runs: Mapping[str, Run], across: Sequence[str]) -> Table:
    """Each run over all its episodes, with the fields of the protocol that may differ."""
    fields = {letter: protocol_fields(run.protocol) for letter, run in runs.items()}
    compared = [name for name in next(iter(fields.values())) if covered(across, name)]
    totals = {letter: summarize(ALL_TASKS, run.episodes) for letter, run in runs.items()}
    columns: list[Column[str]] = [
        *(column.of(lambda letter: totals[letter]) for column in COLUMNS),
        Column("run", lambda letter: runs[letter].folder.name),
    ]
    rows = [
        ((letter, policy_label(run), *(str(fields[letter][name]) for name in compared)), letter)
        for letter, run in runs.items()
    ]
    return Table.of(("", "policy", *compared), columns, rows)


CONTRAST_COLUMNS: tuple[Column[Contrast], ...] = (
    Column("task", lambda each: part_name(each.part)),
    Column("pair", lambda each: " - ".join(each.pair)),
    Column("successes", lambda each: f"{each.first.successes} - {each.second.successes} of {each.first.episodes}"),
    Column("alone", lambda each: f"{each.only_first} : {each.only_second}"),
    Column("difference [95 %]", lambda each: f"{100 * each.difference:+.1f} {limits(each.interval)}"),
    Column("p", lambda each: probability(each.p_holm)),
    Column("to separate", lambda each: to_separate(each)),
)


def contrast_tables(title: str, contrasts: Sequence[Contrast]) -> dict[str, Table]:
    """The table of a measure by its title; two where there are suites, the first for the suites."""
    of_suites, of_tasks = ([each for each in contrasts if each.of_suite is suite] for suite in (True, False))
    if not of_suites:
        return {title: contrast_table(of_tasks)}
    return {title: contrast_table(of_suites), f"{title}, task by task": contrast_table(of_tasks)}


def contrast_table(contrasts: Sequence[Contrast]) -> Table:
    """A row for each suite, task or goal and pair of runs."""
    return Table.of((), CONTRAST_COLUMNS, [((), each) for each in contrasts])


def probability(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def to_separate(contrast: Contrast) -> str:
    """How many more episodes would separate the two runs, in words."""
    if contrast.separated:
        return "separated"
    if contrast.only_first == contrast.only_second:
        return "no difference"
    return f"more than {MOST:,}" if contrast.more is None else f"{contrast.more} more"


def furthest_table(runs: Mapping[str, Run]) -> Table:
    """The furthest phases: a row for each task or goal and run."""
    rows = [(letter, each) for letter, run in runs.items() for each in summaries(run.episodes)]
    order = list(dict.fromkeys(each.part for _, each in rows))  # of the first run; of several goals, all runs' goals
    rows.sort(key=lambda row: order.index(row[1].part))
    return phase_table(("task", "run"), [((part_name(each.part), letter), each) for letter, each in rows])


def page(tables: Mapping[str, Table], note: str, videos: Sequence[Path]) -> str:
    """The whole of ``compare.md``; the paths of the videos are relative to it."""
    text = ["# Comparison", note]
    for title, table in tables.items():
        text += [f"## {title}", table.folded()]
    if videos:
        text += ["## Disagreements", "\n".join(f"- [{path.stem}]({path})" for path in videos)]
    return "\n\n".join(text) + "\n"


def to_json(
    runs: Mapping[str, Run], measures: Mapping[str, Sequence[Contrast]], videos: Sequence[Path]
) -> dict[str, object]:
    """The content of ``compare.json``: fractions, not per cent."""
    return {
        "manifest": next(iter(runs.values())).manifest.digest,
        "runs": {
            letter: {
                "folder": str(run.folder),
                "policy": run.spec.name,
                **{name: getattr(run.spec, name) for name in ("digest", "variant", "privileged")},
                "protocol": encode(run.protocol),
                "tasks": [asdict(summary) for summary in summaries(run.episodes)],
            }
            for letter, run in runs.items()
        },
        "comparisons": {title: [record(each) for each in contrasts] for title, contrasts in measures.items()},
        "videos": [str(path) for path in videos],
    }


def records(measures: Mapping[str, Sequence[Contrast]]) -> list[dict[str, object]]:
    """A record for each contrast of each measure, for CSV."""
    return [{"measure": title, **record(each)} for title, contrasts in measures.items() for each in contrasts]


def record(contrast: Contrast) -> dict[str, object]:
    return {**asdict(contrast), "more": contrast.more, "separated": contrast.separated}
