"""Workers change nothing but the time: no episode is lost, none counts twice, whoever dies when."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_simulator import PLANE, FakePolicy, PlaneSimulator, wander
from faulty_workers import (
    MANIFEST,
    FaultyJob,
    alive,
    fake_task,
    files,
    lines,
    naming_job,
    play_alone,
    play_in_workers,
    trajectories,
)

from sim_eval.configs import RolloutConfig
from sim_eval.core import versions
from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import ActionChunk, EpisodeKey, FloatArray, Status, observe_task
from sim_eval.evaluation.batching import Answer, Batcher, Failure, Question
from sim_eval.evaluation.jobs import PolicySource
from sim_eval.evaluation.rollouts import with_workers
from sim_eval.evaluation.run_folder import read_run
from sim_eval.evaluation.workers import HEARTBEAT, Heartbeat, HeartbeatRecorder, Lost, Supervision, WorkerPool
from sim_eval.policies.policy import PolicyRequest
from sim_eval.rollout import main

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _fake_task() -> Iterator[None]:
    with fake_task():
        yield


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run without workers."""
    folder = tmp_path_factory.mktemp("alone")
    play_alone(folder)
    return folder


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., FaultyJob]:
    (tmp_path / "notes").mkdir()
    return lambda **more: FaultyJob(tmp_path / "run", tmp_path / "notes", **more)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_workers_write_what_one_process_writes(job: Callable[..., FaultyJob], alone: Path):
    # The first episode is the slow one, so that results come in another order than the manifest's.
    two = job(faults={0: ("hang", 1)}, pause=0.002)
    play_in_workers(two, watchdog=1.5)
    assert lines(two.run) == lines(alone)
    assert trajectories(two.run) == trajectories(alone)
    assert len(two.workers) >= 2
    assert not any(alive(worker) for worker in two.workers)


def test_whoever_dies_each_episode_counts_once(
    job: Callable[..., FaultyJob], alone: Path, capfd: pytest.CaptureFixture[str]
):
    faults = {1: ("kill", 1), 4: ("exit", 2), 6: ("raise", 9), 9: ("kill", 9), 11: ("hang", 9)}
    faulty = job(faults=faults)
    play_in_workers(faulty, watchdog=1.5)
    run = read_run(faulty.run)
    assert run.complete
    assert [line["index"] for line in lines(faulty.run)] == list(range(12))
    errors = {result.key.index: result.error for result in run.episodes if result.error}
    assert errors == {
        6: "simulator: RuntimeError: the physics diverged",
        9: "its worker was killed by SIGKILL (out of memory?)",
        11: "its worker hung: no control step in 1.5 s",
    }
    assert not any(result.success for result in run.episodes if result.error)
    healthy = [index for index in range(12) if index not in errors]
    assert [lines(faulty.run)[index] for index in healthy] == [lines(alone)[index] for index in healthy]
    assert {index: faulty.attempts(MANIFEST.keys[index]) for index in faults} == {1: 2, 4: 3, 6: 1, 9: 3, 11: 3}
    told = capfd.readouterr().err
    assert "fake/Plane/test/00001: its worker was killed by SIGKILL (out of memory?); try 1, tried again\n" in told
    assert "fake/Plane/test/00004: its worker ended with exit code 7; try 2, tried again\n" in told
    assert "fake/Plane/test/00011: its worker hung: no control step in 1.5 s; try 3, given up\n" in told
    # A lost episode leaves no trajectory: there is nothing that could be replayed.
    assert sorted(trajectories(faulty.run)) == [
        f"fake-Plane_test_{index:05d}.h5" for index in range(12) if index not in (9, 11)
    ]


def program(job: FaultyJob) -> str:
    """Python for ``play_in_workers(job)``."""
    return (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's & ignores it
        f"import sys; sys.path[:0] = [{str(HERE)!r}, {str(HERE.parents[1])!r}]\n"
        "from pathlib import PosixPath; from faulty_workers import FaultyJob, play_in_workers\n"
        f"play_in_workers({job!r})"
    )


