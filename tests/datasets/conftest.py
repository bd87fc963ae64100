"""Small synthetic episodes: real arrays with the right meaning, no simulator."""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import pytest

from sim_eval.core.types import ActionSpec, CameraView, EpisodeKey, Observation, RenderConfig, WorkspaceBox
from sim_eval.datasets.episode_file import Episode

EpisodeMaker: TypeAlias = Callable[..., Episode]

WORKSPACE = WorkspaceBox((-0.2, -0.2, 0.81), (0.2, 0.2, 1.1))
ACTION = ActionSpec(
    tuple("abc"), (-1.0,) * 3, (1.0,) * 3, "ee_delta_position", 20.0, frame="world", metres_per_unit=0.05
)


@pytest.fixture(autouse=True)
def _denormal_numbers() -> None:
    """A policy that an earlier test loaded made torch flush them to zero in this process."""
    if torch := sys.modules.get("torch"):
        torch.set_flush_denormal(False)


def _view(rng: np.random.Generator, height: int, width: int) -> CameraView:
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    pose = np.eye(4)
    pose[:3, :3] = rotation * np.sign(np.linalg.det(rotation))
    pose[:3, 3] = rng.normal(size=3)
    intrinsics = np.array([[rng.uniform(50, 60), 0, width / 2], [0, rng.uniform(50, 60), height / 2], [0, 0, 1]])
    return CameraView(
        rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
        rng.uniform(0.3, 2, (height, width)).astype(np.float32),
        intrinsics,
        pose,
    )


def _episode(index: int = 0, steps: int = 5, height: int = 12, width: int = 16, **changes: object) -> Episode:
    rng = np.random.default_rng([index, steps])
    actions = rng.uniform(-1, 1, (steps, 3))
    observations = [
        Observation(
            {name: _view(rng, height, width) for name in ("agentview", "robot0_eye_in_hand")},
            {"eef_pos": rng.normal(size=3), "gripper_qpos": rng.normal(size=2)},
            "lift the cube",
            WORKSPACE,
        )
        for _ in range(steps)
    ]
    episode = Episode(
        key=EpisodeKey("robosuite/LiftWide", "train", index),
        instruction="lift the cube",
        workspace=WORKSPACE,
        robot="Panda",
        action=ACTION,
        observations=observations,
        actions=actions,
        executed_actions=actions + rng.normal(size=actions.shape),
        states=rng.normal(size=(steps, 11)),
        success=np.arange(steps) == steps - 1,
        phases=np.arange(steps, dtype=np.int64) // 2,
        provenance={"env_args": '{"env_name": "Lift"}', "model_file": "<mujoco/>"},
        versions={"mujoco": "3.3.0"},
        render_config=RenderConfig("fast", height, width),
    )
    return replace(episode, **changes)  # type: ignore[arg-type]


@pytest.fixture
def make_episode() -> EpisodeMaker:
    """``make_episode(index, steps, height, width, **changed fields)``, the same for the same arguments."""
    return _episode
