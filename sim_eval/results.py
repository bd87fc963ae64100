"""Report trainings: ``python -m sim_eval.results --trainings runs/train --runs runs --out docs/results``.

Joins trainings with the complete test runs of their weights, pools the seeds of one setting, and writes ``results.md``
and the figures that the trainings allow: ``minutes.svg``, success against training minutes, and ``demonstrations.svg``,
success against the number of demonstrations. Folders that do not count are listed with the reason.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from sim_eval.configs import PrintCsv, PrintJson
from sim_eval.console import make_folder, run
from sim_eval.core.errors import SimEvalError
from sim_eval.core.programs import command

PAGE = "results.md"


@dataclass(frozen=True)
class ResultsArguments:
    """Report trainings: tables and figures from their metadata and test runs.

    Attributes:
        trainings: checkpoint folders of sim_eval.train, or folders that hold some.
        runs: run folders of sim_eval.rollout, or folders that hold some.
        out: folder for results.md and the figures.
    """

    trainings: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="DIR [DIR ...]")]
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    runs: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="DIR [DIR ...]")] = ()
    json: PrintJson = False
    csv: PrintCsv = False


def main(arguments: ResultsArguments) -> int:
    """Runs the command; returns the exit code, 1 when there is neither a table nor a figure."""
    from sim_eval.core.files import write_text
    from sim_eval.reporting.records import print_records
    from sim_eval.reporting.results_page import figures, page, records
    from sim_eval.reporting.trainings import read_results

    make_folder(arguments.out)
    results = read_results(arguments.trainings, arguments.runs)
    if not results.trainings:
        reason = f"; {results.left_out[0]}" if results.left_out else ""
        raise SimEvalError(f"--trainings holds no finished training of sim_eval.train{reason}")
    all_figures = figures(results)
    drawn = [figure for figure in all_figures if figure.panels]
    for figure in drawn:
        figure.write(arguments.out / figure.file, figure.panels)
    write_text(arguments.out / PAGE, page(results, all_figures))
    for left_out in results.left_out:
        print(f"left out: {left_out}", file=sys.stderr)
    rows = records(results)
    if not print_records(
        arguments, lambda: {"scores": rows, "left_out": [each._asdict() for each in results.left_out]}, lambda: rows
    ):
        trained, tested = len(results.trainings), len({each.training.folder for each in results.scored})
        files = ", ".join([PAGE, *(figure.file for figure in drawn)])
        print(
            f"{trained} training{'s' * (trained != 1)}, of which {tested or 'none'} tested: {files} in {arguments.out}"
        )
    return 0 if results.scored or drawn else 1


if __name__ == "__main__":
    run(main, ResultsArguments, command("results"))
