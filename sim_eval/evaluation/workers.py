"""A pool of supervised worker processes that run episodes: no episode is lost, and none counts twice.

The parent gives an idle worker one key at a time, so it knows the episode of a worker that dies or hangs. A worker is a
new process (not a fork, which OpenGL and CUDA do not survive) in its own process group: Ctrl-C reaches only the parent,
which ends the workers. A worker ends itself when its parent is gone. :class:`WorkerHandle` hides where a worker runs:
:class:`LocalWorker` is a process of this machine, and :mod:`sim_eval.evaluation.ray_workers` has one for Ray.
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
from multiprocessing.connection import Connection, Pipe
from queue import SimpleQueue
from selectors import EVENT_READ, DefaultSelector
from typing import Any, Generic, NoReturn, Protocol, TypeAlias, TypeVar

from sim_eval.configs import Workers
from sim_eval.core.errors import SimEvalError
from sim_eval.core.resources import available_cores, available_memory
from sim_eval.core.types import EpisodeKey, Recorder, Simulator, Status
from sim_eval.evaluation.batching import Answer, Batcher, Question

Result = TypeVar("Result")  # of an episode: EpisodeResult where it is scored
Play: TypeAlias = Callable[[EpisodeKey], Result]
WORKER_MEMORY = 800_000_000  # bytes of a worker with one simulator and a small network, or less
EPISODES_A_WORKER = 4  # starting a worker takes about as long as so many episodes
LONGEST_WAIT = 60.0  # seconds for which the parent waits for messages at most
HEARTBEAT = 0.2  # seconds between two heartbeats of a worker at least, so that many workers do not busy their parent
START_TIMEOUT = 600.0  # least seconds that a worker may take to start: a large network loads slowly


def affordable_workers(cores: int, free: int, needed: int) -> int:
    """One worker a core, as far as the free memory (bytes) suffices for what each needs (bytes); at least one."""
    return max(1, min(cores, free // max(needed, 1)))


def worker_count(workers: Workers, episodes: int, shared: bool = False) -> int:
    """The number of workers; "auto": one a core, as far as memory suffices and each has a few episodes to run.

    Args:
        episodes: number of episodes to run.
        shared: the workers call this process's policy; otherwise each needs as much memory as this process, which has
            loaded the policy.
    """
    if workers != "auto":
        return workers
    import psutil

    needed = max(WORKER_MEMORY, 0 if shared else int(psutil.Process().memory_info().rss))
    return max(1, min(affordable_workers(available_cores(), available_memory(), needed), episodes // EPISODES_A_WORKER))


class Ready:
    """A worker's message that it has started and can run episodes."""


class Heartbeat:
    """A worker's message that its episode goes on."""


@dataclass(frozen=True)
class Finished:
    """A worker's message that its episode has ended."""

    result: Any


class Link:
    """A worker's end of its connection to the parent. It ends the worker when the parent is gone."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._inbox: SimpleQueue[Any] = SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                self._inbox.put(self._connection.recv())
            except (EOFError, OSError):
                _leave()  # whatever the main thread does

    def send(self, message: object) -> None:
        try:
            self._connection.send(message)
        except OSError:
            _leave()

    def receive(self) -> Any:
        """The next key or answer."""
        return self._inbox.get()

    def ask(self, question: Question) -> Answer:
        """The answer of the parent's policy to a request."""
        self.send(question)
        answer: Answer = self.receive()
        return answer


# A worker's job, which is pickled and sent to it. It is entered once and gives the function that runs episodes.
Job: TypeAlias = Callable[[Link], AbstractContextManager[Play[Result]]]


class HeartbeatRecorder(Recorder):
    """Sends heartbeats while control steps go on, and while another recorder works after the episode."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._last = -HEARTBEAT

    def start(self, simulator: Simulator, key: EpisodeKey, instruction: str) -> None:
        self.still_working()

    def after_act(self, simulator: Simulator, status: Status) -> None:
        self.still_working()

    def finish(self, simulator: Simulator, success: bool) -> None:
        self.still_working()

    def still_working(self) -> None:
        now = time.monotonic()
        if now - self._last >= HEARTBEAT:
            self._last = now
            self._link.send(Heartbeat())


def work(connection: Connection) -> None:
    """The main program of a worker.

    Args:
        connection: to the parent, which sends the job and then keys.
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
                link.send(Finished(play(link.receive())))
    except SimEvalError as error:  # such as a full disk: another worker would meet it too
        link.send(error)