def start(job: FaultyJob) -> subprocess.Popen[str]:
    """``play_in_workers`` in a process of its own, once it has finished three episodes."""
    process = subprocess.Popen([sys.executable, "-c", program(job)], stderr=subprocess.PIPE, text=True)
    log = job.run / "episodes.jsonl"
    wait_until(lambda: process.poll() is not None or (log.exists() and log.read_bytes().count(b"\n") >= 3))
    assert process.poll() is None
    return process


def test_killed_and_resumed_equals_finished_and_orphans_end(job: Callable[..., FaultyJob], alone: Path):
    slow = job(pause=0.03)
    process = start(slow)
    process.kill()
    process.communicate()
    wait_until(lambda: not any(alive(worker) for worker in slow.workers))
    assert len(slow.workers) == 2
    assert not read_run(slow.run).complete
    play_in_workers(replace(slow, pause=0.0))
    assert lines(slow.run) == lines(alone)
    assert trajectories(slow.run) == trajectories(alone)


@pytest.mark.slow
def test_a_run_killed_at_twenty_random_moments_equals_one_that_was_not(job: Callable[..., FaultyJob], alone: Path):
    slow, rng, kills = job(pause=0.05), np.random.default_rng(0), 0
    while kills < 20:
        process = subprocess.Popen([sys.executable, "-c", program(slow)], stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.3, 2.0))
        kills += process.poll() is None
        process.kill()
        process.wait()
    wait_until(lambda: not any(alive(worker) for worker in slow.workers))
    play_in_workers(replace(slow, pause=0.0))
    assert lines(slow.run) == lines(alone)
    assert trajectories(slow.run) == trajectories(alone)


@pytest.mark.slow
def test_no_episode_is_lost_while_random_workers_are_killed(job: Callable[..., FaultyJob], alone: Path):
    slow, rng, done = job(pause=0.02), np.random.default_rng(0), threading.Event()

    def kill() -> None:
        while not done.wait(0.7):
            living = [worker for worker in slow.workers if alive(worker)]
            if living:
                os.kill(living[rng.integers(len(living))], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        play_in_workers(slow, retries=20)
    finally:
        done.set()
        killer.join()
    assert len(slow.workers) > 4  # or nobody was killed
    assert lines(slow.run) == lines(alone)
    assert trajectories(slow.run) == trajectories(alone)


def test_an_interrupt_ends_everything_and_says_how_to_go_on(job: Callable[..., FaultyJob]):
    slow = job(pause=0.03, faults={5: ("hang", 9)})
    process = start(slow)
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=30)[1]
    assert not any(alive(worker) for worker in slow.workers)
    kept = len(read_run(slow.run).episodes)
    assert 3 <= kept < 12
    assert f"interrupted: {kept} of 12 episodes kept in {slow.run}; the same command with --out" in told


def test_a_stray_video_of_a_broken_try_goes(job: Callable[..., FaultyJob]):
    clean = job()
    play_alone(clean.run)
    log = clean.run / "episodes.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]) + '{"task": "fake')
    videos = clean.run / "videos"
    videos.mkdir()
    kept = [videos / "fake-Plane_test_00010_failure.mp4", videos / "notes.txt"]
    gone = [
        videos / f"{part}fake-Plane_test_00011_{end}.mp4"
        for part in ("", ".partial-")
        for end in ("failure", "success")
    ]
    for path in [*kept, *gone]:
        path.touch()
    play_in_workers(clean)
    assert sorted(videos.iterdir()) == sorted(kept)
    assert len(trajectories(clean.run)) == 12


def test_a_torn_line_is_repaired_and_said(
    job: Callable[..., FaultyJob], alone: Path, capfd: pytest.CaptureFixture[str]
):
    torn = job()
    play_alone(torn.run)
    log = torn.run / "episodes.jsonl"
    whole = log.read_bytes()
    log.write_bytes(whole[:-9])
    capfd.readouterr()
    play_in_workers(torn)
    assert f"{log}: removed a torn last line; its episode runs again\n" in capfd.readouterr().err
    assert lines(torn.run) == lines(alone)


