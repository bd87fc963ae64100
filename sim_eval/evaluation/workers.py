"""Episodes in several processes, handed out one by one and supervised: none is lost, none counts twice.

The parent gives an idle worker one key and so always knows which episode a dead or hung worker had. A worker is a
process of its own program (not a fork, which OpenGL and CUDA do not survive) in its own process group, so that Ctrl-C
reaches the parent only, which ends the workers. A worker whose parent is gone ends itself. Where workers run is the
matter of :class:`Body` alone; :mod:`sim_eval.evaluation.ray_workers` has another one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, Pipe, wait
from queue import SimpleQueue
from typing import Any, Generic, NoReturn, Protocol, TypeAlias, TypeVar

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import EpisodeKey, Recorder, Simulator, Status
from sim_eval.evaluation.batching import Answer, Batcher, Question

Result = TypeVar("Result")  # what comes of an episode: EpisodeResult where it is scored
Play: TypeAlias = Callable[[EpisodeKey], Result]
PATIENCE = 60.0  # seconds until the parent looks around at the latest
STARTING = 600.0  # seconds that a worker may take to start at least: a large network loads slowly


class Ready:
    """What a worker says when it has made what its episodes need."""


class Heartbeat:
    """A sign of life."""


@dataclass(frozen=True)
class Ended:
    """What a worker says when its episode has come to its end."""

    result: Any


class Link:
    """A worker's end of its connection to the parent. When the parent is gone, so is the worker."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._inbox: SimpleQueue[Any] = SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                self._inbox.put(self._connection.recv())
            except (EOFError, OSError):
                _leave()  # whatever the main thread is at

    def send(self, message: object) -> None:
        try:
            self._connection.send(message)
        except OSError:
            _leave()

    def receive(self) -> Any:
        """The next key or answer."""
        return self._inbox.get()

    def ask(self, question: Question) -> Answer:
        """The answer of the parent's policy."""
        self.send(question)
        answer: Answer = self.receive()
        return answer


# What makes a worker: opened once in it, it gives the function that runs its episodes. It travels pickled.
Job: TypeAlias = Callable[[Link], AbstractContextManager[Play[Result]]]


class HeartbeatRecorder(Recorder):
    """A recorder that keeps nothing: every control step is a sign of life."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def start(self, simulator: Simulator, key: EpisodeKey, instruction: str) -> None:
        self._link.send(Heartbeat())

    def after_act(self, simulator: Simulator, status: Status) -> None:
        self._link.send(Heartbeat())

    def finish(self, simulator: Simulator, success: bool) -> None:
        self._link.send(Heartbeat())


def work(connection: Connection) -> None:
    """The main program of a worker.

    Args:
        connection: to the parent, which sends the job first and then keys.
    """
    try:
        job: Job[Any] = connection.recv()
    except EOFError:
        return
    link = Link(connection)
    try:
        with job(link) as play:
            link.send(Ready())
            while True:
                link.send(Ended(play(link.receive())))
    except SimEvalError as error:  # a full disk, for example, is no matter of this episode or this worker
        link.send(error)


def _kill_group(leader: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _leave() -> NoReturn:
    """Ends a worker whose parent is gone, and with it its group: the encoder of a video."""
    _kill_group(os.getpid())
    os._exit(1)  # it leads no group where something else than this module started it


def environment() -> dict[str, str]:
    """What the environment of a worker must say: where sim_eval is, and one thread each, unless the user says more."""
    told = {
        name: os.environ.get(name, default) for name, default in (("LP_NUM_THREADS", "0"), ("OMP_NUM_THREADS", "1"))
    }
    return {**told, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}


class WorkerHandle(Protocol):
    """Something that runs :func:`work`, with the parent's end of its connection."""

    @property
    def connection(self) -> Connection: ...
    def end(self, dead: bool) -> str:
        """Kills what still lives of it; how it ended, one line.

        Args:
            dead: its connection has ended, so it is dead or dying.
        """
        ...


class LocalProcess:
    """A worker as a process of this machine."""

    def __init__(self) -> None:
        self.connection, theirs = Pipe()
        program = "from multiprocessing.connection import Connection; from sim_eval.evaluation.workers import work"
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"{program}; work(Connection({theirs.fileno()}))"],
                env={**os.environ, **environment()},
                stdin=subprocess.DEVNULL,
                stdout=2,  # the parent's stdout is for the result
                pass_fds=[theirs.fileno()],
                process_group=0,
            )

    def end(self, dead: bool) -> str:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0 if dead else 0.0)
        _kill_group(self._process.pid)  # the encoder of a video may have outlived it
        code = self._process.wait()
        if code >= 0:
            return f"its worker ended with exit code {code}"
        name = signal.Signals(-code).name
        return f"its worker was killed by {name}" + " (out of memory?)" * (name == "SIGKILL")


class _Worker:
    """What the parent knows of one worker.

    Attributes:
        ready: it has started.
        gone: it will say no more.
        key: the episode it runs; None: none.
        heard: when it last gave a sign of life, or was last given something to do; time.monotonic().
        began: when it was given its episode, or was started.
    """

    def __init__(self, body: WorkerHandle, job: Job[Any]) -> None:
        self._body = body
        self.connection = body.connection
        self.ready, self.gone = False, False
        self.key: EpisodeKey | None = None
        self.heard = self.began = time.monotonic()
        self.send(job)

    def send(self, message: object) -> None:
        self.heard = time.monotonic()
        with suppress(OSError):  # it is dead, which shows when it is listened to
            self.connection.send(message)

    def give(self, key: EpisodeKey) -> None:
        self.key, self.began = key, time.monotonic()
        self.send(key)

    def messages(self) -> list[object]:
        """What it has sent since; sets ``gone`` when nothing can follow."""
        found = []
        try:
            while self.connection.poll():
                found.append(self.connection.recv())
                self.heard = time.monotonic()
        except (EOFError, OSError):
            self.gone = True
        return found

    def end(self) -> str:
        reason = self._body.end(self.gone)
        self.connection.close()
        return reason


