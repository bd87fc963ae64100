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

from sim_eval.console import run


@dataclass(frozen=True)
class LeaderboardArguments:
    """Rank runs by success, with intervals and ties.

    Attributes:
        runs: run folders, or folders that hold run folders.
        markdown: write the tables to this file as well.
        figures: folder for a figure of every ranked suite, task by task.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    markdown: Path | None = None
    figures: Path | None = None


def main(arguments: LeaderboardArguments) -> int:
    """Runs the command; returns the exit code, 1 when no run could be ranked."""
    from sim_eval.core.files import write_text
    from sim_eval.reporting.board import build, draw

    board = build(arguments.runs)
    drawn = draw(board, arguments.figures) if arguments.figures else {}
    for ranking in board.rankings:
        print("\n\n".join([f"{ranking.title}\n{ranking.table}", *map(str, ranking.tables[1:])]) + "\n")
    for left_out in board.left_out:
        print(f"left out: {left_out}", file=sys.stderr)
    if board.rankings:
        print(board.note)
    if arguments.figures:
        print(f"{len(drawn)} figures in {arguments.figures}: {', '.join(path.name for path in drawn.values())}")
    if arguments.markdown:
        write_text(arguments.markdown, board.markdown(arguments.markdown.parent, drawn))
    return 0 if board.rankings else 1


if __name__ == "__main__":
    run(main, LeaderboardArguments, "python -m sim_eval.leaderboard")
