"""Proving recorded episodes: each is run again from its key with the actions that were recorded, and compared.

The replay goes through the engine's own loop, with a policy that answers from the recording, so that what ends an
episode and what counts as success are decided where they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeAlias

import numpy as np

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import ActionChunk, ActionSpec, EpisodeKey, FloatArray, Recorder, Simulator, Task
from sim_eval.evaluation.engine import EpisodeResult, Recorders, RolloutProtocol, run_episode
from sim_eval.evaluation.jobs import OneSimulator, PolicySource
from sim_eval.evaluation.run_folder import Run
from sim_eval.evaluation.trajectory import (
    Trajectory,
    TrajectoryRecorder,
    policy_identity,
    read_trajectory,
    trajectory_path,
)
from sim_eval.evaluation.workers import HeartbeatRecorder, Link, Play
from sim_eval.policies.policy import Policy, PolicyRequest, PolicySpec

Verdict: TypeAlias = Literal["bit-identical", "outcome-identical", "refuted", "broke off"]
VERDICTS: tuple[Verdict, ...] = ("bit-identical", "outcome-identical", "refuted", "broke off")
# Share of an action's range beyond which an answer is another policy's, not another processor's rounding.
TOLERANCE = 0.05


@dataclass(frozen=True)
class Deviation:
    """How far a replay's states are from the recorded ones.

    Attributes:
        since: control steps made when they first differ; 0: the scene itself is another.
        largest: largest absolute difference, in the state vector's own units (metres, radians, and those a second).
        step, entry: where that is: control steps made, and the name of the number or its index in the state vector.
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
    """What the policy answers when asked again at each recorded question.

    Attributes:
        chunks: how many answers were compared, each as far as it was executed.
        equal: how many of them equal the recorded actions bit for bit.
        largest: largest difference, as a share of the action's range (high - low).
        step: the control step of the largest difference; None: there is none.
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
    """What became of an episode's proof.

    Attributes:
        result: as ``episodes.jsonl`` says it.
        verdict: bit-identical: outcome, states and observations are the recorded ones to the last bit;
            outcome-identical: the outcome is; refuted: it is not, or the recording contradicts itself, or the policy's
            actions are not those that were recorded; broke off: it ended with an error, which is a failure and is not
            replayed, but nothing that was recorded before is refuted.
        findings: what is not as recorded, one sentence each.
        deviation: of the states; None: none, or they could not be compared.
        inferred: None: the policy was not asked again.
        machine: on which the episode was recorded; empty: not known.
    """

    result: EpisodeResult
    verdict: Verdict
    findings: tuple[str, ...]
    deviation: Deviation | None
    inferred: Inferred | None
    machine: Mapping[str, Any]


class RecordedPolicy:
    """Answers with the actions that were executed; asks another policy as well, if there is one, and compares.

    Args:
        shown: the spec of the policy that was recorded: it is shown what that one was.
        again: asked at each question too, from the recorded states, so that its differences do not add up.
    """

    def __init__(self, recorded: Trajectory, shown: PolicySpec, again: Policy | None = None) -> None:
        privileged = again is not None and again.spec.privileged
        self.spec = PolicySpec(name=shown.name, cameras=shown.cameras, privileged=privileged)
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
        """What the comparison found; None when nothing was compared."""
        if not self._distances:
            return None
        distances = np.concatenate(self._distances)
        step = int(distances.argmax())
        largest = float(distances[step])
        return Inferred(len(self._distances), self._equal, largest, step + 1 if largest else None)


def policy_again(run: Run, source: PolicySource) -> Policy:
    """The policy of the run.

    Raises:
        SimEvalError: it is gone, or is another one now.
    """
    try:
        policy = source.load()
    except SimEvalError as error:
        raise SimEvalError(f"the policy of {run.folder} cannot be loaded again: {error}") from error
    now, there = policy_identity(policy.spec), {"name": run.policy, "digest": run.digest, "variant": run.variant}
    if now != there:
        changed = ", ".join(
            f"{part} {there[part] or 'none'} there, {now[part] or 'none'} now"
            for part in now
            if now[part] != there[part]
        )
        raise SimEvalError(f"'{source.reference}' is not the policy of {run.folder} any more ({changed}): restore it")
    return policy


@dataclass(frozen=True)
class VerifyJob:
    """How a run's episodes are verified; small, so that it can be sent to a worker.

    Attributes:
        shown: the spec of the policy that was recorded.
        source: of the same policy, where a worker is to ask it again; None: it is not.
    """

    run: Run
    shown: PolicySpec
    source: PolicySource | None

    def player(self, again: Policy | None, simulators: OneSimulator, *recorders: Recorder) -> Play[Verification]:
        """Verifies episodes in this process."""
        results = {result.key: result for result in self.run.episodes}

        def play(key: EpisodeKey) -> Verification:
            return verify_episode(self.run, self.shown, results[key], simulators.of(key.task), again, *recorders)

        return play

    @contextmanager
    def __call__(self, link: Link) -> Iterator[Play[Verification]]:
        """As a worker's job."""
        again = policy_again(self.run, self.source) if self.source else None
        with closing(OneSimulator(self.run.protocol.render)) as simulators:
            yield self.player(again, simulators, HeartbeatRecorder(link))


