"""Collecting several tasks by several workers: the same files as one process writes, whoever dies or is interrupted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from fake_simulator import FakePolicy, PlaneSimulator, constant, wander

from sim_eval.collect import main
from sim_eval.configs import CollectConfig
from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import ActionChunk, EpisodeKey, RenderConfig
from sim_eval.datasets.checks import check_episode, set_problems
from sim_eval.datasets.episode_file import episode_files, read_episode, read_header
from sim_eval.datasets.recorder import DemonstrationRecorder
from sim_eval.envs.tasks import get_task, suites
from sim_eval.evaluation.engine import EpisodeResult, RolloutProtocol, run_episode
from sim_eval.evaluation.scheduler import ATTEMPTS_BEFORE_GIVING_UP, EpisodeScheduler
from sim_eval.policies.policy import PolicyRequest, PolicySpec

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
ENTRY_POINTS = """
[sim_eval.tasks]
fake/Plane = fake_simulator:PLANE
fake/Line = fake_simulator:LINE

[sim_eval.policies]
wanderer = test_collect_many:make_wanderer
"""
DEADLY = 3  # index of the episode of fake/Plane that a wanderer with notes does not survive the first time


def make_wanderer(argument: str, device: str) -> FakePolicy:
    """A plugin's policy that succeeds in some episodes.

    Args:
        argument: "" or a folder: then one episode of its own kills its process, once; or "slow", "lost" on fake/Line.
    """
    usual = wander()

    def answer(request: PolicyRequest) -> ActionChunk:
        if argument == "slow":
            time.sleep(0.01)
        elif argument == "lost":
            return ActionChunk(np.zeros((8, 2)) if request.key.task == "fake/Line" else np.tile([1.0, 0.0], (8, 1)))
        elif argument and request.key == EpisodeKey("fake/Plane", "train", DEADLY):
            note = Path(argument) / "died"
            if not note.exists():
                note.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return usual.predict([request])[0]

    return FakePolicy(answer, PolicySpec("wanderer"))


@pytest.fixture(autouse=True, scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The fake tasks and the policy as another package, which the workers find too."""
    folder = tmp_path_factory.mktemp("site")
    info = folder / "fakes-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fakes\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        patch.syspath_prepend(str(folder))
        patch.setitem(suites(), "fake/Both", ("fake/Plane", "fake/Line"))
        get_task.cache_clear()
        yield folder
    get_task.cache_clear()


def arguments(out: Path, **changes: object) -> CollectConfig:
    options = {"task": "fake/Both", "out": out, "policy": "wanderer", "episodes": 6, **changes}
    return CollectConfig(**options)  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in episode_files(folder)}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, installed: Path) -> Path:
    """What one process collects."""
    out = tmp_path_factory.mktemp("alone")
    assert main(arguments(out)) == 0
    return out


