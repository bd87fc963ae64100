"""Verification of recorded episodes: each is run again from its key with the recorded actions, and compared.

The replay goes through the engine's own loop, with a policy that returns the recorded actions, so the same rules end an
episode and decide its success.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeAlias

import numpy as np

from sim_eval.configs import Workers
from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import ActionChunk, ActionSpec, FloatArray, Recorder, Simulator, Task
from sim_eval.evaluation.engine import EpisodeResult, Recorders, RolloutProtocol, run_episode
from sim_eval.evaluation.jobs import OneSimulator, PolicySource
from sim_eval.evaluation.run_folder import Run, changes
from sim_eval.evaluation.trajectory import (
    Trajectory,
    TrajectoryRecorder,
    policy_identity,
    read_trajectory,
    trajectory_path,
)
from sim_eval.evaluation.workers import HeartbeatRecorder, Link, Play, Supervision, WorkerPool, worker_count
from sim_eval.policies.policy import Policy, PolicyRequest, PolicySpec

Verdict: TypeAlias = Literal["bit-identical", "outcome-identical", "refuted", "broke off"]
VERDICTS: tuple[Verdict, ...] = ("bit-identical", "outcome-identical", "refuted", "broke off")
# Share of an action's range beyond which a difference means another policy, not another processor's rounding.
TOLERANCE = 0.05


@dataclass(frozen=True)
class Deviation:
    """How far a replay's states are from the recorded ones.

    Attributes:
        since: number of control steps before the first difference; 0: the initial state differs.
        largest: largest absolute difference, in the units of the state vector (metres, radians, and those a second).
        step, entry: the place of the largest difference: number of control steps, and the name of the number or its
            index in the state vector.
    """

    since: int
    largest: float
    step: int
    entry: str

    def __str__(self) -> str:
        return (
            f"states differ from step {self.since} on, most by {self.largest:.3g} at step {self.step} in {self.entry}"
        )


@dataclass(frozen=True)
class Inferred:
    """The policy's chunks, inferred again for each recorded call, compared with the recorded actions.

    Attributes:
        chunks: number of compared chunks; of each, only the executed part.
        equal: number of those that equal the recorded actions bit for bit.
        largest: largest difference, as a share of the action's range (high - low).
        step: the control step of the largest difference; None: all are equal.
    """

    chunks: int
    equal: int
    largest: float
    step: int | None

    def __str__(self) -> str:
        return (
            f"{self.chunks - self.equal} of {self.chunks} chunks differ when inferred again, most by "
            f"{self.largest:.3g} of the action's range at step {self.step}"
        )


@dataclass(frozen=True)
class Verification:
    """The verification of one episode.

    Attributes:
        result: its line in ``episodes.jsonl``.
        verdict: bit-identical: outcome, states and observations equal the recorded ones to the last bit;
            outcome-identical: only the outcome does; refuted: the outcome differs, or the recording contradicts itself,
            or the policy's actions differ from the recorded ones; broke off: the episode ended with an error, which is
            a failure and is not replayed, and nothing recorded before is refuted.
        findings: the differences, one sentence each.
        deviation: of the states; None: they are equal or cannot be compared.
        inferred: None: the policy was not called again.
        machine: of the recording; empty: unknown.
    """

    result: EpisodeResult
    verdict: Verdict
    findings: tuple[str, ...]
    deviation: Deviation | None
    inferred: Inferred | None
    machine: Mapping[str, Any]


class RecordedPolicy:
    """Returns the recorded actions, and compares them with those of another policy if one is given.

    Args:
        spec: of the recorded policy; it decides the observations.
        again: is called too at each recorded call, from the recorded states, so that its differences do not add up.
    """

    def __init__(self, recorded: Trajectory, spec: PolicySpec, again: Policy | None = None) -> None:
        privileged = again is not None and again.spec.privileged
        self.spec = PolicySpec(name=spec.name, cameras=spec.cameras, privileged=privileged)
        self._recorded, self._again = recorded, again
        self._distances: list[FloatArray] = []
        self._equal = 0

    def predict(self, requests: Sequence[PolicyRequest]) -> list[ActionChunk]:
        chunks = [self._recorded.chunk(request.policy_call) for request in requests]
        if self._again is not None:
            for request, chunk, answer in zip(requests, chunks, self._again.predict(requests), strict=True):
                self._compare(chunk, answer.actions, request.action)
        return [ActionChunk(chunk) for chunk in chunks]

    def _compare(self, chunk: FloatArray, answer: FloatArray, action: ActionSpec) -> None:
        answer = action.clip(np.asarray(answer, np.float64))[: len(chunk)]
        if answer.shape == chunk.shape:
            self._equal += answer.tobytes() == chunk.tobytes()
            span = np.array(action.high) - np.array(action.low)
            self._distances.append(np.nan_to_num(np.abs(answer - chunk) / span, nan=np.inf).max(axis=1))
        else:
            self._distances.append(np.full(len(chunk), np.inf))

    @property
    def inferred(self) -> Inferred | None:
        """The result of the comparison; None if there was none."""
        if not self._distances:
            return None
        distances = np.concatenate(self._distances)
        step = int(distances.argmax())
        largest = float(distances[step])
        return Inferred(len(self._distances), self._equal, largest, step + 1 if largest else None)


def policy_again(run: Run, source: PolicySource) -> Policy:
    """The policy of the run.

    Raises:
        SimEvalError: it cannot be loaded, or has changed.
    """
    try:
        policy = source.load()
    except SimEvalError as error:
        raise SimEvalError(f"the policy of {run.folder} cannot be loaded again: {error}") from error
    if changed := ", ".join(changes(policy_identity(run.spec), policy_identity(policy.spec))):
        raise SimEvalError(f"'{source.reference}' is no longer the policy of {run.folder} ({changed}): restore it")
    return policy


def recorded_source(run: Run) -> PolicySource:
    """How the run's policy was loaded.

    Raises:
        SimEvalError: the run does not say.
    """
    if run.config is None:
        raise SimEvalError(
            f"{run.folder} was not made by sim_eval.rollout, so its policy is unknown: leave --policy out"
        )
    return PolicySource.of(run.config)


def choose_episodes(run: Run, indices: Sequence[int] = (), sample: int | None = None) -> list[EpisodeResult]:
    """The finished episodes to verify.

    Args:
        indices: in the manifest; empty: all, or a sample.
        sample: at most so many, evenly spread; None: all.

    Raises:
        SimEvalError: the run has no finished episode, or an index is not in the manifest or not finished.
    """
    if not run.episodes:
        raise SimEvalError(f"{run.folder} has no finished episode: resume it by rollout --out {run.folder}")
    finished = {result.key: result for result in run.episodes}
    keys = run.manifest.keys
    for index in indices:
        if not 0 <= index < len(keys):
            raise SimEvalError(f"--episode {index}: {run.folder} has episodes 0 to {len(keys) - 1}")
        if keys[index] not in finished:
            raise SimEvalError(f"--episode {index}: {keys[index]} is not finished: resume the run")
    if indices:
        return [finished[keys[index]] for index in dict.fromkeys(indices)]
    count = min(sample or len(run.episodes), len(run.episodes))
    return [run.episodes[index] for index in np.linspace(0, len(run.episodes) - 1, count).round().astype(int)]


@dataclass(frozen=True)
class VerifyJob:
    """How a run's episodes are verified; small, since it is sent to workers.

    Attributes:
        source: of the run's policy, to call it again; None: it is not called.
    """

    run: Run
    source: PolicySource | None = None

    def player(self, again: Policy | None, simulators: OneSimulator, *recorders: Recorder) -> Play[Verification]:
        """Verifies episodes in this process."""
        results = {result.key: result for result in self.run.episodes}
        return lambda key: verify_episode(self.run, results[key], simulators.of(key.task), again, *recorders)

    @contextmanager
    def __call__(self, link: Link) -> Iterator[Play[Verification]]:
        """As a worker's job."""
        again = policy_again(self.run, self.source) if self.source else None
        with closing(OneSimulator(self.run.protocol.render)) as simulators:
            yield self.player(again, simulators, HeartbeatRecorder(link))