def test_other_versions_are_refused_and_the_number_of_workers_is_no_difference(
    job: Callable[..., FaultyJob], monkeypatch: pytest.MonkeyPatch
):
    run = job()
    play_alone(run.run)
    play_in_workers(run, size=3)
    monkeypatch.setattr(versions, "__version__", "9.9")
    with pytest.raises(SimEvalError, match=r"versions sim_eval was 0\.2\.0, is now 9\.9"):
        play_in_workers(run)


@pytest.mark.parametrize(
    ("start", "words"),
    [
        ("dies", r"no worker could start in 3 attempts \(its worker ended with exit code 9\)"),
        ("refuses", "^the checkpoint is gone$"),
    ],
)
def test_workers_that_cannot_start_end_the_run(job: Callable[..., FaultyJob], start: str, words: str):
    broken = job(start=start)
    with pytest.raises(SimEvalError, match=words):
        play_in_workers(broken)
    assert not read_run(broken.run).episodes
    assert not any(alive(worker) for worker in broken.workers)


def test_a_worker_stays_with_its_task():
    keys = [EpisodeKey(task, "test", index) for task in "abcd" for index in range(5)]
    with closing(WorkerPool(naming_job, 2, Supervision())) as pool:
        pool.start(5)  # no more than two, and they are those that run the episodes
        ended = [outcome for outcome in pool.run(keys) if not isinstance(outcome, Lost)]
    assert sorted(str(key) for _, key in ended) == sorted(map(str, keys))
    played = {worker: [key.task for each, key in ended if each == worker] for worker, _ in ended}
    assert len(played) <= 2
    changes = sum(before != after for tasks in played.values() for before, after in pairwise(["", *tasks]))
    assert changes <= 5, "each task is one worker's, and the last one is shared"


class CountingLink:
    def __init__(self) -> None:
        self.sent = list[object]()

    def send(self, message: object) -> None:
        self.sent.append(message)


def test_heartbeats_are_limited_in_time_and_not_by_steps(monkeypatch: pytest.MonkeyPatch):
    now, link, simulator = 100.0, CountingLink(), PlaneSimulator(PLANE)
    monkeypatch.setattr("sim_eval.evaluation.workers.time.monotonic", lambda: now)
    recorder = HeartbeatRecorder(link)  # type: ignore[arg-type]
    recorder.start(simulator, MANIFEST.keys[0], "go")
    for _ in range(1000):  # a step takes a millisecond
        now += 0.001
        recorder.after_act(simulator, Status(False, 0))
    recorder.finish(simulator, False)
    assert 5 <= len(link.sent) <= 1.0 / HEARTBEAT + 1
    now += 30  # and none is missing after a slow step
    recorder.after_act(simulator, Status(False, 0))
    assert len(link.sent) <= 1.0 / HEARTBEAT + 2
    assert isinstance(link.sent[-1], Heartbeat)


class Elsewhere(FakePolicy):
    """A policy on a GPU."""

    device = torch.device("cuda")


