"""Trajectories: the recording of an episode from which it can be run again and verified."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim_eval.core.decoding import decode
from sim_eval.core.errors import SimEvalError
from sim_eval.core.files import atomic, sealed, verified
from sim_eval.core.types import (
    ActionChunk,
    EpisodeKey,
    FloatArray,
    Observation,
    Recorder,
    Simulator,
    Status,
    without_derived,
)
from sim_eval.core.versions import machine
from sim_eval.evaluation.run_folder import TRAJECTORIES
from sim_eval.policies.policy import PolicySpec

if TYPE_CHECKING:
    import h5py

# Files of version 1 held hashes of states instead of states, and no digests of observations.
MARK = b"sim_eval trajectory 2 sha256 "
REMEDY = "run the episode again"


@dataclass(frozen=True, eq=False)
class Trajectory:
    """An episode of T control steps with R calls of the policy.

    Attributes:
        key: the episode.
        policy: identifies the policy: name, digest and variant of its spec.
        actions: float64 [T, action dim], as executed.
        states: float64 [T + 1, n], the simulator's full state before the first step and after each.
        phases: int64 [T], the number of phases fulfilled after each step.
        success: bool [T], whether the task's rule held after each step.
        asked: int64 [R], the number of control steps before each call of the policy.
        seen: SHA-256 in hex of the observation of each call.
        machine: versions, processor and threads, as :func:`sim_eval.core.versions.machine` returns them.
    """

    key: EpisodeKey
    policy: Mapping[str, str]
    actions: FloatArray
    states: FloatArray
    phases: NDArray[np.int64]
    success: NDArray[np.bool_]
    asked: NDArray[np.int64]
    seen: tuple[str, ...]
    machine: Mapping[str, Any]

    def __post_init__(self) -> None:
        steps, ends = len(self.actions), [*self.asked, len(self.actions)]
        lengths = len(self.states) - 1, len(self.phases), len(self.success)
        if lengths != (steps,) * 3 or len(self.asked) != len(self.seen) or ends[0] != 0 or sorted(ends) != ends:
            raise SimEvalError(f"the trajectory of {self.key} contradicts itself: its parts do not fit together")

    def chunk(self, policy_call: int) -> FloatArray:
        """The executed actions of the policy's chunk number ``policy_call``: [steps, action dim].

        Raises:
            SimEvalError: the episode ended earlier.
        """
        chunks = np.split(self.actions, self.asked[1:])
        if policy_call >= len(chunks) or not len(chunks[policy_call]):
            raise SimEvalError(f"the recorded actions end after {len(self.actions)} control steps")
        return chunks[policy_call]


def policy_identity(spec: PolicySpec) -> dict[str, str]:
    """The value of :attr:`Trajectory.policy`."""
    return {"name": spec.name, "digest": spec.digest, "variant": spec.variant}


def observation_digest(observation: Observation) -> str:
    """SHA-256 of a whole observation: pictures, calibration, measured proprioception, instruction and workspace."""
    digest = hashlib.sha256(f"{observation.instruction}|{observation.workspace}".encode())
    for name, view in sorted(observation.views.items()):
        for array in (view.rgb, view.depth, view.intrinsics, view.camera_to_world):
            digest.update(f"|{name}|{array.dtype}|{array.shape}|".encode() + np.ascontiguousarray(array).tobytes())
    for name, values in sorted(without_derived(observation.proprio).items()):
        digest.update(f"|{name}|{values.shape}|".encode() + np.ascontiguousarray(values, np.float64).tobytes())
    return digest.hexdigest()


class TrajectoryRecorder(Recorder):
    """Records an episode's :class:`Trajectory`.

    Args:
        policy: is recorded.
        folder: the run folder, into whose ``trajectories`` each episode is written; None: nothing is written.
        threads: torch's threads in the policy's process; None: the policy runs in this process.

    Attributes:
        trajectory: of the last finished episode; None before that.
    """

    def __init__(self, policy: PolicySpec, folder: Path | None = None, threads: int | None = None) -> None:
        self._policy, self._folder = policy_identity(policy), folder
        self._machine = machine() if threads is None else {**machine(), "torch_threads": threads}
        self.trajectory: Trajectory | None = None

    def start(self, simulator: Simulator, key: EpisodeKey, instruction: str) -> None:
        self._key = key
        self._actions: list[FloatArray] = []
        self._statuses: list[Status] = []
        self._asked: list[int] = []
        self._seen: list[str] = []
        self._states = [simulator.snapshot().state]

    def asked(self, observation: Observation, chunk: ActionChunk) -> None:
        self._asked.append(len(self._actions))
        self._seen.append(observation_digest(observation))

    def before_act(self, simulator: Simulator, label: FloatArray, executed: FloatArray) -> None:
        self._actions.append(executed.copy())

    def after_act(self, simulator: Simulator, status: Status) -> None:
        self._states.append(simulator.snapshot().state)
        self._statuses.append(status)

    def finish(self, simulator: Simulator, success: bool) -> None:
        done = len(self._statuses)  # a step that broke the simulator is not part of the trajectory
        self.trajectory = Trajectory(
            key=self._key,
            policy=self._policy,
            actions=np.array(self._actions[:done], np.float64).reshape(done, simulator.spec.action.dim),
            states=np.array(self._states, np.float64),
            phases=np.array([status.phase for status in self._statuses], np.int64),
            success=np.array([status.success for status in self._statuses], np.bool_),
            asked=np.array(self._asked, np.int64),
            seen=tuple(self._seen),
            machine=self._machine,
        )
        if self._folder is not None:
            write_trajectory(self._folder, self.trajectory)


def trajectory_path(folder: Path, key: EpisodeKey) -> Path:
    """The file of an episode's trajectory."""
    return folder / TRAJECTORIES / f"{key.stem}.h5"