def verify_episode(
    run: Run,
    shown: PolicySpec,
    result: EpisodeResult,
    simulator: Simulator,
    again: Policy | None = None,
    *recorders: Recorder,
) -> Verification:
    """Runs a recorded episode again and compares.

    Args:
        run: the run it is of.
        shown: the spec of the policy that was recorded.
        result: as ``episodes.jsonl`` says it.
        again: the same policy, to be asked again; None: it is not.
        recorders: what else watches the replay.
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
    if found := foreign(run, result, recorded, path.name):
        return unproven(result, found, recorded.machine)
    player = RecordedPolicy(recorded, shown, again)
    recorder = TrajectoryRecorder(player.spec)
    replayed = run_episode(simulator, player, result.key, run.protocol, Recorders(recorder, *recorders))
    told = outcome(recorded, simulator.task, run.protocol, result.error)
    refutations, remarks = contradictions(result, told, replayed), []
    deviation, inferred = None, player.inferred
    if recorder.trajectory is not None:  # None: the scene could not even be set up, and the replay's error says why
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
    """Refuted, since no replay came to its end."""
    return Verification(result, "refuted", (reason,), None, None, machine or {})


def foreign(run: Run, result: EpisodeResult, recorded: Trajectory, file: str) -> str | None:
    """Why the trajectory is not that of the run's episode; None when it is."""
    if recorded.key != result.key:
        return f"{file} holds episode {recorded.key}"
    for name, there in (("name", run.policy), ("digest", run.digest), ("variant", run.variant)):
        if recorded.policy.get(name) != there:
            return f"{file} was recorded with policy {name} '{recorded.policy.get(name)}', run.json says '{there}'"
    return None


def outcome(recorded: Trajectory, task: Task, protocol: RolloutProtocol, error: str | None) -> EpisodeResult:
    """What ``episodes.jsonl`` must say of an episode, going by its trajectory.

    Args:
        error: that the episode broke off with, of which the trajectory knows nothing.
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


def contradictions(claimed: EpisodeResult, told: EpisodeResult, replayed: EpisodeResult) -> list[str]:
    """Where the line in ``episodes.jsonl``, the trajectory and the replay do not say the same, one sentence each."""
    if claimed.error is not None and replayed.error is not None:
        # The replay ends where the recording does, in whatever way the episode broke off then.
        told, replayed = (
            replace(each, error=claimed.error, policy_calls=claimed.policy_calls) for each in (told, replayed)
        )
    return [
        f"{name}: {getattr(claimed, name)} in episodes.jsonl, {getattr(told, name)} in the trajectory, "
        f"{getattr(replayed, name)} when replayed"
        for name in (field.name for field in fields(EpisodeResult) if field.compare)
        if len({getattr(each, name) for each in (claimed, told, replayed)}) > 1
    ]


def deviates(recorded: FloatArray, replayed: FloatArray, names: Sequence[str] = ()) -> Deviation | None:
    """How far states [T + 1, n] are from the recorded ones, as far as both go; None: equal to the last bit.

    Args:
        names: of the n numbers; empty: they have none.
    """
    steps, entries = (min(sizes) for sizes in zip(recorded.shape, replayed.shape, strict=True))
    left, right = (np.ascontiguousarray(states[:steps, :entries]) for states in (recorded, replayed))
    parted = np.flatnonzero((left.view(np.int64) != right.view(np.int64)).any(axis=1))
    if not parted.size:
        return None
    distance = np.nan_to_num(np.abs(left - right), nan=np.inf)
    step, entry = np.unravel_index(distance.argmax(), distance.shape)
    name = names[entry] if names else f"number {entry}"
    return Deviation(int(parted[0]), float(distance[step, entry]), int(step), name)


def unlike(recorded: Trajectory, replayed: Trajectory) -> list[str]:
    """What else than states and outcome is not as recorded, one sentence each."""
    found = []
    if recorded.states.shape[1] != replayed.states.shape[1]:
        found.append(f"the state has {replayed.states.shape[1]} numbers, {recorded.states.shape[1]} were recorded")
    pairs = list(zip(recorded.seen, replayed.seen, strict=False))
    if others := [number for number, (there, now) in enumerate(pairs) if there != now]:
        first = int(recorded.asked[others[0]])
        found.append(f"{len(others)} of {len(pairs)} observations differ, the first at step {first}")
    for name in ("actions", "phases", "success"):  # actions: one out of bounds is clipped again
        there, now = (getattr(each, name) for each in (recorded, replayed))
        if there.shape == now.shape and (steps := np.unique(np.nonzero(there != now)[0])).size:
            found.append(f"{name} differ at {steps.size} steps, the first at step {steps[0] + 1}")
    return found


def machine_differences(recorded: Mapping[str, Any], here: Mapping[str, Any], threads: bool) -> list[str]:
    """What of versions and processor is not as recorded, each as "mujoco 3.2.0, here 3.3.0".

    Args:
        threads: whether the number of torch's threads counts too.
    """
    if not recorded:
        return []
    versions, now = recorded.get("versions"), here["versions"]
    versions = versions if isinstance(versions, Mapping) else {}
    pairs = [(f"{name} ", versions.get(name), now.get(name)) for name in {**versions, **now}]
    parts = ["platform", "processor", "instructions", *(["torch_threads"] if threads else [])]
    pairs += [(f"{name.replace('_', ' ')} ", recorded.get(name), here[name]) for name in parts]
    return [f"{name}{there}, here {value}" for name, there, value in pairs if there != value]