def test_auto_shares_a_policy_that_computes_elsewhere(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sim_eval.evaluation.workers.available_cores", lambda: 3)
    monkeypatch.setattr("sim_eval.evaluation.workers.available_memory", lambda: 10**13)
    here, gpu = wander(), Elsewhere(lambda request: np.zeros((1, 2)))

    def resolved(
        policy: FakePolicy, episodes: int = 100, reference: str = "other", **options: object
    ) -> tuple[object, object]:
        config = RolloutConfig(reference, **options)  # type: ignore[arg-type]
        chosen = with_workers(config, PolicySource.of(config), policy, episodes)
        return chosen.workers, chosen.batch

    assert resolved(here) == (3, None)
    assert resolved(here, episodes=4) == (1, None)
    assert resolved(gpu) == (3, 1)
    assert resolved(gpu, batch=8) == (3, 8)
    assert resolved(gpu, episodes=4) == (1, None)
    assert resolved(gpu, backend="ray") == (3, None)
    assert resolved(gpu, workers=5) == (5, None)
    assert resolved(here, reference="ws://localhost:8000") == (3, 1)


@pytest.mark.parametrize("size", [1, 2])
def test_one_policy_for_all_answers_as_their_own_would(job: Callable[..., FaultyJob], alone: Path, size: int):
    policy, asked = wander(), []
    predict = policy.predict
    policy.predict = lambda requests: (asked.append(len(requests)), predict(requests))[1]  # type: ignore[method-assign]
    central = job(asks=True, faults={2: ("kill", 1)}, start="together")
    play_in_workers(central, batcher=Batcher(policy, size, 60.0))
    assert lines(central.run) == lines(alone)
    assert trajectories(central.run) == trajectories(alone)
    assert set(asked) == set(range(1, size + 1))


class Asker:
    def __init__(self, index: int) -> None:
        self.index, self.answers = index, list[Answer]()

    def send(self, message: Answer) -> None:
        self.answers.append(message)


def question(index: int) -> Question:
    simulator = PlaneSimulator(PLANE)
    simulator.reset(MANIFEST.keys[index])
    observation = observe_task(simulator, PLANE.instruction(MANIFEST.keys[index]))
    return Question(PolicyRequest(observation, MANIFEST.keys[index], 0, simulator.spec.action))


def test_questions_wait_for_a_full_batch_for_everybody_or_for_the_bound():
    policy = FakePolicy(lambda request: np.full((1, 2), request.key.index / 100))
    askers = [Asker(index) for index in range(5)]
    subject, hasty = Batcher(policy, 4, 60.0), Batcher(policy, 4, 0.0)
    for asker in askers[:3]:
        subject.add(asker, question(asker.index))
        subject.answer(busy=5)
    assert not any(asker.answers for asker in askers)  # a fourth may come
    assert subject.holds(askers[0])
    subject.forget(askers[0])
    subject.answer(busy=2)  # nobody else can come
    assert [len(asker.answers) for asker in askers] == [0, 1, 1, 0, 0]
    (answer,) = askers[2].answers
    assert isinstance(answer, ActionChunk)
    assert answer.actions[0, 0] == 0.02
    assert not subject.holds(askers[2])
    hasty.add(askers[0], question(0))
    hasty.answer(busy=5)
    assert len(askers[0].answers) == 1
    for asker in askers:
        subject.add(asker, question(asker.index))
    subject.answer(busy=8)
    assert [subject.holds(asker) for asker in askers] == [False] * 4 + [True]


def test_a_question_that_breaks_the_policy_costs_its_episode_only():
    def answer(request: PolicyRequest) -> FloatArray:
        if request.key.index == 1:
            raise ArithmeticError("no such angle")
        return np.zeros((1, 2))

    batcher, askers = Batcher(FakePolicy(answer), 3, 60.0), [Asker(index) for index in range(3)]
    for asker in askers:
        batcher.add(asker, question(asker.index))
    batcher.answer(busy=3)
    assert [type(asker.answers[0]) for asker in askers] == [ActionChunk, Failure, ActionChunk]
    (failure,) = askers[1].answers
    assert isinstance(failure, Failure)
    assert f"{type(failure.error()).__name__}: {failure.error()}" == "ArithmeticError: no such angle"


def test_two_workers_with_the_real_simulator_and_network(tmp_path: Path):
    """Videos, trajectories and lines are those of one process; workers load their own copies, or ask one policy."""
    arguments = {"policy": "deep_llama", "task": "robosuite/Lift", "episodes": 2, "video": "failures", "device": "cpu"}
    for name, more in {"one": {}, "two": {"workers": 2}, "asking": {"workers": 2, "batch": 1}}.items():
        assert main(RolloutConfig(**arguments, **more, out=tmp_path / name)) == 0
    for name in ("two", "asking"):
        assert lines(tmp_path / name) == lines(tmp_path / "one")
        assert files(tmp_path / name) == files(tmp_path / "one")
        assert {path.name for path in (tmp_path / name).rglob("*.mp4")} == {
            path.name for path in (tmp_path / "one").rglob("*.mp4")
        }