def write_trajectory(folder: Path, trajectory: Trajectory) -> None:
    """Writes a trajectory into its run folder, completely or not at all.

    Raises:
        SimEvalError: the disk refuses.
    """

    def fill(file: h5py.File) -> None:
        file.attrs.update(asdict(trajectory.key))
        file.attrs.update(policy=json.dumps(dict(trajectory.policy)), machine=json.dumps(dict(trajectory.machine)))
        digests = np.frombuffer(bytes.fromhex("".join(trajectory.seen)), np.uint8).reshape(-1, 32)
        # The states are 10 kB of a Lift episode's 24 kB. Compressing the other arrays would hardly save space.
        states = trajectory.states
        file.create_dataset("states", data=states, chunks=states.shape, compression="gzip", shuffle=True)
        for name in ("actions", "phases", "success", "asked"):
            file[name] = getattr(trajectory, name)
        file["seen"] = digests

    content = sealed(MARK, fill)
    with atomic(trajectory_path(folder, trajectory.key)) as partial:
        partial.write_bytes(content)


def read_trajectory(path: Path) -> Trajectory:
    """Reads the output of :func:`write_trajectory`.

    Raises:
        SimEvalError: the file is missing, truncated, damaged, of an earlier version or of another program.
    """
    import h5py

    with suppress(OSError), path.open("rb") as stream:
        start = stream.read(len(MARK))
        if start.startswith(MARK[:20]) and start != MARK:
            raise SimEvalError(f"{path} is of another version: read it with the sim_eval that run.json names")
    verified(path, MARK, "trajectory", REMEDY)
    try:
        with h5py.File(path, "r") as file:
            attributes = {name: value.item() if hasattr(value, "item") else value for name, value in file.attrs.items()}
            key = {name: attributes[name] for name in ("task", "split", "index")}
            return Trajectory(
                key=decode(EpisodeKey, key),
                policy=decode(dict[str, str], json.loads(attributes["policy"]), "policy"),
                machine=decode(dict[str, Any], json.loads(attributes["machine"]), "machine"),
                **{name: file[name][()] for name in ("actions", "states", "phases", "success", "asked")},
                seen=tuple(row.tobytes().hex() for row in file["seen"][()]),
            )
    except (KeyError, OSError, TypeError, ValueError, RecursionError, SimEvalError) as error:
        raise SimEvalError(f"{path} is not a sound trajectory ({error}): {REMEDY}") from error
