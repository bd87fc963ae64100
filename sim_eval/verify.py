"""Verify a run: ``python -m sim_eval.verify runs/deep_llama-...``.

Runs its episodes again, each from its key with the recorded actions, and reports whether each went as recorded. The
exit code is 0 when all did, 1 when one is refuted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from sim_eval.configs import Flag, PrintCsv, PrintJson, Workers
from sim_eval.console import make_folder, run
from sim_eval.core.errors import SimEvalError
from sim_eval.core.programs import command
from sim_eval.policies.spatialvla.configuration_spatialvla import Count

if TYPE_CHECKING:
    from sim_eval.evaluation.engine import EpisodeResult
    from sim_eval.evaluation.run_folder import Run
    from sim_eval.evaluation.verification import Verification, VerifyJob

PROGRAM = command("verify")


@dataclass(frozen=True)
class VerifyArguments:
    """Verify a run: replay its episodes and compare outcome, states and observations with the recording.

    Attributes:
        run: run folder of sim_eval.rollout.
        episode: only these episodes, counted from 0 in the order of manifest.json.
        sample: only so many episodes, evenly spread over the finished ones.
        strict: fail too when an episode is not identical to the last bit.
        policy: also call the policy again at each recorded call, and compare its actions.
        workers: number of processes that replay episodes; auto: as many as cores, free memory and the number of
            episodes make worthwhile. 1 is this process.
        out: write the findings of each episode to this JSON file as well.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    episode: Annotated[tuple[int, ...], tyro.conf.arg(metavar="K [K ...]")] = ()
    sample: Count | None = None
    strict: Flag = False
    policy: Flag = False
    workers: Workers = "auto"
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    json: PrintJson = False
    csv: PrintCsv = False


def main(arguments: VerifyArguments) -> int:
    """Runs the command; returns the exit code."""
    if arguments.sample is not None and arguments.episode:
        raise SimEvalError("--sample and --episode both choose episodes: give one of them")
    if arguments.out is not None:
        make_folder(arguments.out.parent)
    from sim_eval.core.files import write_json
    from sim_eval.core.versions import machine
    from sim_eval.evaluation.run_folder import read_run
    from sim_eval.evaluation.verification import VerifyJob, choose_episodes, machine_differences, recorded_source
    from sim_eval.reporting.records import print_records

    recorded = read_run(arguments.run)
    results = choose_episodes(recorded, arguments.episode, arguments.sample)
    source = recorded_source(recorded) if arguments.policy else None
    verified = verify(VerifyJob(recorded, source), results, arguments.workers)
    machines = [recorded.machine, *(each.machine for each in verified)]
    elsewhere = machine_differences(machines, machine(), arguments.policy)
    found = record(recorded, verified, elsewhere)
    if not print_records(arguments, lambda: found, lambda: found["episodes"]):
        report(recorded, verified, elsewhere, arguments.policy)
    if arguments.out is not None:
        write_json(arguments.out, found)
    refuted = any(each.verdict == "refuted" for each in verified)
    inexact = any(each.verdict != "bit-identical" for each in verified)
    return int(refuted or (arguments.strict and inexact))


def verify(job: VerifyJob, results: Sequence[EpisodeResult], workers: Workers) -> list[Verification]:
    """Verifies episodes, with a progress bar on stderr; returns the verifications in the order of ``results``."""
    from tqdm import tqdm

    from sim_eval.evaluation.verification import verifications

    done = {}
    verified = verifications(job, results, workers, partial(tqdm.write, file=sys.stderr))
    with tqdm(total=len(results), unit="episode", file=sys.stderr, dynamic_ncols=True) as bar:
        for each in verified:
            done[each.result.key] = each
            bar.set_postfix_str(f"refuted {sum(each.verdict == 'refuted' for each in done.values())}", False)
            bar.update()
    return [done[result.key] for result in results]


def report(recorded: Run, verified: Sequence[Verification], elsewhere: Sequence[str], inferred: bool) -> None:
    """Prints the differences, and then the tables."""
    from sim_eval.evaluation.verification import VERDICTS
    from sim_eval.reporting.summary import grouped
    from sim_eval.reporting.tables import Table

    place = {key: index for index, key in enumerate(recorded.manifest.keys)}
    for each in verified:
        if each.verdict != "bit-identical":
            number = place[each.result.key]
            print(f"episode {number} ({each.result.key}) {each.verdict}: {'; '.join(each.findings)}")
    if not recorded.complete:
        print(f"the run is not complete: {len(recorded.episodes)} of {len(place)} episodes are finished")
    if elsewhere:
        print(f"recorded with other versions or on another machine: {'; '.join(elsewhere)}")
    elif any(each.verdict == "outcome-identical" for each in verified):
        print("versions and machine are those of the recording, so they do not explain a difference")
    by_task = grouped(verified, lambda each: each.result.key.task)
    counts = [
        [task, str(len(mine)), *(str(sum(each.verdict == verdict for each in mine)) for verdict in VERDICTS)]
        for task, mine in by_task.items()
    ]
    print(Table(("task", "episodes", *VERDICTS), counts))
    if inferred:
        rows = []
        for task, mine in by_task.items():
            asked = [each.inferred for each in mine if each.inferred is not None]
            largest = max((each.largest for each in asked), default=0.0)
            chunks, equal = sum(each.chunks for each in asked), sum(each.equal for each in asked)
            rows.append((task, str(chunks), str(equal), f"{largest:.3g}"))
        print(f"\n{Table(('task', 'chunks inferred again', 'bit-identical', 'largest difference'), rows)}")


def record(recorded: Run, verified: Sequence[Verification], elsewhere: Sequence[str]) -> dict[str, Any]:
    """The report as a JSON object; a difference without a number (NaN, another shape) is null."""
    from sim_eval.evaluation.trajectory import policy_identity

    episodes = []
    for each in verified:
        values = asdict(each)
        del values["machine"]  # `machine_differences` covers it
        for part in ("deviation", "inferred"):
            if values[part] and values[part]["largest"] == float("inf"):
                values[part]["largest"] = None
        episodes.append({**values.pop("result").pop("key"), **values})
    return {
        "run": str(recorded.folder),
        "manifest": recorded.manifest.digest,
        "policy": policy_identity(recorded.spec),
        "machine_differences": list(elsewhere),
        "episodes": episodes,
    }


if __name__ == "__main__":
    run(main, VerifyArguments, PROGRAM)