def test_a_suite_goes_into_one_folder(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = episode_files(alone)
    assert [check_episode(file) for file in files] == [[]] * len(files)
    assert set_problems({file: read_header(file) for file in files}) == []
    names = list(contents(alone))
    assert [sum(name.startswith(f"fake-{task}_") for name in names) for task in ("Plane", "Line")] == [6, 6]
    indices = [int(name[-10:-5]) for name in names if name.startswith("fake-Plane_")]
    assert max(indices) >= 6  # some failed, or the tests here show little
    assert main(arguments(alone)) == 0
    assert "12 episodes of fake/Both, train (12 from before)" in capsys.readouterr().out


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_keep_the_episodes_that_one_process_keeps(alone: Path, tmp_path: Path, workers: int) -> None:
    assert main(arguments(tmp_path, workers=workers)) == 0
    assert contents(tmp_path) == contents(alone)


def test_as_many_workers_as_cores_by_default(alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim_eval.evaluation.workers.available_cores", lambda: 2)
    assert main(arguments(tmp_path)) == 0
    assert contents(tmp_path) == contents(alone)
    log, *_ = tmp_path.glob("*.attempts.jsonl")
    assert json.loads(log.read_text().splitlines()[0])["config"]["workers"] == 2


def test_a_worker_that_dies_costs_a_retry(alone: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes").mkdir()
    out = tmp_path / "out"
    assert main(arguments(out, workers=2, policy=f"wanderer:{tmp_path / 'notes'}")) == 0
    assert (tmp_path / "notes" / "died").exists()
    assert f"fake/Plane/train/{DEADLY:05d}: its worker was killed by SIGKILL" in capfd.readouterr().err
    assert contents(out) == contents(alone)


def test_interrupted_and_continued_equals_unbroken(alone: Path, tmp_path: Path, installed: Path) -> None:
    out = tmp_path / "out"
    command = ["--task", "fake/Plane,fake/Line", "--out", str(out), "--policy", "wanderer:slow", "--episodes", "6"]
    process = subprocess.Popen(
        [sys.executable, "-m", "sim_eval.collect", *command, "--workers", "2"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(installed), str(HERE), str(ROOT)])},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while len(episode_files(out)) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=30)
    kept = len(episode_files(out))
    assert process.returncode == 130
    assert 2 <= kept < 12
    assert f"interrupted: {kept} of 12 episodes kept in {out}; the same command continues" in told
    assert "Traceback" not in told
    assert main(arguments(out, workers=2)) == 0
    assert contents(out) == contents(alone)


def test_a_second_collector_in_the_folder_is_refused(tmp_path: Path, installed: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "sim_eval.collect", "--task", "fake/Plane", "--out", str(out)]
    command += ["--policy", "wanderer:slow"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(installed), str(HERE), str(ROOT)])}
    first = subprocess.Popen(
        [*command, "--episodes", "100000"], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 60
        while not episode_files(out):
            assert first.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        second = subprocess.run(
            [*command, "--episodes", "3"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert (second.returncode, second.stdout) == (2, "")
        assert second.stderr == (
            f"error: another process is collecting fake/Plane into {out}: wait until it ends or choose another --out\n"
        )
        with pytest.raises(SimEvalError, match="another process is collecting fake/Plane"):
            main(arguments(out))
        assert main(arguments(out, task="fake/Line", episodes=1)) == 0  # of which nobody collects anything
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    assert main(arguments(out, policy="wanderer:slow", episodes=1)) == 0  # a killed process leaves no lock


def test_what_failed_is_not_tried_again(alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    shutil.copytree(alone, out)
    notes = out / "fake-Plane_train.attempts.jsonl"
    lines = notes.read_text().splitlines()
    failed = [json.loads(line)["failed"] for line in lines[1:]]
    kept = {int(name[-10:-5]) for name in contents(out) if name.startswith("fake-Plane_")}
    assert failed
    assert sorted({*failed, *kept}) == list(range(max(kept) + 1))
    (out / f"fake-Plane_train_{max(kept):05d}.hdf5").unlink()
    assert main(arguments(out)) == 0
    assert "1 successes in 1 attempts" in capsys.readouterr().out
    assert contents(out) == contents(alone)
    notes.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:5])  # a kill has torn the last line
    (out / f"fake-Plane_train_{max(kept):05d}.hdf5").unlink()
    assert main(arguments(out)) == 0
    assert "1 successes in 2 attempts" in capsys.readouterr().out
    assert notes.read_text().splitlines() == lines
    notes.write_text(lines[0] + "\nnonsense\n")
    with pytest.raises(SimEvalError, match=r"attempts\.jsonl is damaged"):
        main(arguments(out))


def test_one_task_that_is_given_up_does_not_cost_the_others(tmp_path: Path) -> None:
    with pytest.raises(SimEvalError, match=rf"0 of {ATTEMPTS_BEFORE_GIVING_UP} episodes of fake/Line .*cannot"):
        main(arguments(tmp_path, task="fake/Line,fake/Plane", policy="wanderer:lost", episodes=2))
    assert [name.partition("_")[0] for name in contents(tmp_path)] == ["fake-Plane"] * 2


def outcome(key: EpisodeKey, success: bool) -> EpisodeResult:
    return EpisodeResult(key, "go", success, success, 9, 9 if success else None, "none", 3, None, 1.0)


@pytest.mark.parametrize("seed", range(20))
def test_whoever_is_quicker_the_same_episodes_are_tried(seed: int) -> None:
    rng = np.random.default_rng(seed)
    wins, wanted = rng.random(200) < rng.uniform(0.2, 1.0), int(rng.integers(1, 15))
    # What a run that was broken off has left.
    there = [int(index) for index in np.flatnonzero(wins)[:wanted] if rng.random() < 0.3 * (seed % 2)]
    scheduler, running = EpisodeScheduler("a/Task", "train", wanted, there), list[EpisodeKey]()
    tried = set()
    workers = int(rng.integers(1, 9))
    for _ in count():
        while len(running) < workers and (key := scheduler.next()):
            running.append(key)
            tried.add(key.index)
        if not running:
            break
        key = running.pop(int(rng.integers(len(running))))
        scheduler.end(outcome(key, bool(wins[key.index])))
    first = np.flatnonzero(wins)[:wanted].tolist()
    assert sorted(scheduler.kept) == first
    one_by_one = set(range(first[-1] + 1)) - set(there)
    assert tried <= one_by_one
    assert tried == one_by_one or there


def test_the_demonstrator_is_given_up_in_the_order_of_the_indices() -> None:
    scheduler = EpisodeScheduler("a/Task", "train", 30, [])
    keys = [key for _ in range(30) if (key := scheduler.next())]
    for key in keys[1:]:
        scheduler.end(outcome(key, False))
    assert not scheduler.given_up  # the first one may yet succeed, and had done so long ago in one process
    scheduler.end(outcome(keys[0], True))
    assert scheduler.given_up  # one of twenty-one is too few
    assert scheduler.next() is None
    subject = EpisodeScheduler("a/Task", "train", 30, [], keep_failures=True)
    for _ in range(30):
        key = subject.next()
        assert key
        subject.end(outcome(key, False))
    assert (subject.given_up, len(subject.kept)) == (False, 30)


def test_after_dry_runs_the_same_episodes_are_kept(alone: Path, tmp_path: Path) -> None:
    main(arguments(tmp_path / "out", dry_run_first=True))
    assert contents(tmp_path / "out") == contents(alone)


def test_an_episode_that_broke_off_after_a_success_is_kept_as_a_failure(tmp_path: Path) -> None:
    # The task's rule holds for some steps before the simulator raises, so the result is a failure, and so is the file.
    simulator = PlaneSimulator(get_task("fake/Plane"), breaks_at=9)
    recorder = DemonstrationRecorder(tmp_path, RenderConfig(height=32, width=32), keep_failures=True)
    key = EpisodeKey("fake/Plane", "train", 0)
    result = run_episode(simulator, constant(1.0, 0.0), key, RolloutProtocol(), recorder)
    assert result.error
    assert not result.success
    assert not read_header(recorder.written[0]).success
    episode = read_episode(recorder.written[0])
    assert episode.phases.max() == 2  # so the rule did hold
    assert not episode.success.any()