def _kill_group(leader: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _leave() -> NoReturn:
    """Ends a worker whose parent is gone, and with it the encoder of its video, which is in its group."""
    _kill_group(os.getpid())
    os._exit(1)  # a Ray actor leads no group


def environment() -> dict[str, str]:
    """A worker's environment variables: the same modules, and one thread each unless the user says otherwise."""
    threads = {"LP_NUM_THREADS": "0", "OMP_NUM_THREADS": "1"}
    path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
    return {**{name: os.environ.get(name, number) for name, number in threads.items()}, "PYTHONPATH": path}


class WorkerHandle(Protocol):
    """The parent's access to a process that runs :func:`work`."""

    @property
    def connection(self) -> Connection: ...
    def end(self, dead: bool) -> str:
        """Kills its processes; returns how the worker ended, one line.

        Args:
            dead: its connection has ended, so it is dead or dying.
        """
        ...


class LocalWorker:
    """A :class:`WorkerHandle` of a process of this machine."""

    def __init__(self) -> None:
        self.connection, theirs = Pipe()
        program = "from multiprocessing.connection import Connection; from sim_eval.evaluation.workers import work"
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"{program}; work(Connection({theirs.fileno()}))"],
                env={**os.environ, **environment()},
                stdin=subprocess.DEVNULL,
                stdout=2,  # stderr: the parent's stdout is for the result
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
    """The parent's view of one worker.

    Attributes:
        ready: it has started.
        gone: it will send no more messages.
        key: its current episode; None: it is idle.
        task: of its last episode, whose simulator it still has; empty: none.
        last_active: when it last sent or was sent a message; time.monotonic().
        began: when its episode began, or it was started.
    """

    def __init__(self, handle: WorkerHandle, job: Job[Any]) -> None:
        self._handle = handle
        self.connection = handle.connection
        self.ready, self.gone = False, False
        self.key: EpisodeKey | None = None
        self.task = ""
        self.last_active = self.began = time.monotonic()
        self.send(job)

    def send(self, message: object) -> None:
        self.last_active = time.monotonic()
        with suppress(OSError):  # it is dead, which `messages` will notice
            self.connection.send(message)

    def give(self, key: EpisodeKey) -> None:
        self.key, self.task, self.began = key, key.task, time.monotonic()
        self.send(key)

    def receive(self) -> object:
        """Its next message; None and sets ``gone`` when no others can follow."""
        try:
            message: object = self.connection.recv()
        except (EOFError, OSError):
            self.gone = True
            return None
        self.last_active = time.monotonic()
        return message

    def end(self) -> str:
        reason = self._handle.end(self.gone)
        self.connection.close()
        return reason


@dataclass(frozen=True)
class Supervision:
    """Limits for workers.

    Attributes:
        watchdog: seconds without a control step after which a worker counts as hung; while it starts, at least ten
            minutes.
        retries: number of times that an episode is repeated whose worker died or hung.
    """

    watchdog: float = 300.0
    retries: int = 2


