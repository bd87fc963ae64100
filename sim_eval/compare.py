"""Compare runs episode by episode: ``python -m sim_eval.compare runs/a runs/b --out runs/compared --videos 4``.

The runs must be of the same episodes under the same protocol. Prints both rates, how many episodes only one of them
won, whether that is more than chance, and how many more episodes would tell; ``--out`` keeps it as Markdown and JSON,
with videos of episodes on which the runs disagree, side by side.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from sim_eval.console import at_least, make_folder, run
from sim_eval.core.errors import SimEvalError

if TYPE_CHECKING:
    from sim_eval.evaluation.run_folder import Run
    from sim_eval.reporting.pairing import Contrast
    from sim_eval.reporting.tables import Grid

PROGRAM = "python -m sim_eval.compare"
PAGE, DATA = "compare.md", "compare.json"
AT_ANY, AT_END = "Success at any step", "Success at the last step"
NOTE = (
    "Pairs: episodes that only one of two runs won (an error is a failure), p by exact McNemar, corrected after Holm "
    "over all pairs of success at any step, and over all at the last; a suite's row is over the episodes of all its "
    "tasks together; the difference of the rates in percentage points with Tango's score interval (1998), which, "
    "unlike p, rests on a normal approximation and can leave zero out a little earlier. To separate: how many more "
    "episodes that comparison alone would need to be told apart at 5 % with a power of 80 % (exact, Duffy 1984) if the "
    "rates are as observed; they are not quite, so read it as a size, not as a promise."
)


@dataclass(frozen=True)
class CompareArguments:
    """Compare runs of the same episodes: paired test, difference, side-by-side videos.

    Attributes:
        runs: two or more run folders of sim_eval.rollout.
        out: folder for compare.md, compare.json and the videos.
        videos: how many videos of disagreements of each pair of runs; needs --out.
        across: fields of the protocol that may differ, since they are what is compared, such as replan.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    out: Path | None = None
    videos: int = 0
    across: Annotated[str, tyro.conf.arg(metavar="FIELD[,FIELD...]")] = ""


def main(arguments: CompareArguments) -> int:
    """Runs the command; returns the exit code."""
    at_least("videos", arguments.videos, 0)
    if arguments.videos and not arguments.out:
        raise SimEvalError("--videos needs --out, the folder they are written to")
    from sim_eval.core.files import atomic, write_json
    from sim_eval.evaluation.run_folder import read_run, task_versions_apart
    from sim_eval.reporting.pairing import check_pairable, contrasts, lettered
    from sim_eval.reporting.summary import COLUMNS_NOTE
    from sim_eval.reporting.tables import terminal

    across = [name.strip() for name in arguments.across.split(",")] if arguments.across else []
    runs = lettered([read_run(folder) for folder in arguments.runs])
    check_pairable(runs, across)
    if arguments.out:
        make_folder(arguments.out)
    measures = {AT_ANY: contrasts(runs), AT_END: contrasts(runs, at_end=True)}
    tables = {
        "Runs": run_grid(runs, across),
        **{name: grid for title, found in measures.items() for name, grid in contrast_grids(title, found).items()},
        "Furthest phase": furthest_grid(runs),
    }
    for title, grid in tables.items():
        print(f"{title}\n{terminal(*grid)}\n")
    note = f"{COLUMNS_NOTE} {NOTE}"
    if apart := task_versions_apart(runs.values()):
        note = f"Not of one version, so the task itself may have differed: {apart}. {note}"
    print(note)
    if arguments.out:
        videos = write_videos(runs, arguments.out / "videos", arguments.videos) if arguments.videos else []
        with atomic(arguments.out / PAGE) as partial:
            partial.write_text(page(tables, note, [path.relative_to(arguments.out) for path in videos]))
        write_json(arguments.out / DATA, to_json(runs, measures, videos))
        print(f"{PAGE}, {DATA} and {len(videos)} videos in {arguments.out}")
    return 0


def run_grid(runs: Mapping[str, Run], across: Sequence[str]) -> Grid:
    """Each run over all its episodes."""
    from sim_eval.reporting.pairing import ALL_TASKS, protocol_fields
    from sim_eval.reporting.summary import COLUMNS, summarize, summary_cells
    from sim_eval.reporting.tables import Grid, policy_label

    rows = []
    for letter, each in runs.items():
        fields = protocol_fields(each.protocol)
        cells = summary_cells(summarize(ALL_TASKS, each.episodes))
        rows.append((letter, policy_label(each), *(str(fields[name]) for name in across), *cells, each.folder.name))
    return Grid(("", "policy", *across, *COLUMNS, "run"), tuple(rows))


