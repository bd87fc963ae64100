"""The real simulator and network: whoever is killed, and however many workers share the work, the run is the same.

``SIM_EVAL_FULL=1 python -m pytest -m slow -s tests/sim_eval/test_real_kills.py`` runs it in full, about 20 minutes on
two cores: 200 episodes with a worker killed every 5 seconds, 20 kills of a whole run, 40 episodes a way of sharing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from faulty_workers import alive, files, lines

from sim_eval.evaluation.run_folder import EPISODES, read_run
from sim_eval.evaluation.trajectory import read_trajectory, trajectory_path

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
FULL = bool(os.environ.get("SIM_EVAL_FULL"))
PLAYED, KILLS, SHARED = (200, 20, 20) if FULL else (40, 3, 3)
CREWS, BATCHES = ((2, 4), (2, 4, 8)) if FULL else ((4,), (4,))
EVERY = 5.0  # seconds between two kills of a worker
ROUNDING = 1e-4  # between the answers to one question alone and in a batch; actions reach from -1 to 1


def start(out: Path, *more: str, tasks: str = "robosuite/Lift", episodes: int = PLAYED) -> subprocess.Popen[bytes]:
    """``python -m sim_eval.rollout`` without videos; what it says on stderr goes to a file beside the run folder."""
    command = [sys.executable, "-m", "sim_eval.rollout", "--policy", "deep_llama", "--device", "cpu", "--video", "none"]
    command += ["--task", tasks, "--episodes", str(episodes), "--out", str(out), *more]
    with out.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)


def finish(process: subprocess.Popen[bytes], out: Path) -> None:
    assert process.wait() == 0, out.with_suffix(".log").read_text()


def finished(out: Path) -> int:
    """Episodes that a run has kept."""
    log = out / EPISODES
    return log.read_bytes().count(b"\n") if log.exists() else 0


def workers_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    found = []
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children():
            with suppress(psutil.NoSuchProcess):  # it has just died
                if any("sim_eval.evaluation.workers" in word for word in child.cmdline()):
                    found.append(child)
    return found


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def same(out: Path, other: Path) -> None:
    assert lines(out) == lines(other)
    assert files(out) == files(other)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    finish(start(out, "--workers", "2"), out)
    assert finished(out) == PLAYED
    return out


def test_no_episode_is_lost_while_a_random_worker_is_killed_every_five_seconds(undisturbed: Path, tmp_path: Path):
    out, rng, killed = tmp_path / "run", np.random.default_rng(0), 0
    process = start(out, "--workers", "2", "--retries", "100")
    wait_until(lambda: process.poll() is not None or finished(out) > 0)
    while process.poll() is None:
        if living := workers_of(process):
            living[rng.integers(len(living))].kill()
            killed += 1
        with suppress(subprocess.TimeoutExpired):
            process.wait(EVERY)
    finish(process, out)
    told = out.with_suffix(".log").read_text()
    starting, playing = told.count("start of a worker: its worker was killed"), told.count(": its worker was killed")
    print(f"{PLAYED} episodes, {killed} workers killed, {playing - starting} of them while they ran an episode")
    assert playing > starting  # or no episode was ever hit
    same(out, undisturbed)


def test_a_run_killed_at_random_moments_and_resumed_equals_one_that_was_not(undisturbed: Path, tmp_path: Path):
    out, rng, kept = tmp_path / "run", np.random.default_rng(0), [0]
    for _ in range(KILLS):
        process = start(out, "--workers", "2")
        wait_until(lambda process=process: process.poll() is not None or finished(out) > kept[-1])
        time.sleep(rng.uniform(0.0, 1.5))
        workers = workers_of(process)
        assert process.poll() is None
        process.kill()
        process.wait()
        assert len(workers) == 2
        wait_until(lambda workers=workers: not any(alive(worker.pid) for worker in workers))  # they end by themselves
        kept.append(finished(out))
        assert kept[-2] < kept[-1] < PLAYED
    finish(start(out, "--workers", "2"), out)
    torn = out.with_suffix(".log").read_text().count("removed a torn last line")
    print(f"{KILLS} kills, after {kept[1:]} of {PLAYED} episodes; {torn} torn lines")
    same(out, undisturbed)


def parted(out: Path, other: Path) -> str:
    """What of a run's episodes is not as in another one, in one line."""
    runs = [read_run(folder) for folder in (out, other)]
    pairs = list(zip(runs[0].episodes, runs[1].episodes, strict=True))
    unlike = {
        name: sum(getattr(here, name) != getattr(there, name) for here, there in pairs)
        for name in ("success", "success_end", "phase", "steps")
    }
    unequal, largest, first = 0, 0.0, []
    for here, _ in pairs:
        actions = [read_trajectory(trajectory_path(folder, here.key)).actions for folder in (out, other)]
        shared = min(map(len, actions))
        distance = np.abs(actions[0][:shared] - actions[1][:shared]).max(axis=1)
        if actions[0].tobytes() != actions[1].tobytes():
            unequal += 1
            first.append(int(np.flatnonzero(distance)[0]) if distance.any() else shared)
            largest = max(largest, float(distance.max()))
    counts = ", ".join(f"{name} {count}" for name, count in unlike.items())
    rates = [sum(result.success for result in run.episodes) for run in runs]
    return (
        f"of {len(pairs)} episodes differ: actions {unequal}, {counts}; successes {rates[0]} and {rates[1]}; "
        f"largest difference of an action {largest:.3g}, from control step {sorted(first)[:1]} on at the earliest"
    )


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("serial") / "run"
    finish(start(out, tasks="robosuite/Lift,robosuite/Stack", episodes=SHARED), out)
    return out


@pytest.mark.parametrize("workers", CREWS)
@pytest.mark.parametrize("batch", [["--deterministic"], ["--batch", "1"]], ids=" ".join)
def test_any_number_of_workers_gives_the_same_bits(serial: Path, tmp_path: Path, workers: int, batch: list[str]):
    out = tmp_path / "run"
    more = ["--workers", str(workers), *batch]
    finish(start(out, *more, tasks="robosuite/Lift,robosuite/Stack", episodes=SHARED), out)
    print(" ".join(more), parted(out, serial))
    same(out, serial)


@pytest.mark.parametrize("workers", BATCHES)
def test_a_batch_differs_by_rounding_only(serial: Path, tmp_path: Path, workers: int):
    """The first answer of an episode is to the same question; what comes of it later may part by more."""
    out = tmp_path / "run"
    more = ["--workers", str(workers), "--batch", "8", "--wait", "100"]
    finish(start(out, *more, tasks="robosuite/Lift,robosuite/Stack", episodes=SHARED), out)
    print(" ".join(more), parted(out, serial))
    for result in read_run(serial).episodes:
        one, batched = (read_trajectory(trajectory_path(folder, result.key)) for folder in (serial, out))
        assert batched.seen[0] == one.seen[0]
        np.testing.assert_allclose(batched.chunk(0), one.chunk(0), rtol=0, atol=ROUNDING)