def verifications(
    job: VerifyJob, results: Sequence[EpisodeResult], workers: Workers, warn: Callable[[str], object]
) -> Iterator[Verification]:
    """Verifies episodes of the run; yields the verifications as they are done.

    Args:
        workers: number of processes; 1 is this process. With "auto" a policy on a GPU or a server is called by this
            process alone.
        warn: is called with one line when a worker is lost.

    Raises:
        SimEvalError: the policy cannot be loaded, or has changed.
    """
    again = policy_again(job.run, job.source) if job.source else None  # is refused here, before any worker starts
    count = worker_count(workers, len(results))
    if workers == "auto" and job.source and again and job.source.elsewhere(again):
        count = 1
    return _verified_here(job, again, results) if count == 1 else _verified_by_workers(job, results, count, warn)


def _verified_here(job: VerifyJob, again: Policy | None, results: Sequence[EpisodeResult]) -> Iterator[Verification]:
    with closing(OneSimulator(job.run.protocol.render)) as simulators:
        yield from map(job.player(again, simulators), [result.key for result in results])


def _verified_by_workers(
    job: VerifyJob, results: Sequence[EpisodeResult], workers: int, warn: Callable[[str], object]
) -> Iterator[Verification]:
    by_key = {result.key: result for result in results}
    with closing(WorkerPool(job, workers, Supervision())) as pool:
        for outcome in pool.run(list(by_key)):
            if isinstance(outcome, Verification):
                yield outcome
                continue
            warn(str(outcome))
            if outcome.key is not None and outcome.final:
                yield unproven(by_key[outcome.key], f"the replay ended: {outcome.reason}")


