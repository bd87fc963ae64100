"""Compare runs episode by episode: ``python -m sim_eval.compare runs/a runs/b --out runs/compared --videos 4``.

The runs must be of the same episodes under the same protocol. Prints both rates, how many episodes only one of them
won, whether that is more than chance, and how many more episodes would separate them. ``--out`` keeps this as Markdown
and JSON, with side-by-side videos of episodes on which the runs disagree.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from annotated_types import Ge

from sim_eval.configs import PrintCsv, PrintJson
from sim_eval.console import make_folder, run
from sim_eval.core.errors import SimEvalError
from sim_eval.core.programs import command

if TYPE_CHECKING:
    from sim_eval.evaluation.run_folder import Run

PROGRAM = command("compare")
PAGE, DATA = "compare.md", "compare.json"
VIDEO_SIZE = 384  # pixels, height of each side's picture
AT_ANY, AT_END = "Success at any step", "Success at the last step"


@dataclass(frozen=True)
class CompareArguments:
    """Compare runs of the same episodes: paired test, difference, side-by-side videos.

    Attributes:
        runs: two or more run folders of sim_eval.rollout.
        out: folder for compare.md, compare.json and the videos.
        videos: the number of disagreements of each pair of runs that are shown in a video; needs --out.
        across: fields of the protocol that may differ because they are compared, such as n_action_steps or
            render.mode; render stands for all of its fields.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    videos: Annotated[int, Ge(0)] = 0
    across: Annotated[str, tyro.conf.arg(metavar="FIELD[,FIELD...]")] = ""
    json: PrintJson = False
    csv: PrintCsv = False


def main(arguments: CompareArguments) -> int:
    """Runs the command; returns the exit code."""
    if arguments.videos and not arguments.out:
        raise SimEvalError("--videos needs --out, the folder for the videos")
    from sim_eval.core.files import write_json, write_text
    from sim_eval.evaluation.run_folder import read_run, task_versions_apart
    from sim_eval.reporting.comparison import NOTE, contrast_tables, furthest_table, page, records, run_table, to_json
    from sim_eval.reporting.pairing import check_pairable, contrasts, lettered
    from sim_eval.reporting.records import print_records
    from sim_eval.reporting.summary import COLUMNS_NOTE
    from sim_eval.reporting.tables import wrapped

    across = [name.strip() for name in arguments.across.split(",")] if arguments.across else []
    runs = lettered([read_run(folder) for folder in arguments.runs])
    check_pairable(runs, across)
    if arguments.out:
        make_folder(arguments.out)
    measures = {AT_ANY: contrasts(runs), AT_END: contrasts(runs, at_end=True)}
    tables = {"Runs": run_table(runs, across)}
    for title, measure in measures.items():
        tables |= contrast_tables(title, measure)
    tables["Furthest phase"] = furthest_table(runs)
    note = f"{COLUMNS_NOTE} {NOTE}"
    if apart := task_versions_apart(runs.values()):
        note = f"The versions differ, so the task itself may differ: {apart}. {note}"
    if not (arguments.json or arguments.csv):
        for title, table in tables.items():
            print(f"{title}\n\n{table}\n")
        print(wrapped(note))
    videos = []
    if arguments.out:
        videos = write_videos(runs, arguments.out / "videos", arguments.videos) if arguments.videos else []
        write_text(arguments.out / PAGE, page(tables, note, [path.relative_to(arguments.out) for path in videos]))
        write_json(arguments.out / DATA, to_json(runs, measures, videos))
    printed = print_records(arguments, lambda: to_json(runs, measures, videos), lambda: records(measures))
    if arguments.out and not printed:
        print(f"{PAGE}, {DATA} and {len(videos)} videos in {arguments.out}")
    return 0


def write_videos(runs: Mapping[str, Run], folder: Path, count: int) -> list[Path]:
    """Side-by-side videos of at most ``count`` disagreements of each pair; why one cannot be made goes to stderr."""
    from contextlib import closing
    from itertools import combinations

    from tqdm import tqdm

    from sim_eval.reporting.pairing import disagreements
    from sim_eval.reporting.playback import Playback, Recorded, outcome
    from sim_eval.reporting.runs import policy_label

    wanted = [
        {letter: Recorded(runs[letter], key, f"{letter}: {policy_label(runs[letter])}") for letter in pair}
        for pair in combinations(runs, 2)
        for key in disagreements(*(runs[letter] for letter in pair))[:count]
    ]
    written = []
    with closing(Playback(VIDEO_SIZE)) as playback:
        for sides in tqdm(wanted, unit="video", file=sys.stderr, dynamic_ncols=True):
            ends = [f"{letter}-{outcome(side.result)}" for letter, side in sides.items()]
            stem = next(iter(sides.values())).key.stem
            path = folder / f"{'_'.join([stem, *ends])}.mp4"
            try:
                playback.write_grid(list(sides.values()), len(sides), path)
                written.append(path)
            except SimEvalError as error:
                tqdm.write(f"no video: {error}", file=sys.stderr)
    return written


if __name__ == "__main__":
    run(main, CompareArguments, PROGRAM)
