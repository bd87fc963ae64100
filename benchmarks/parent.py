"""How many episodes a second one parent keeps up with: ``python -m benchmarks.parent``.

The parent is the real one: its workers' messages, the progress bar, and the lines of ``episodes.jsonl``. The workers
run :func:`sim_eval.evaluation.workers.work` in threads of one other process, over a pipe each, and their simulator
sleeps, so that two cores do for 64 of them. The ceiling of the parent on a machine with a core for each is what it does
in a second of its own CPU time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from sim_eval.console import run

if TYPE_CHECKING:
    from sim_eval.core.types import EpisodeKey
    from sim_eval.evaluation.engine import EpisodeResult
    from sim_eval.evaluation.workers import Link, Play

PROGRAM = "python -m benchmarks.parent"
TASK = "robosuite/Lift"  # whose instruction is asked for; it is not simulated
WARM_UP = 2  # episodes a worker that are not timed


@dataclass(frozen=True)
class ParentArguments:
    """Time the parent of many workers.

    Attributes:
        workers: how many there are.
        episodes: of each worker.
        steps: control steps of an episode.
        seconds: that an episode takes its worker.
    """

    workers: Annotated[int, Ge(1)] = 64
    episodes: Annotated[int, Ge(1)] = 30
    steps: Annotated[int, Ge(1)] = 35
    seconds: float = 0.12


@dataclass(frozen=True)
class SleepingJob:
    """A worker's job: an episode is a sleep at each control step. Every second one is a success."""

    steps: int
    seconds: float

    @contextmanager
    def __call__(self, link: Link) -> Iterator[Play[EpisodeResult]]:
        from sim_eval.evaluation.engine import EpisodeResult
        from sim_eval.evaluation.workers import HeartbeatRecorder

        recorder = HeartbeatRecorder(link)

        def play(key: EpisodeKey) -> EpisodeResult:
            for _ in range(self.steps):
                time.sleep(self.seconds / self.steps)
                recorder.still_working()
            won = key.index % 2 == 0
            first = self.steps if won else None
            return EpisodeResult(key, "lift the cube", won, won, self.steps, first, "none", 5, None, self.seconds)

        yield play


class ThreadWorker:
    """A worker's handle, whose other end is a thread of the process that :func:`serve` runs in."""

    def __init__(self, listener: Listener) -> None:
        self.connection: Connection = listener.accept()  # type: ignore[assignment]

    def end(self, dead: bool) -> str:
        return "its thread ended"


def serve(address: str, workers: int) -> None:
    """Runs the workers in threads, until the parent is gone."""
    from sim_eval.evaluation.workers import work

    for _ in range(workers):
        threading.Thread(target=work, args=(Client(address),)).start()


def main(arguments: ParentArguments) -> int:
    """Runs the command; returns the exit code."""
    from sim_eval.core.types import EpisodeKey
    from sim_eval.evaluation.engine import RolloutProtocol
    from sim_eval.evaluation.manifest import Manifest
    from sim_eval.evaluation.run_folder import open_run
    from sim_eval.evaluation.workers import Supervision, WorkerPool
    from sim_eval.policies.policy import PolicySpec
    from sim_eval.rollout import play

    manifest = Manifest.plan([TASK], "val", 0, arguments.workers * arguments.episodes)
    warm_up = [EpisodeKey(TASK, "val", index) for index in range(arguments.workers * WARM_UP)]
    with tempfile.TemporaryDirectory() as folder, Listener(family="AF_UNIX") as listener:
        code = f"from benchmarks.parent import serve; serve({listener.address!r}, {arguments.workers})"
        workers = subprocess.Popen([sys.executable, "-c", code], process_group=0)
        job = SleepingJob(arguments.steps, arguments.seconds)
        pool = WorkerPool(job, arguments.workers, Supervision(), start=lambda: ThreadWorker(listener))
        with closing(pool), open_run(Path(folder), manifest, PolicySpec("asleep"), RolloutProtocol(), {}) as run_folder:
            for _ in pool.run(warm_up):
                pass
            wall, own = time.perf_counter(), time.process_time()
            play(run_folder, pool.run(run_folder.remaining), "correct")
            wall, own = time.perf_counter() - wall, time.process_time() - own
        workers.wait()
    count = len(manifest.keys)
    print(f"{arguments.workers} workers, {count} episodes of {arguments.steps} steps and {arguments.seconds:g} s")
    print(f"episodes/s: {count / wall:.0f} here, of {arguments.workers / arguments.seconds:.0f} that the workers offer")
    print(f"the parent's CPU: {1e3 * own / count:.2f} ms an episode, a ceiling of {count / own:.0f} episodes/s")
    return 0


if __name__ == "__main__":
    os.environ.update(LP_NUM_THREADS="0", OMP_NUM_THREADS="1")
    from benchmarks import parent  # by this name the job is known to the workers too

    run(parent.main, ParentArguments, PROGRAM)
