"""A point on a plane that must come to a goal: the Simulator protocol in numpy, for tests of what runs episodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from sim_eval.core.types import (
    ActionChunk,
    ActionSpec,
    CameraView,
    EnvironmentSpec,
    EpisodeKey,
    FloatArray,
    RenderConfig,
    SensorReadings,
    Simulator,
    Snapshot,
    Status,
    Task,
    WorkspaceBox,
)
from sim_eval.policies.policy import PolicyRequest, PolicySpec

ACTION = ActionSpec(
    ("dx", "dy"), (-1.0, -1.0), (1.0, 1.0), "ee_delta_position", 20.0, frame="world", metres_per_unit=0.1
)
REACH = 0.25  # metres from the goal that count as success; a step is 0.1


class PlaneSimulator:
    """``observed`` holds the cameras of every observation asked for; ``breaks_at`` is the step whose act raises."""

    def __init__(self, task: Task, breaks_at: int | None = None) -> None:
        self.task = task
        self.spec = EnvironmentSpec("point", {"top": (32, 32), "side": (32, 32)}, {"eef_pos": 3}, ACTION)
        self.observed: list[tuple[str, ...]] = []
        self.breaks_at = breaks_at

    def reset(self, key: EpisodeKey) -> None:
        self._key, self._steps = key, 0
        self._position = np.zeros(2)
        self._goal = np.array([1.0, 0.0]) + key.rng("reset").uniform(-0.05, 0.05, 2)

    def act(self, action: FloatArray) -> Status:
        if self._steps == self.breaks_at:
            raise RuntimeError("the physics\ndiverged")
        self._steps += 1
        self._position = self._position + 0.1 * action
        distance = float(np.linalg.norm(self._position - self._goal))
        return Status(distance < REACH, 2 if distance < REACH else int(distance < 0.6))

    def observe(self, cameras: Sequence[str] | None = None) -> SensorReadings:
        names = tuple(self.spec.cameras) if cameras is None else tuple(cameras)
        self.observed.append(names)
        rgb = np.full((32, 32, 3), 40 + self._steps, np.uint8)
        depth = np.tile(np.linspace(0.5, 1.5, 32, dtype=np.float32), (32, 1))
        pose = np.eye(4)
        pose[2, 3] = -1.0
        view = CameraView(rgb, depth, np.eye(3), pose)
        proprio = {"eef_pos": np.append(self._position, 0.0)}
        return SensorReadings({name: view for name in names}, proprio)

    def snapshot(self) -> Snapshot:
        return Snapshot(np.concatenate([self._position, self._goal]))

    def privileged(self) -> Mapping[str, FloatArray]:
        return {"goal": self._goal}

    def provenance(self) -> Mapping[str, str]:
        return {"env_args": "{}", "model_file": ""}

    def close(self) -> None:
        pass


def plane(task: Task, options: RenderConfig) -> Simulator:
    return PlaneSimulator(task)


BOX = WorkspaceBox((-1.0, -1.0, -0.5), (1.0, 1.0, 0.5))
PLANE = Task("fake/Plane", (("go to the goal", "reach the goal"),), 30, BOX, ("near", "goal"), plane)
LINE = replace(PLANE, name="fake/Line")


class FakePolicy:
    """Answers by a function of the request; keeps the requests."""

    def __init__(self, answer: Callable[[PolicyRequest], object], spec: PolicySpec | None = None) -> None:
        self.spec = spec or PolicySpec("fake")
        self.requests: list[PolicyRequest] = []
        self._answer = answer

    def predict(self, requests: Sequence[PolicyRequest]) -> list[ActionChunk]:
        self.requests.extend(requests)
        answers = [self._answer(request) for request in requests]
        return [answer if isinstance(answer, ActionChunk) else ActionChunk(np.asarray(answer)) for answer in answers]


def constant(*action: float, horizon: int = 8) -> FakePolicy:
    """The same action always."""
    return FakePolicy(lambda request: np.tile(action, (horizon, 1)))


def wander() -> FakePolicy:
    """Towards the goal with noise from (key, replan): succeeds in some episodes and at different steps."""

    def answer(request: PolicyRequest) -> FloatArray:
        rng = request.key.rng(f"policy/{request.policy_call}")
        return np.array([0.35, 0.0]) + rng.normal(0, 0.9, (8, 2))

    return FakePolicy(answer, PolicySpec("wander", digest="abc"))