@dataclass(frozen=True)
class Supervision:
    """How much is borne of workers.

    Attributes:
        watchdog: seconds without a control step after which a worker counts as hung; while it starts, ten minutes.
        retries: how many times an episode that took its worker along is tried again.
    """

    watchdog: float = 300.0
    retries: int = 2


@dataclass(frozen=True)
class Lost:
    """A worker is dead.

    Attributes:
        key: the episode it had; None: it was still starting.
        reason: how it ended, one line.
        tries: how many times the episode, or the start of a worker, has now been tried in vain.
        final: it is not tried again.
        seconds: wall-clock time of this try.
    """

    key: EpisodeKey | None
    reason: str
    attempts: int
    final: bool
    seconds: float

    def __str__(self) -> str:
        what, again = self.key or "start of a worker", "given up" if self.final else "tried again"
        return f"{what}: {self.reason}; try {self.attempts}, {again}"


class WorkerPool(Generic[Result]):
    """The workers of a run. Close it: then no worker is left.

    Args:
        job: what each worker does.
        size: how many there are at most.
        batcher: answers what workers ask of the policy; None: each has its own.
        start: starts one that waits for its job.
    """

    def __init__(
        self,
        job: Job[Result],
        size: int,
        supervision: Supervision,
        batcher: Batcher | None = None,
        start: Callable[[], WorkerHandle] = LocalProcess,
    ) -> None:
        self._job, self._size, self._supervision = job, size, supervision
        self._batcher, self._start = batcher, start
        self._workers: list[_Worker] = []
        self._waiting: deque[EpisodeKey] = deque()
        self._attempts: Counter[EpisodeKey | None] = Counter()

    def close(self) -> None:
        while self._workers:
            self._workers.pop().end()

    def run(self, keys: Iterable[EpisodeKey]) -> Iterator[Result | Lost]:
        """The episodes' results as they end; of each key one result, or a final loss.

        Raises:
            SimEvalError: a worker met what the user must mend, or workers die while they start.
        """
        return self.run_from(partial(next, iter(keys), None))

    def run_from(self, next_key: Callable[[], EpisodeKey | None]) -> Iterator[Result | Lost]:
        """As :meth:`run`, where which episodes there are depends on what came of others.

        Args:
            next_key: asked when a worker can take an episode; None: there is none, as long as no other ends.
        """
        while True:
            self._fetch(next_key)
            if not self._waiting and not any(worker.key for worker in self._workers):
                return
            self._staff()
            wait([worker.connection for worker in self._workers], self._patience())
            for worker in list(self._workers):
                yield from self._hear(worker)
            if self._batcher is not None:
                busy = sum(worker.key is not None for worker in self._workers)
                self._batcher.answer(busy)

    def _fetch(self, next_key: Callable[[], EpisodeKey | None]) -> None:
        """Takes an episode for each worker that has none, or could be started."""
        idle = self._size - sum(worker.key is not None for worker in self._workers)
        while len(self._waiting) < idle and (key := next_key()):
            self._waiting.append(key)

    def _staff(self) -> None:
        """Starts the workers that are missing, and gives the idle ones work."""
        busy = sum(worker.key is not None for worker in self._workers)
        while len(self._workers) < min(self._size, busy + len(self._waiting)):
            self._workers.append(_Worker(self._start(), self._job))
        for worker in self._workers:
            if worker.ready and worker.key is None and self._waiting:
                worker.give(self._waiting.popleft())

    def _overdue(self, worker: _Worker) -> float:
        """Seconds past the time at which it counts as hung; idle or waiting for an answer it never does."""
        idle = worker.ready and worker.key is None
        if idle or (self._batcher is not None and self._batcher.holds(worker)):
            return -PATIENCE
        allowed = self._supervision.watchdog if worker.ready else max(self._supervision.watchdog, STARTING)
        return time.monotonic() - worker.heard - allowed

    def _patience(self) -> float:
        """Seconds until something may have to be done without any message."""
        nearest = min((-self._overdue(worker) for worker in self._workers), default=PATIENCE)
        if self._batcher is not None:
            nearest = min(nearest, self._batcher.patience())
        return max(0.0, min(nearest, PATIENCE))

    def _hear(self, worker: _Worker) -> Iterator[Result | Lost]:
        for message in worker.messages():
            match message:
                case Ended():
                    worker.key = None
                    yield message.result
                case Ready():
                    worker.ready = True
                    self._attempts[None] = 0
                case Question() if self._batcher is not None:
                    self._batcher.add(worker, message)
                case SimEvalError():
                    raise message
        overdue = self._overdue(worker) > 0
        if worker.gone or overdue:
            yield self._lose(worker, f"its worker hung: no control step in {self._supervision.watchdog:g} s" * overdue)

    def _lose(self, worker: _Worker, reason: str) -> Lost:
        """Ends the worker; its episode stands first in the line again, unless it was tried often enough.

        Args:
            reason: why; empty: because it is dead.
        """
        ended = worker.end()
        self._workers.remove(worker)
        if self._batcher is not None:
            self._batcher.forget(worker)
        self._attempts[worker.key] += 1
        attempts, reason = self._attempts[worker.key], reason or ended
        final = attempts > self._supervision.retries
        if final and worker.key is None:
            raise SimEvalError(f"no worker could start in {attempts} tries ({reason}): try fewer --workers")
        if worker.key and not final:
            self._waiting.appendleft(worker.key)
        return Lost(worker.key, reason, attempts, final, time.monotonic() - worker.began)