def contrast_grids(title: str, found: Sequence[Contrast]) -> dict[str, Grid]:
    """The table of a measure by its title; two where there are suites, theirs first."""
    of_suites = [each for each in found if each.of_suite]
    if not of_suites:
        return {title: contrast_grid(found)}
    tasks = [each for each in found if not each.of_suite]
    return {title: contrast_grid(of_suites), f"{title}, task by task": contrast_grid(tasks)}


def contrast_grid(found: Sequence[Contrast]) -> Grid:
    """A row a suite, task or goal and pair of runs."""
    from sim_eval.reporting.summary import part_name
    from sim_eval.reporting.tables import Grid, counted, limits

    header = (
        "task",
        "n",
        "pair",
        "first",
        "second",
        "only first",
        "only second",
        "difference",
        "95 % interval",
        "p",
        "p (Holm)",
        "to separate",
    )
    rows = [
        (
            part_name((each.task, each.goal)),
            str(each.first.episodes),
            " - ".join(each.pair),
            counted(each.first.successes, each.first.episodes),
            counted(each.second.successes, each.second.episodes),
            str(each.only_first),
            str(each.only_second),
            f"{100 * each.difference:+.1f}",
            limits(each.interval),
            probability(each.p_value),
            probability(each.p_holm),
            to_separate(each),
        )
        for each in found
    ]
    return Grid(header, tuple(rows))


def probability(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def to_separate(contrast: Contrast) -> str:
    """How many more episodes, in words."""
    from sim_eval.reporting.intervals import MOST

    if contrast.separated:
        return "separated"
    if contrast.only_first == contrast.only_second:
        return "no difference seen"
    return f"more than {MOST:,}" if contrast.more is None else f"{contrast.more} more"


def furthest_grid(runs: Mapping[str, Run]) -> Grid:
    """How far the episodes came: a row a run and task or goal."""
    from sim_eval.reporting.summary import part_name, phase_grid, summaries

    by_letter = {letter: list(summaries(each.episodes)) for letter, each in runs.items()}
    order = {(each.task, each.goal): place for place, each in enumerate(next(iter(by_letter.values())))}
    rows = [(letter, each) for letter, found in by_letter.items() for each in found]
    rows.sort(key=lambda row: order[row[1].task, row[1].goal])
    return phase_grid(("task", "run"), [((part_name((each.task, each.goal)), letter), each) for letter, each in rows])


def write_videos(runs: Mapping[str, Run], folder: Path, count: int) -> list[Path]:
    """So many disagreements of each pair; those that cannot be shown are said on stderr."""
    from contextlib import closing
    from itertools import combinations
    from tempfile import TemporaryDirectory

    from tqdm import tqdm

    from sim_eval.reporting.pairing import disagreements
    from sim_eval.reporting.side_by_side import Side, SideBySide

    wanted = [
        (key, (Side(a, runs[a]), Side(b, runs[b])))
        for a, b in combinations(runs, 2)
        for key in disagreements(runs[a], runs[b])[:count]
    ]
    written = []
    with TemporaryDirectory() as scratch, closing(SideBySide(folder, Path(scratch))) as pictures:
        for key, sides in tqdm(wanted, unit="video", file=sys.stderr, dynamic_ncols=True):
            try:
                written.append(pictures.write(key, sides))
            except SimEvalError as error:
                tqdm.write(f"no video: {error}", file=sys.stderr)
    return written


def page(tables: Mapping[str, Grid], note: str, videos: Sequence[Path]) -> str:
    """The whole of ``compare.md``; videos relative to it."""
    from sim_eval.reporting.tables import folded

    parts = ["# Comparison", note]
    for title, grid in tables.items():
        parts += [f"## {title}", folded(*grid)]
    if videos:
        parts += ["## Disagreements", "\n".join(f"- [{path.stem}]({path})" for path in videos)]
    return "\n\n".join(parts) + "\n"


def to_json(
    runs: Mapping[str, Run], measures: Mapping[str, Sequence[Contrast]], videos: Sequence[Path]
) -> dict[str, object]:
    """What ``compare.json`` holds: fractions, not per cent."""
    from sim_eval.reporting.summary import summaries

    return {
        "manifest": next(iter(runs.values())).manifest.digest,
        "runs": {
            letter: {
                "folder": str(each.folder),
                "policy": each.policy,
                "digest": each.digest,
                "variant": each.variant,
                "privileged": each.privileged,
                "protocol": asdict(each.protocol),
                "tasks": [asdict(summary) for summary in summaries(each.episodes)],
            }
            for letter, each in runs.items()
        },
        "comparisons": {
            title: [{**asdict(each), "more": each.more, "separated": each.separated} for each in found]
            for title, found in measures.items()
        },
        "videos": [str(path) for path in videos],
    }


if __name__ == "__main__":
    run(main, CompareArguments, PROGRAM)