@dataclass(frozen=True)
class Lost:
    """A worker has died or hung.

    Attributes:
        key: its episode; None: it was still starting.
        reason: how it ended, one line.
        attempts: number of failed attempts at the episode, or at starting a worker.
        final: there will be no other attempt.
        seconds: wall-clock time of this attempt.
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
    """The workers of a run. After ``close`` none is left.

    Args:
        job: of each worker.
        size: largest number of workers.
        batcher: answers the workers' requests to a shared policy; None: each worker has its own policy.
        start: starts a worker, which waits for its job.
    """

    def __init__(
        self,
        job: Job[Result],
        size: int,
        supervision: Supervision,
        batcher: Batcher | None = None,
        start: Callable[[], WorkerHandle] = LocalWorker,
    ) -> None:
        self._job, self._size, self._supervision = job, size, supervision
        self._batcher, self._start = batcher, start
        self._workers: list[_Worker] = []
        self._selector = DefaultSelector()
        self._waiting: deque[EpisodeKey] = deque()
        self._attempts: Counter[EpisodeKey | None] = Counter()

    def close(self) -> None:
        while self._workers:
            self._end(self._workers[-1])
        self._selector.close()

    def start(self, workers: int) -> None:
        """Starts workers ahead of their first episodes, so that this process can do something else meanwhile."""
        while len(self._workers) < min(workers, self._size):
            worker = _Worker(self._start(), self._job)
            self._workers.append(worker)
            self._selector.register(worker.connection, EVENT_READ, worker)

    def run(self, keys: Iterable[EpisodeKey]) -> Iterator[Result | Lost]:
        """The results of the episodes as they end; for each key one result or one final loss.

        A worker stays with its task while this has episodes, since another task needs another simulator.

        Raises:
            SimEvalError: a worker raised it, or workers die while they start.
        """
        left: dict[str, deque[EpisodeKey]] = {}
        for key in keys:
            left.setdefault(key.task, deque()).append(key)

        def next_key(task: str) -> EpisodeKey | None:
            chosen = left.get(task) or max(left.values(), key=len, default=None)
            return chosen.popleft() if chosen else None

        return self.run_from(next_key)

    def run_from(self, next_key: Callable[[str], EpisodeKey | None]) -> Iterator[Result | Lost]:
        """As :meth:`run`, where the next episode depends on the results of others.

        Args:
            next_key: is called when a worker is idle, with the task of its last episode (empty: none), which is
                preferred; None: there is no episode until a running one has ended.
        """
        while True:
            self._fill_queue(next_key)
            if not self._waiting and not any(worker.key for worker in self._workers):
                return
            self._employ()
            for ready, _ in self._selector.select(self._wait_seconds()):
                yield from self._handle_message(ready.data)
            for worker in [each for each in self._workers if self._overdue(each) > 0]:
                if not worker.connection.poll():  # unread messages mean that whoever takes the results was slow
                    yield self._lose(worker, f"its worker hung: no control step in {self._supervision.watchdog:g} s")
            if self._batcher is not None:
                busy = sum(worker.key is not None for worker in self._workers)
                self._batcher.answer(busy)

    def _fill_queue(self, next_key: Callable[[str], EpisodeKey | None]) -> None:
        """Takes an episode for each worker that is idle or could be started."""
        idle = [worker.task for worker in self._workers if worker.key is None]
        tasks = sorted(idle + [""] * (self._size - len(self._workers)))  # new workers first: what waits is for them
        for task in tasks[len(self._waiting) :]:
            if key := next_key(task):
                self._waiting.append(key)

    def _employ(self) -> None:
        """Starts missing workers, and gives episodes to idle ones."""
        self.start(sum(worker.key is not None for worker in self._workers) + len(self._waiting))
        for worker in self._workers:
            if worker.ready and worker.key is None and self._waiting:
                key = next((key for key in self._waiting if key.task == worker.task), self._waiting[0])
                self._waiting.remove(key)
                worker.give(key)

    def _overdue(self, worker: _Worker) -> float:
        """Seconds since it counts as hung, negative before; never while it is idle or waits for an answer."""
        idle = worker.ready and worker.key is None
        if idle or (self._batcher is not None and self._batcher.holds(worker)):
            return -LONGEST_WAIT
        allowed = self._supervision.watchdog if worker.ready else max(self._supervision.watchdog, START_TIMEOUT)
        return time.monotonic() - worker.last_active - HEARTBEAT - allowed

    def _wait_seconds(self) -> float:
        """Seconds until the parent must act without any message."""
        nearest = min((-self._overdue(worker) for worker in self._workers), default=LONGEST_WAIT)
        if self._batcher is not None:
            nearest = min(nearest, self._batcher.seconds_left())
        return max(0.0, min(nearest, LONGEST_WAIT))

    def _handle_message(self, worker: _Worker) -> Iterator[Result | Lost]:
        match message := worker.receive():
            case Finished():
                worker.key = None
                yield message.result
            case Ready():
                worker.ready = True
                self._attempts[None] = 0
            case Question() if self._batcher is not None:
                self._batcher.add(worker, message)
            case SimEvalError():
                raise message
        if worker.gone:
            yield self._lose(worker, "")

    def _end(self, worker: _Worker) -> str:
        self._workers.remove(worker)
        with suppress(KeyError):  # an interrupt came first
            self._selector.unregister(worker.connection)
        return worker.end()

    def _lose(self, worker: _Worker, reason: str) -> Lost:
        """Ends the worker; its episode is queued first again, unless it has no retries left.

        Args:
            reason: why it is ended; empty: it is dead.
        """
        ended = self._end(worker)
        if self._batcher is not None:
            self._batcher.forget(worker)
        self._attempts[worker.key] += 1
        attempts, reason = self._attempts[worker.key], reason or ended
        final = attempts > self._supervision.retries
        if final and worker.key is None:
            raise SimEvalError(f"no worker could start in {attempts} attempts ({reason}): try fewer --workers")
        if worker.key and not final:
            self._waiting.appendleft(worker.key)
        return Lost(worker.key, reason, attempts, final, time.monotonic() - worker.began)