def verify_episode(
    run: Run, result: EpisodeResult, simulator: Simulator, again: Policy | None = None, *recorders: Recorder
) -> Verification:
    """Runs a recorded episode again and compares.

    Args:
        result: its line in ``episodes.jsonl``.
        again: the same policy, to be called again; None: it is not.
        recorders: further recorders of the replay.
    """
    path = trajectory_path(run.folder, result.key)
    if not path.exists():
        if result.error and not result.success:
            return Verification(result, "broke off", (result.error,), None, None, {})
        return unproven(result, f"{path.name} is missing")
    try:
        recorded = read_trajectory(path)
    except SimEvalError as error:
        return unproven(result, str(error))
    if reason := foreign(run, result, recorded, path.name):
        return unproven(result, reason, recorded.machine)
    player = RecordedPolicy(recorded, run.spec, again)
    recorder = TrajectoryRecorder(player.spec)
    replayed = run_episode(simulator, player, result.key, run.protocol, Recorders(recorder, *recorders))
    from_trajectory = outcome(recorded, simulator.task, run.protocol, result.error)
    refutations, remarks = contradictions(result, from_trajectory, replayed), []
    deviation, inferred = None, player.inferred
    if recorder.trajectory is not None:  # None: the scene could not be set up, and the replay's error says why
        deviation = deviates(recorded.states, recorder.trajectory.states, simulator.snapshot().names)
        remarks = ([] if deviation is None else [str(deviation)]) + unlike(recorded, recorder.trajectory)
    if inferred is not None and inferred.equal < inferred.chunks:
        (refutations if inferred.largest > TOLERANCE else remarks).append(str(inferred))
    verdict: Verdict = "outcome-identical" if remarks else "bit-identical"
    if result.error is not None:
        verdict, remarks = "broke off", [result.error, *remarks]
    verdict = "refuted" if refutations else verdict
    return Verification(result, verdict, (*refutations, *remarks), deviation, inferred, recorded.machine)


def unproven(result: EpisodeResult, reason: str, machine: Mapping[str, Any] | None = None) -> Verification:
    """The verification of an episode that could not be replayed: refuted."""
    return Verification(result, "refuted", (reason,), None, None, machine or {})


def foreign(run: Run, result: EpisodeResult, recorded: Trajectory, file: str) -> str | None:
    """Why the trajectory is not that of the run's episode; None: it is."""
    if recorded.key != result.key:
        return f"{file} holds episode {recorded.key}"
    for name, expected in policy_identity(run.spec).items():
        if recorded.policy.get(name) != expected:
            return f"{file} was recorded with policy {name} '{recorded.policy.get(name)}', run.json says '{expected}'"
    return None


