"""Runs on the plane that tests of ``sim_eval.verify`` record, and the command itself in this process."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_simulator import PLANE, FakePolicy, PlaneSimulator, wander

from sim_eval.configs import RolloutConfig
from sim_eval.console import run
from sim_eval.envs.tasks import get_task
from sim_eval.evaluation.engine import RolloutProtocol, run_episode
from sim_eval.evaluation.manifest import Manifest
from sim_eval.evaluation.run_folder import open_run
from sim_eval.evaluation.trajectory import TrajectoryRecorder, trajectory_path
from sim_eval.policies.policy import Policy, PolicySpec
from sim_eval.verify import PROGRAM, VerifyArguments, main

PROTOCOL = RolloutProtocol()
MANIFEST = Manifest.plan([PLANE.name], "test", 0, 8)
SEEING = PolicySpec("wander", cameras={"side": (32, 32)}, digest="abc")


class Program:
    """The verify command in this process, on the plane."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys
        self.simulator(PlaneSimulator(PLANE))

    def simulator(self, simulator: PlaneSimulator) -> None:
        """From now on the task is this simulator."""
        task = replace(PLANE, factory=lambda task, options: simulator)
        self._monkeypatch.setattr("sim_eval.envs.tasks.own_tasks", lambda: {PLANE.name: task})
        get_task.cache_clear()

    def __call__(self, folder: Path, *options: str) -> tuple[int, str]:
        """Its exit code and what it printed; the progress bar only when it failed."""
        self._monkeypatch.setattr(sys, "argv", ["verify", str(folder), *options])
        with pytest.raises(SystemExit) as stop:
            run(main, VerifyArguments, PROGRAM)
        shown = self._capsys.readouterr()
        code = int(stop.value.code or 0)
        return code, shown.err if code == 2 else shown.out


def play(
    folder: Path,
    policy: Policy,
    simulator: PlaneSimulator | None = None,
    config: RolloutConfig | None = None,
    episodes: int = 8,
    protocol: RolloutProtocol = PROTOCOL,
) -> Path:
    simulator, recorder = simulator or PlaneSimulator(PLANE), TrajectoryRecorder(policy.spec, folder)
    with open_run(folder, MANIFEST, policy.spec, protocol, {PLANE.name: simulator.spec}, config) as opened:
        for key in opened.remaining[:episodes]:
            opened.append(run_episode(simulator, policy, key, protocol, recorder))
    return folder


def seeing(policy: FakePolicy | None = None) -> FakePolicy:
    """The wanderer, or another, with a camera."""
    policy = policy or wander()
    policy.spec = SEEING
    return policy


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]


def file_of(folder: Path, index: int) -> Path:
    return trajectory_path(folder, MANIFEST.keys[index])
