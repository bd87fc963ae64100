"""The rollout command on the real simulator: what it prints, keeps, resumes and refuses."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from sim_eval.configs import RolloutConfig
from sim_eval.console import parse, run
from sim_eval.core.types import ActionChunk, RenderConfig
from sim_eval.evaluation.engine import RolloutProtocol
from sim_eval.evaluation.manifest import Manifest
from sim_eval.evaluation.run_folder import open_run, read_run
from sim_eval.leaderboard import LeaderboardArguments
from sim_eval.leaderboard import main as leaderboard
from sim_eval.policies.baselines import ZeroPolicy
from sim_eval.policies.policy import PolicyRequest
from sim_eval.reporting.run_report import next_steps
from sim_eval.rollout import PROGRAM, main
from sim_eval.verify import VerifyArguments
from sim_eval.verify import main as verify

ROOT = Path(__file__).parents[2]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The command in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["rollout", *arguments])
    with pytest.raises(SystemExit) as stop:
        run(main, RolloutConfig, PROGRAM)
    return int(stop.value.code or 0)


def identities(folder: Path) -> list[dict[str, object]]:
    lines = (folder / "episodes.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three scripted episodes, without videos."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert main(RolloutConfig(policy="scripted", episodes=3, video="none", out=folder)) == 0
    return folder


def test_it_prints_one_json_object_and_writes_videos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], finished: Path
):
    arguments = ["--policy", "scripted", "--episodes", "2", "--out", str(tmp_path / "run"), "--json"]
    assert call(monkeypatch, *arguments) == 0
    shown = capfd.readouterr()
    (task,) = json.loads(shown.out)["tasks"]
    assert (task["task"], task["episodes"]) == ("robosuite/LiftWide", 2)
    assert task["interval"][0] <= task["rate"] <= task["interval"][1]
    assert sum(task["phases"].values()) == task["completed"] + task["errors"] == 2
    assert "success" in shown.err  # the progress bar
    videos = sorted(path.name for path in (tmp_path / "run" / "videos").iterdir())
    outcome = "success" if identities(tmp_path / "run")[0]["success"] else "failure"
    assert videos == [f"robosuite-LiftWide_test_00000_{outcome}.mp4"]  # of the first episode of each task
    # Neither watching nor the number of episodes changes an episode.
    assert identities(tmp_path / "run") == identities(finished)[:2]
    assert leaderboard(LeaderboardArguments((tmp_path / "run", finished))) == 0


def test_it_ends_with_what_to_type_next(finished: Path):
    results = read_run(finished).episodes
    more, replay = next_steps(finished, results).splitlines()
    assert more == "n = 3 a task leaves wide intervals; for narrower ones: --episodes 200"
    command = shlex.split(replay.partition(": ")[2])
    assert command[:3] == ["python", "-m", "sim_eval.verify"]
    assert verify(parse(VerifyArguments, "verify", command[3:])) == 0
    assert next_steps(finished, results * 20) == replay


def test_a_run_is_repeated_from_its_own_run_json(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    options = ["--config", str(finished / "run.json"), "--episodes", "2", "--out", str(tmp_path / "run")]
    assert call(monkeypatch, *options) == 0
    assert identities(tmp_path / "run") == identities(finished)[:2]


@pytest.mark.parametrize(("asked", "shown"), [(None, "faithful"), ("fast", "fast")])
def test_a_policy_is_shown_what_it_was_trained_on(
    asked: Literal["fast"] | None, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    trained = replace(ZeroPolicy.spec, render="faithful")
    monkeypatch.setattr(ZeroPolicy, "spec", trained)
    assert main(RolloutConfig(policy="zero", episodes=1, video="none", out=tmp_path / "run", render=asked)) == 0
    assert read_run(tmp_path / "run").protocol.render.mode == shown


def test_a_policy_whose_cameras_differ_in_size_sees_each_at_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sizes = {"agentview": (48, 64), "wrist": (32, 32)}
    shapes = []

    class Seeing(ZeroPolicy):
        spec = replace(ZeroPolicy.spec, cameras=sizes)

        def predict(self, requests: Sequence[PolicyRequest]) -> list[ActionChunk]:
            views = requests[0].observation.views
            shapes.append({name: view.depth.shape for name, view in views.items()})
            return super().predict(requests)

    monkeypatch.setattr("sim_eval.policies.baselines.ZeroPolicy", Seeing)
    config = RolloutConfig("zero", "robosuite/Lift", 1, n_action_steps=50, video="all", out=tmp_path / "run")
    assert main(config) == 0
    assert shapes
    assert all(shape == sizes for shape in shapes)
    run = read_run(tmp_path / "run")
    assert run.spec.cameras == sizes
    assert run.protocol.render == RenderConfig("fast", 48, 64, camera_sizes={"wrist": (32, 32)})
    assert verify(VerifyArguments(tmp_path / "run", strict=True, policy=True)) == 0
    assert main(replace(config)) == 0  # the finished run is taken for the same one


def test_interrupted_and_resumed_equals_finished(
    tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "run"
    arguments = ["--policy", "scripted", "--episodes", "3", "--video", "all", "--out", str(folder)]
    process = subprocess.Popen(
        [sys.executable, "-m", "sim_eval.rollout", *arguments],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    log = folder / "episodes.jsonl"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_bytes().count(b"\n") >= 1):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does: the video encoder gets it as well
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    kept = len(identities(folder))
    assert 1 <= kept < 3
    assert f"interrupted: {kept} of 3 episodes kept in {folder}; the same command with --out {folder} continues" in err
    assert "Traceback" not in err + out
    assert call(monkeypatch, *arguments) == 0
    assert identities(folder) == identities(finished)
    assert not list(folder.rglob(".partial-*"))
    assert "3/3" in capsys.readouterr().out


def test_another_run_in_the_folder_is_refused(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    assert call(monkeypatch, "--policy", "zero", "--episodes", "3", "--out", str(finished)) == 2
    assert "policy name was scripted, is now zero" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--policy", "zero", "--task", "robosuite/Flying"], "unknown task 'robosuite/Flying'"),
        (["--policy", "zero", "--task", "robosuite/Lft"], "did you mean robosuite/Lift"),
        (["--policy", "genius"], "unknown policy 'genius'"),
        (["--policy", "zero", "--split", "exam"], "exam"),
        (["--policy", "zero", "--episodes", "0"], "--episodes: input should be greater than or equal to 1, not 0"),
        (["--policy", "zero", "--episodes", "-3"], "--episodes: input should be greater than or equal to 1, not -3"),
        (["--policy", "zero", "--episodes", "many"], "many"),
        (["--policy", "zero", "--first", "-1"], "--first: input should be greater than or equal to 0"),
        (["--policy", "zero", "--n-action-steps", "0"], "--n-action-steps: input should be greater than or equal to 1"),
        (["--policy", "zero", "--euler-steps", "0"], "--euler-steps: input should be greater than or equal to 1"),
        (["--policy", "zero", "--euler-steps", "2"], "policy 'zero' has no network: leave --euler-steps out"),
        (["--policy", "zero", "--weights", "int8"], "policy 'zero' has no network: leave --weights out"),
        (["--policy", "random", "--compile"], "policy 'random' has no network: leave --compile out"),
        (["--policy", "zero", "--workers", "0"], "--workers: input should be auto or a whole number from 1 on, not 0"),
        (["--policy", "zero", "--batch", "-1"], "--batch: input should be greater than or equal to 0"),
        (["--policy", "zero", "--watchdog", "0"], "--watchdog: input should be greater than or equal to 1"),
        (["--policy", "zero", "--retries", "-1"], "--retries: input should be greater than or equal to 0"),
        (["--policy", "zero", "--deterministic", "--batch", "2"], "leave --batch 2 out"),
        (["--policy", "zero", "--video", "some"], "some"),
        (["--policy", "zero", "--video", "0"], "--video"),
        (["--policy", "zero", "--video-size", "64"], "--video-size: input should be greater than or equal to 128"),
        (["--policy", "zero", "--speed", "9"], "--speed"),
        ([], "--policy"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, *arguments) != 0
    shown = capfd.readouterr()
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert words in shown.err
    assert not shown.out
    assert not list(tmp_path.iterdir())


def test_an_unwritable_out_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    (tmp_path / "file").touch()
    assert call(monkeypatch, "--policy", "zero", "--out", str(tmp_path / "file" / "run")) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: cannot write {tmp_path / 'file' / 'run'}")


def test_run_json_holds_the_configuration(tmp_path: Path):
    config = RolloutConfig("zero", "robosuite/Lift", 3, "val", 5, "none", out=Path("x"), device="cpu", json=True)
    config = replace(config, render="faithful", n_action_steps=2, csv=True)
    config = replace(config, weights="int8", compile=True, workers=3, batch=1, deterministic=True, keys=Path("k.toml"))
    with open_run(tmp_path, Manifest.plan(["a"], "test", 0, 1), ZeroPolicy.spec, RolloutProtocol(), {}, config):
        pass
    assert read_run(tmp_path).config == config


def test_help_comes_at_once():
    """No simulator, network or statistics are imported for it."""
    code = (
        "import runpy, sys\nsys.argv = ['rollout', '--help']\n"
        "try: runpy.run_module('sim_eval.rollout', run_name='__main__', alter_sys=True)\n"
        "except SystemExit: print(sorted({'torch', 'robosuite', 'mujoco', 'h5py', 'scipy', 'PIL'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
    assert "--episodes" in result.stdout


@pytest.mark.slow
def test_a_policy_of_another_arm_runs_when_asked_to_and_is_ranked_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    task, folder = "robosuite/LiftWide@Sawyer", tmp_path / "other"
    options = ["--policy", "deep_llama", "--episodes", "1", "--video", "none", "--out", str(folder)]
    assert call(monkeypatch, *options, "--task", task) == 2
    shown = capfd.readouterr().err
    assert "robot: the policy was trained for Panda, the environment has Sawyer; rollout --other-robot scores" in shown
    assert not folder.exists()
    assert call(monkeypatch, *options, "--task", f"{task}@Sawyer") == 2
    assert call(monkeypatch, *options, "--task", task.replace("Sawyer", "UR5e"), "--other-robot") == 2
    assert "environment: proprio 'gripper_qpos' of length 2 is needed, the environment has 6" in capfd.readouterr().err
    assert call(monkeypatch, *options, "--task", task, "--other-robot") == 0
    run = read_run(folder)
    assert run.protocol == replace(RolloutProtocol(), other_robot=True)
    assert [(result.key.task, result.error) for result in run.episodes] == [(task, None)]
    assert json.loads((folder / "run.json").read_text())["environments"][task]["robot"] == "Sawyer"
    assert [path.name for path in (folder / "trajectories").iterdir()] == ["robosuite-LiftWide@Sawyer_test_00000.h5"]
    assert verify(VerifyArguments(folder, strict=True)) == 0
    assert call(monkeypatch, *options[:-1], str(tmp_path / "own"), "--task", "robosuite/LiftWide", "--other-robot") == 0
    assert read_run(tmp_path / "own").protocol == RolloutProtocol()  # its own robot: nothing to say
    leaderboard(LeaderboardArguments((folder,)))
    assert "other robot than trained for" in capfd.readouterr().out
