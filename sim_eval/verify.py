"""Prove a run: ``python -m sim_eval.verify runs/deep_llama-...``.

Runs its episodes again, each from its key with the actions that were recorded, and says of each whether it went as
recorded. The exit code is 0 when all did, 1 when one is refuted.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from sim_eval.console import at_least, make_folder, parse, run
from sim_eval.core.errors import SimEvalError

if TYPE_CHECKING:
    from sim_eval.core.types import EpisodeKey
    from sim_eval.evaluation.engine import EpisodeResult
    from sim_eval.evaluation.jobs import PolicySource
    from sim_eval.evaluation.run_folder import Run
    from sim_eval.evaluation.verification import Verification, VerifyJob
    from sim_eval.evaluation.workers import Lost
    from sim_eval.policies.policy import PolicySpec

PROGRAM = "python -m sim_eval.verify"


@dataclass(frozen=True)
class VerifyArguments:
    """Prove a run: replay its episodes and compare outcome, states and observations with what was recorded.

    Attributes:
        run: run folder of sim_eval.rollout.
        episode: only these episodes, counted from 0 in the order of manifest.json.
        sample: only so many episodes, evenly spread over the finished ones.
        strict: fail too when an episode is not identical to the last bit.
        policy: also ask the policy again at each step at which it was asked, and compare its actions.
        workers: processes that replay episodes; 1 is this process.
        out: write what was found of each episode to this JSON file.
    """

    run: Annotated[Path, tyro.conf.Positional]
    episode: Annotated[tuple[int, ...], tyro.conf.arg(metavar="K [K ...]")] = ()
    sample: int | None = None
    strict: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    policy: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    workers: int = 1
    out: Path | None = None


def main(arguments: VerifyArguments) -> int:
    """Runs the command; returns the exit code."""
    at_least("workers", arguments.workers, 1)
    if arguments.sample is not None:
        at_least("sample", arguments.sample, 1)
        if arguments.episode:
            raise SimEvalError("--sample and --episode both choose episodes: give one of them")
    if arguments.out is not None:
        make_folder(arguments.out.parent)
    from sim_eval.core.files import read_json, write_json
    from sim_eval.core.versions import machine
    from sim_eval.evaluation.run_folder import RUN, read_run
    from sim_eval.evaluation.verification import VerifyJob

    found = read_run(arguments.run)
    recorded = read_json(arguments.run / RUN)
    results = chosen(found, arguments)
    source = recorded_source(found, recorded) if arguments.policy else None
    verifications = verify(VerifyJob(found, recorded_spec(found, recorded), source), results, arguments.workers)
    machines = [recorded, *(each.machine for each in verifications)]
    elsewhere = differences(machines, machine(), arguments.policy)
    report(found, verifications, elsewhere, arguments.policy)
    if arguments.out is not None:
        write_json(arguments.out, record(found, verifications, elsewhere))
    refuted = any(each.verdict == "refuted" for each in verifications)
    inexact = any(each.verdict != "bit-identical" for each in verifications)
    return int(refuted or (arguments.strict and inexact))


def chosen(found: Run, arguments: VerifyArguments) -> list[EpisodeResult]:
    """The finished episodes that the command line names.

    Raises:
        SimEvalError: there are none, or one is not in the manifest or not finished.
    """
    import numpy as np

    if not found.episodes:
        raise SimEvalError(f"{found.folder} has no finished episode: resume it by rollout --out {found.folder}")
    finished = {result.key: result for result in found.episodes}
    keys = found.manifest.keys
    for index in arguments.episode:
        if not 0 <= index < len(keys):
            raise SimEvalError(f"--episode {index}: {found.folder} has episodes 0 to {len(keys) - 1}")
        if keys[index] not in finished:
            raise SimEvalError(f"--episode {index}: {keys[index]} is not finished: resume the run")
    if arguments.episode:
        return [finished[keys[index]] for index in dict.fromkeys(arguments.episode)]
    count = min(arguments.sample or len(found.episodes), len(found.episodes))
    return [found.episodes[index] for index in np.linspace(0, len(found.episodes) - 1, count).round().astype(int)]


def recorded_spec(found: Run, recorded: dict[str, Any]) -> PolicySpec:
    """Of the recorded policy, what decides what it was shown.

    Raises:
        SimEvalError: ``run.json`` does not say it.
    """
    from sim_eval.policies.policy import PolicySpec

    try:
        cameras = {name: (int(size[0]), int(size[1])) for name, size in recorded["policy"]["cameras"].items()}
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise SimEvalError(f"{found.folder}/run.json is damaged ({error!r} in policy cameras): restore it") from error
    return PolicySpec(found.policy, cameras=cameras)


def recorded_source(found: Run, recorded: dict[str, Any]) -> PolicySource:
    """Where the run's command line says that its policy is.

    Raises:
        SimEvalError: ``run.json`` has no such command line.
    """
    from sim_eval import rollout

    program = rollout.PROGRAM.split()
    command = recorded.get("command")
    if not isinstance(command, list) or command[: len(program)] != program:
        raise SimEvalError(f"{found.folder}/run.json has no command of sim_eval.rollout: leave --policy out")
    return rollout.policy_source(
        parse(rollout.RolloutArguments, rollout.PROGRAM, [str(word) for word in command[len(program) :]])
    )


def verify(proving: VerifyJob, results: Sequence[EpisodeResult], workers: int) -> list[Verification]:
    """Verifies the episodes, with a progress bar on stderr; returns the verifications in the order of ``results``."""
    from tqdm import tqdm

    from sim_eval.evaluation.jobs import OneSimulator
    from sim_eval.evaluation.verification import Verification, policy_again, unproven
    from sim_eval.evaluation.workers import Supervision, WorkerPool

    expected = {result.key: result for result in results}
    found: dict[EpisodeKey, Verification] = {}
    again = policy_again(proving.run, proving.source) if proving.source else None  # refused before the workers start
    with ExitStack() as stack:
        outcomes: Iterable[Verification | Lost]
        if workers == 1:
            simulators = stack.enter_context(closing(OneSimulator(proving.run.protocol.render)))
            outcomes = map(proving.player(again, simulators), expected)
        else:
            del again
            outcomes = stack.enter_context(closing(WorkerPool(proving, workers, Supervision()))).run(list(expected))
        bar = stack.enter_context(tqdm(total=len(results), unit="episode", file=sys.stderr, dynamic_ncols=True))
        for outcome in outcomes:
            if not isinstance(outcome, Verification):
                bar.write(str(outcome), file=sys.stderr)
                if outcome.key is None or not outcome.final:
                    continue
                outcome = unproven(expected[outcome.key], f"the replay ended: {outcome.reason}")
            found[outcome.result.key] = outcome
            refuted = sum(each.verdict == "refuted" for each in found.values())
            bar.set_postfix_str(f"refuted {refuted}", refresh=False)
            bar.update()
    return [found[key] for key in expected]


def differences(machines: Sequence[Mapping[str, Any]], here: Mapping[str, Any], threads: bool) -> list[str]:
    """How this machine differs from any of those that recorded, each difference once."""
    from sim_eval.evaluation.verification import machine_differences

    return list(dict.fromkeys(text for there in machines for text in machine_differences(there, here, threads)))


def report(found: Run, verifications: Sequence[Verification], elsewhere: Sequence[str], inferred: bool) -> None:
    """Prints what was found: first what is not as recorded, then the table."""
    from sim_eval.evaluation.verification import VERDICTS
    from sim_eval.reporting.tables import terminal

    place = {key: index for index, key in enumerate(found.manifest.keys)}
    for each in verifications:
        if each.verdict != "bit-identical":
            number = place[each.result.key]
            print(f"episode {number} ({each.result.key}) {each.verdict}: {'; '.join(each.findings)}")
    if not found.complete:
        print(f"the run is not complete: {len(found.episodes)} of {len(place)} episodes are finished")
    if elsewhere:
        print(f"recorded with other versions or on another machine: {'; '.join(elsewhere)}")
    elif any(each.verdict == "outcome-identical" for each in verifications):
        print("versions and machine are those of the recording, so they do not explain a difference")
    header = ["task", "episodes", *VERDICTS]
    if inferred:
        header += ["chunks inferred again", "bit-identical", "largest difference"]
    rows = []
    for task in dict.fromkeys(each.result.key.task for each in verifications):
        mine = [each for each in verifications if each.result.key.task == task]
        row = [task, str(len(mine)), *(str(sum(each.verdict == verdict for each in mine)) for verdict in VERDICTS)]
        if inferred:
            asked = [each.inferred for each in mine if each.inferred is not None]
            row += [str(sum(each.chunks for each in asked)), str(sum(each.equal for each in asked))]
            row += [f"{max((each.largest for each in asked), default=0.0):.3g}"]
        rows.append(row)
    print(terminal(header, rows))


def record(found: Run, verifications: Sequence[Verification], elsewhere: Sequence[str]) -> dict[str, object]:
    """The report as a JSON object; a difference without a number (NaN, another shape) is null."""
    episodes = []
    for each in verifications:
        values = asdict(each)
        del values["machine"]  # what matters of it is said once
        for part in ("deviation", "inferred"):
            if values[part] and values[part]["largest"] == float("inf"):
                values[part]["largest"] = None
        episodes.append({**values.pop("result").pop("key"), **values})
    return {
        "run": str(found.folder),
        "manifest": found.manifest.digest,
        "policy": {"name": found.policy, "digest": found.digest, "variant": found.variant},
        "machine_differences": list(elsewhere),
        "episodes": episodes,
    }


if __name__ == "__main__":
    run(main, VerifyArguments, PROGRAM)
