"""Calibration, proved on rendered scenes: pixels stand in the world where the simulator says."""

import numpy as np
import pytest
from scipy.spatial import cKDTree

from sim_eval.core.cameras import intrinsics_from_fovy, project, unproject
from sim_eval.core.types import CameraView, EpisodeKey, FloatArray
from sim_eval.envs.robosuite_sim import RobosuiteSimulator

TASK = "robosuite/LiftWide"
CUBE = "cube_g0_vis"


def start(simulator: RobosuiteSimulator, index: int, steps: int = 6) -> None:
    """An episode a little under way, so that the wrist camera has moved."""
    key = EpisodeKey(TASK, "val", index)
    simulator.reset(key)
    rng = key.rng("test")
    for _ in range(steps):
        simulator.act(rng.uniform(-0.5, 0.5, 7))


def geom(simulator: RobosuiteSimulator, name: str) -> int:
    return int(simulator._model.geom(name).id)


def distance_to_box(points: FloatArray, half_size: FloatArray) -> FloatArray:
    """Distance [N] of points [N, 3], in the box's frame, from the surface of the box."""
    beyond = np.abs(points) - half_size
    outside = np.linalg.norm(np.maximum(beyond, 0), axis=1)
    return np.abs(outside + np.minimum(beyond.max(axis=1), 0))


def test_project_inverts_unproject() -> None:
    rng = np.random.default_rng(0)
    pose = np.eye(4)
    pose[:3, :3] = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    pose[:3, 3] = rng.standard_normal(3)
    depth = rng.uniform(0.1, 3, (40, 60)).astype(np.float32)
    view = CameraView(np.zeros((40, 60, 3), np.uint8), depth, intrinsics_from_fovy(50, 40, 60), pose)
    pixels, z = project(unproject(view), view.intrinsics, pose)
    columns, rows = np.meshgrid(np.arange(60) + 0.5, np.arange(40) + 0.5)
    np.testing.assert_allclose(pixels, np.stack([columns, rows], -1), atol=1e-9)
    np.testing.assert_allclose(z, depth, atol=1e-9)


@pytest.mark.parametrize("mode", ["fast", "faithful"])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_cube_surface_stands_where_the_simulator_says(mode: str, index: int, request: pytest.FixtureRequest) -> None:
    simulator: RobosuiteSimulator = request.getfixturevalue(mode)
    start(simulator, index)
    observation, state = simulator.observe(), simulator.privileged()
    half_size = simulator._model.geom_size[geom(simulator, CUBE)]
    seen = 0
    for name, view in observation.views.items():
        shows_cube = simulator.segmentation(name) == geom(simulator, CUBE)
        points = (unproject(view)[shows_cube] - state["cube_pos"]) @ state["cube_mat"]
        assert np.all(distance_to_box(points, half_size) < 0.002), name
        seen += len(points)
    assert seen > 50


def test_clouds_of_the_cameras_agree(fast: RobosuiteSimulator) -> None:
    start(fast, 3)
    top = {}
    for name, view in fast.observe().views.items():
        points = unproject(view)[fast.segmentation(name) == geom(fast, CUBE)]
        top[name] = points[points[:, 2] > points[:, 2].max() - 0.002]
    assert all(len(points) > 20 for points in top.values())
    # The top face is seen by both: what is nearer to the arm's camera lies within a pixel of the other's cloud.
    distance, _ = cKDTree(top["wrist"]).query(top["agentview"])
    assert np.median(distance) < 0.003
    assert abs(top["wrist"][:, 2].mean() - top["agentview"][:, 2].mean()) < 0.0005


def test_gripper_stands_where_proprioception_says(fast: RobosuiteSimulator) -> None:
    start(fast, 4)
    observation = fast.observe()
    view = observation.views["agentview"]
    pixel, depth = project(observation.proprio["eef_pos"], view.intrinsics, view.camera_to_world)
    column, row = pixel.astype(int)
    fingers = {geom(fast, f"gripper0_right_finger{i}_visual") for i in (1, 2)}
    around = fast.segmentation("agentview")[max(row - 8, 0) : row + 8, max(column - 8, 0) : column + 8]
    assert fingers & set(around.flatten().tolist())
    assert 0.3 < depth < 1.5


def test_fast_equals_faithful_on_undecimated_geoms(fast: RobosuiteSimulator, faithful: RobosuiteSimulator) -> None:
    """Segmentation on every undecimated geom, and depth there to 1 mm, save where a decimated silhouette moved."""
    for index in range(4):
        start(fast, index)
        start(faithful, index)
        decimated = list(fast._scene_camera._renderer("agentview").decimated)
        assert decimated
        for name, view in fast.observe().views.items():
            mine, theirs = fast.segmentation(name), faithful.segmentation(name)
            robot = np.isin(mine, decimated) | np.isin(theirs, decimated)
            both = ~robot
            assert both.mean() > 0.5
            assert np.array_equal(mine[both], theirs[both]), name
            error = np.abs(view.depth - faithful.observe([name]).views[name].depth)[both]
            assert error.max() < 0.001, name
            # The silhouettes themselves move by a pixel or two, not more: few pixels change sides.
            assert (np.isin(mine, decimated) != np.isin(theirs, decimated)).mean() < 0.02
