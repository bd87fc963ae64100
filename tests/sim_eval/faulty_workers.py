"""Workers' jobs on the fake simulator, with faults at chosen episodes. It is imported by the workers too."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import h5py
from fake_simulator import PLANE, PlaneSimulator, wander

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import EpisodeKey, FloatArray, Status
from sim_eval.envs.tasks import get_task, own_tasks
from sim_eval.evaluation.batching import AskingPolicy, Batcher
from sim_eval.evaluation.engine import EpisodeResult, Recorders, RolloutProtocol, run_episode
from sim_eval.evaluation.manifest import Manifest
from sim_eval.evaluation.run_folder import open_run
from sim_eval.evaluation.trajectory import TrajectoryRecorder
from sim_eval.evaluation.verification import Verification, VerifyJob
from sim_eval.evaluation.workers import (
    HeartbeatRecorder,
    Link,
    LocalWorker,
    Play,
    Supervision,
    WorkerHandle,
    WorkerPool,
)
from sim_eval.rollout import play

MANIFEST = Manifest.plan([PLANE.name], "test", 0, 12)
PROTOCOL = RolloutProtocol()
FAULT_STEP = 3
DEADLY = 2
Trajectories = dict[str, tuple[bytes, bytes]]


class FaultySimulator(PlaneSimulator):
    """Has a fault in its fourth control step, unless that episode has had it often enough."""

    def __init__(self, job: FaultyJob) -> None:
        super().__init__(PLANE)
        self._job = job

    def act(self, action: FloatArray) -> Status:
        time.sleep(self._job.pause)
        if self._steps == FAULT_STEP:
            fault, times = self._job.faults.get(self._key.index, ("none", 0))
            if self._job.attempts(self._key) <= times:
                self._break(fault)
        return super().act(action)

    def _break(self, fault: str) -> None:
        match fault:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                os._exit(7)
            case "hang":
                time.sleep(600)
            case "raise":
                raise RuntimeError("the physics\ndiverged")


@dataclass(frozen=True)
class FaultyJob:
    """``faults``: episode index -> what happens, and in how many tries. ``notes`` takes a file a worker and a try.

    ``start``: "well", "dies", "refuses", or "together" for a worker that waits for a second one.
    """

    run: Path
    notes: Path
    faults: Mapping[int, tuple[str, int]] = field(default_factory=dict)
    pause: float = 0.0
    asks: bool = False
    start: str = "well"

    @contextmanager
    def __call__(self, link: Link) -> Iterator[Play[EpisodeResult]]:
        (self.notes / f"worker-{os.getpid()}").touch()
        if self.start == "dies":
            sys.exit(9)
        if self.start == "refuses":
            raise SimEvalError("the checkpoint is gone")
        while self.start == "together" and len(self.workers) < 2:
            time.sleep(0.01)
        policy = AskingPolicy(wander().spec, link.ask) if self.asks else wander()
        trajectories = TrajectoryRecorder(policy.spec, self.run)
        recorder = Recorders(HeartbeatRecorder(link), trajectories)
        simulator = FaultySimulator(self)

        def play_one(key: EpisodeKey) -> EpisodeResult:
            (self.notes / f"try-{key.index}-{self.attempts(key)}").touch()
            return run_episode(simulator, policy, key, PROTOCOL, recorder)

        yield play_one

    def attempts(self, key: EpisodeKey) -> int:
        return len(list(self.notes.glob(f"try-{key.index}-*")))

    @property
    def workers(self) -> list[int]:
        return [int(path.name.partition("-")[2]) for path in self.notes.glob("worker-*")]


@contextmanager
def naming_job(link: Link) -> Iterator[Play[tuple[int, EpisodeKey]]]:
    """An episode's result is the process that ran it, and its key."""

    def play_one(key: EpisodeKey) -> tuple[int, EpisodeKey]:
        time.sleep(0.01)
        return os.getpid(), key

    yield play_one


class DeadlyProving(VerifyJob):
    """The replay of episode ``DEADLY`` takes its worker along, always."""

    @contextmanager
    def __call__(self, link: Link) -> Iterator[Play[Verification]]:
        with fake_task(), super().__call__(link) as play:

            def play_one(key: EpisodeKey) -> Verification:
                if key.index == DEADLY:
                    os.kill(os.getpid(), signal.SIGKILL)
                return play(key)

            yield play_one


@contextmanager
def fake_task() -> Iterator[None]:
    """The fake task is one of ours for as long as the context lasts."""
    own_tasks()[PLANE.name] = PLANE
    get_task.cache_clear()
    try:
        yield
    finally:
        own_tasks().pop(PLANE.name, None)
        get_task.cache_clear()


def alive(process: int) -> bool:
    """Whether it still does something; a zombie does not."""
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def play_in_workers(
    job: FaultyJob,
    size: int = 2,
    watchdog: float = 300.0,
    retries: int = 2,
    batcher: Batcher | None = None,
    start: Callable[[], WorkerHandle] = LocalWorker,
) -> None:
    """Runs what remains of the run."""
    spec = wander().spec
    with (
        fake_task(),
        open_run(job.run, MANIFEST, spec, PROTOCOL, {}) as run_folder,
        closing(WorkerPool(job, size, Supervision(watchdog, retries), batcher, start)) as worker_pool,
    ):
        play(run_folder, worker_pool.run(run_folder.remaining), "correct")


def play_alone(run: Path) -> None:
    """The same run without workers, by the one episode loop."""
    simulator, policy = PlaneSimulator(PLANE), wander()
    recorder = TrajectoryRecorder(policy.spec, run)
    with fake_task(), open_run(run, MANIFEST, policy.spec, PROTOCOL, {}) as run_folder:
        outcomes = (run_episode(simulator, policy, key, PROTOCOL, recorder) for key in run_folder.remaining)
        play(run_folder, outcomes, "correct")


def lines(folder: Path) -> list[dict[str, object]]:
    """``episodes.jsonl`` as it stands there, times aside."""
    values = [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in values]


def files(folder: Path) -> dict[str, bytes]:
    """The trajectories bit for bit, and with them what they say of policy and machine."""
    return {path.name: path.read_bytes() for path in (folder / "trajectories").iterdir()}


def trajectories(folder: Path) -> Trajectories:
    """Actions and states by file name."""
    found = {}
    for path in (folder / "trajectories").iterdir():
        with h5py.File(path) as file:
            found[path.name] = (file["actions"][:].tobytes(), file["states"][:].tobytes())
    return found
