"""Rank runs: ``python -m sim_eval.leaderboard runs/ --markdown leaderboard.md --figures figures``.

Everything is counted from the episode lines themselves. Only complete runs on one manifest under one protocol share a
table; the others are listed with the reason.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from sim_eval.configs import PrintCsv, PrintJson
from sim_eval.console import run
from sim_eval.core.errors import SimEvalError
from sim_eval.core.programs import command

RUNS = Path("runs")  # where rollout puts run folders


@dataclass(frozen=True)
class LeaderboardArguments:
    """Rank runs by success, with intervals and ties.

    Attributes:
        runs: run folders, or folders that hold run folders; by default runs/.
        markdown: write the tables to this file as well.
        figures: folder for a figure of every ranked suite, task by task.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[DIR ...]")] = ()
    markdown: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    figures: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    json: PrintJson = False
    csv: PrintCsv = False


def main(arguments: LeaderboardArguments) -> int:
    """Runs the command; returns the exit code, 1 when no run could be ranked."""
    from sim_eval.core.files import write_text
    from sim_eval.reporting.board import build, draw
    from sim_eval.reporting.records import print_records
    from sim_eval.reporting.tables import wrapped

    if not arguments.runs and not RUNS.is_dir():
        raise SimEvalError(f"no runs to rank: there is no folder {RUNS}/ here, so name run folders of rollout")
    board = build(arguments.runs or (RUNS,))
    drawn = draw(board, arguments.figures) if arguments.figures else {}
    if arguments.markdown:
        write_text(arguments.markdown, board.markdown(arguments.markdown.parent, drawn))
    for left_out in board.left_out:
        print(f"left out: {left_out}", file=sys.stderr)
    if not print_records(arguments, board.to_json, board.records):
        conditions = ""
        for section in board.sections:
            if section.conditions != conditions:
                conditions = section.conditions
                print(f"{wrapped(conditions)}\n")
            print(f"{section.name}\n")
            print(*section.tables, sep="\n\n", end="\n\n")
        if board.sections:
            print(wrapped(board.note))
        if drawn:
            print(f"{len(drawn)} figures in {arguments.figures}: {', '.join(path.name for path in drawn.values())}")
        elif arguments.figures:
            print("no figures: each shows a whole suite, and no run here has all tasks of one")
    return 0 if board.rankings else 1


if __name__ == "__main__":
    run(main, LeaderboardArguments, command("leaderboard"))