def outcome(recorded: Trajectory, task: Task, protocol: RolloutProtocol, error: str | None) -> EpisodeResult:
    """The result of an episode according to its trajectory.

    Args:
        error: with which the episode broke off; the trajectory does not hold it.
    """
    successes = np.flatnonzero(recorded.success & (error is None))
    furthest = int(recorded.phases.max(initial=0))
    return EpisodeResult(
        key=recorded.key,
        instruction=task.instruction(recorded.key, protocol.instruction_condition),
        success=len(successes) > 0,
        success_end=error is None and bool(recorded.success[-1:].any()),
        steps=len(recorded.actions),
        first_success=int(successes[0]) + 1 if len(successes) else None,
        phase=("none", *task.phases)[furthest] if 0 <= furthest <= len(task.phases) else str(furthest),
        policy_calls=len(recorded.asked),
        error=error,
        seconds=0.0,
    )


def contradictions(claimed: EpisodeResult, recorded: EpisodeResult, replayed: EpisodeResult) -> list[str]:
    """The differences between ``episodes.jsonl``, the trajectory and the replay, one sentence each."""
    if claimed.error is not None and replayed.error is not None:
        # The replay ends where the recording does, however the episode broke off.
        recorded, replayed = (
            replace(each, error=claimed.error, policy_calls=claimed.policy_calls) for each in (recorded, replayed)
        )
    return [
        f"{name}: {getattr(claimed, name)} in episodes.jsonl, {getattr(recorded, name)} in the trajectory, "
        f"{getattr(replayed, name)} when replayed"
        for name in (field.name for field in fields(EpisodeResult) if field.compare)
        if len({getattr(each, name) for each in (claimed, recorded, replayed)}) > 1
    ]


def deviates(recorded: FloatArray, replayed: FloatArray, names: Sequence[str] = ()) -> Deviation | None:
    """How far states [T + 1, n] are from the recorded ones, over their common length; None: equal to the last bit.

    Args:
        names: of the n numbers; empty: unknown.
    """
    steps, entries = (min(sizes) for sizes in zip(recorded.shape, replayed.shape, strict=True))
    left, right = (np.ascontiguousarray(states[:steps, :entries]) for states in (recorded, replayed))
    parted = np.flatnonzero((left.view(np.int64) != right.view(np.int64)).any(axis=1))
    if not parted.size:
        return None
    distance = np.nan_to_num(np.abs(left - right), nan=np.inf)
    step, entry = (int(place) for place in np.unravel_index(distance.argmax(), distance.shape))
    name = names[entry] if names else f"number {entry}"
    return Deviation(int(parted[0]), float(distance[step, entry]), step, name)


def unlike(recorded: Trajectory, replayed: Trajectory) -> list[str]:
    """The differences besides states and outcome, one sentence each."""
    differences = []
    if recorded.states.shape[1] != replayed.states.shape[1]:
        differences.append(
            f"the state has {replayed.states.shape[1]} numbers, {recorded.states.shape[1]} were recorded"
        )
    pairs = list(zip(recorded.seen, replayed.seen, strict=False))
    if others := [number for number, (before, now) in enumerate(pairs) if before != now]:
        first = int(recorded.asked[others[0]])
        differences.append(f"{len(others)} of {len(pairs)} observations differ, the first at step {first}")
    for name in ("actions", "phases", "success"):  # actions: the engine clips those out of bounds
        before, now = (getattr(each, name) for each in (recorded, replayed))
        if before.shape == now.shape and (steps := np.unique(np.nonzero(before != now)[0])).size:
            differences.append(f"{name} differ at {steps.size} steps, the first at step {steps[0] + 1}")
    return differences


def machine_differences(recorded: Sequence[Mapping[str, Any]], here: Mapping[str, Any], threads: bool) -> list[str]:
    """The differences in versions and processor, each like "mujoco 3.2.0, here 3.3.0" and only once.

    Args:
        recorded: the machines that recorded; empty ones are unknown.
        threads: whether to compare the number of torch's threads too.
    """
    parts = ["platform", "processor", "instructions", *(["torch_threads"] if threads else [])]
    differences = []
    for machine in filter(None, recorded):
        versions, now = machine.get("versions"), here["versions"]
        versions = versions if isinstance(versions, Mapping) else {}
        pairs = [(name, versions.get(name), now.get(name)) for name in {**versions, **now}]
        pairs += [(name.replace("_", " "), machine.get(name), here[name]) for name in parts]
        differences += [f"{name} {before}, here {value}" for name, before, value in pairs if before != value]
    return list(dict.fromkeys(differences))
