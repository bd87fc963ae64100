"""The renderer: several at once, and meshes that lose faces but keep their place."""

from collections.abc import Mapping
from contextlib import closing

import numpy as np
import pytest

from sim_eval.core.decoding import decode, encode
from sim_eval.core.types import CameraView, EpisodeKey, RenderConfig, RenderMode
from sim_eval.envs import rendering
from sim_eval.envs.robosuite_sim import RobosuiteSimulator
from sim_eval.envs.tasks import get_task

KEY = EpisodeKey("robosuite/LiftWide", "val", 0)


def test_two_renderers_do_not_draw_into_each_other(fast: RobosuiteSimulator) -> None:
    fast.reset(KEY)
    before = fast.observe()
    other = get_task("robosuite/Lift").make(RenderConfig(height=64, width=96))
    other.reset(EpisodeKey("robosuite/Lift", "val", 1))
    small = other.observe()
    after = fast.observe()
    assert small.views["agentview"].depth.shape == (64, 96)
    for name in before.views:
        assert np.array_equal(before.views[name].depth, after.views[name].depth)
        assert np.array_equal(before.views[name].rgb, after.views[name].rgb)
    other.close()
    assert np.array_equal(fast.observe().views["wrist"].rgb, before.views["wrist"].rgb)


@pytest.mark.parametrize("task", ["robosuite/Lift", "metaworld/reach-v3"])
@pytest.mark.parametrize("mode", ["fast", "faithful"])
def test_each_camera_has_its_own_size(task: str, mode: RenderMode) -> None:
    """And the picture of a camera is the one of a simulator whose cameras all have that size."""
    sizes = {"agentview": (48, 64), "wrist": (32, 24)}
    key = EpisodeKey(task, "val", 0)

    def views(config: RenderConfig) -> Mapping[str, CameraView]:
        with closing(get_task(task).make(config)) as simulator:
            assert all(simulator.spec.cameras[name] == config.size(name) for name in sizes)
            simulator.reset(key)
            return simulator.observe(list(sizes)).views

    mixed = views(RenderConfig.for_cameras(mode, sizes))
    for name, size in sizes.items():
        alone = views(RenderConfig(mode, *size))[name]
        assert mixed[name].rgb.shape == (*size, 3)
        for part, array in vars(alone).items():
            assert np.array_equal(getattr(mixed[name], part), array), (name, part)


def test_equal_sizes_are_one_size_and_unequal_ones_are_another_configuration() -> None:
    equal = RenderConfig.for_cameras("fast", {"agentview": (48, 64), "wrist": (48, 64)})
    assert equal == RenderConfig("fast", 48, 64)
    assert str(equal) == "fast 48x64"
    mixed = RenderConfig.for_cameras("fast", {"agentview": (48, 64), "wrist": (32, 32)})
    assert str(mixed) == "fast 48x64, wrist 32x32"
    assert len({equal, mixed, RenderConfig("fast", 48, 64)}) == 2
    assert decode(RenderConfig, encode(mixed)) == mixed
    assert RenderConfig.for_cameras("fast", {}) == RenderConfig()


def test_clustering_moves_no_vertex_further_than_a_cell() -> None:
    rng = np.random.default_rng(0)
    vertices = rng.uniform(-0.1, 0.1, (500, 3)).astype(np.float32)
    faces = rng.integers(0, 500, (800, 3)).astype(np.int32)
    moved, kept = rendering.cluster_faces(vertices, faces, 0.02)
    first, index = rendering.cluster_index(vertices, 0.02)
    assert 0 < len(kept) < len(faces)
    drawn = moved[first[index]]
    assert np.abs(drawn - vertices).max() <= 0.02
    corners = first[index][faces[kept]]
    assert all(len(set(face)) == 3 for face in corners.tolist())


def test_render_copy_leaves_the_physics_model_alone(fast: RobosuiteSimulator) -> None:
    fast.reset(KEY)
    fast.observe()
    drawn, physics = fast._scene_camera._renderer("agentview").drawn_model, fast._model
    assert drawn.mesh_facenum.sum() < physics.mesh_facenum.sum() / 4
    assert physics.vis.quality.offsamples == 4
