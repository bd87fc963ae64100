"""The renderer: several at once, meshes that lose faces but keep their place, and geoms that no camera sees."""

from collections.abc import Mapping
from contextlib import closing

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from sim_eval.core.decoding import decode, encode
from sim_eval.core.types import CameraView, EpisodeKey, RenderConfig, RenderMode
from sim_eval.envs import rendering
from sim_eval.envs.libero_sim import installation
from sim_eval.envs.robosuite_sim import RobosuiteSimulator
from sim_eval.envs.scene_camera import MujocoSimulator, ScenePose
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


NEEDS_LIBERO = pytest.mark.skipif(installation() is None, reason="LIBERO is not installed: make libero")
OTHERS = ("robosuite/Lift", "robosuite/PickPlaceCan", "robosuite/Stack", "robosuite/Lift@UR5e", "metaworld/reach-v3")
OTHERS += ("metaworld/door-open-v3", "metaworld/basketball-v3", "metaworld/peg-insert-side-v3")
CULLED = [
    "robosuite/LiftWide",
    "metaworld/drawer-open-v3",
    *(pytest.param(task, marks=pytest.mark.slow) for task in OTHERS),
    pytest.param("libero_10/0", marks=[pytest.mark.slow, NEEDS_LIBERO]),
]


@pytest.mark.parametrize("task", CULLED)
@pytest.mark.parametrize(("mode", "poses"), [("fast", 20), ("faithful", 4)])
def test_what_is_left_out_of_a_frame_changes_no_pixel(task: str, mode: RenderMode, poses: int) -> None:
    """Joints anywhere in their ranges and free objects anywhere around the table, before a camera and behind it."""
    size = 48, 64
    with closing(get_task(task).make(RenderConfig(mode, *size))) as simulator:
        assert isinstance(simulator, MujocoSimulator)
        simulator.reset(EpisodeKey(task, "val", 0))
        scene, pose, rng = simulator._scene_camera, simulator.pose(), np.random.default_rng(0)
        whole, culled = (rendering.RgbdRenderer(scene._model, *size, mode, scene._scene_options) for _ in range(2))
        for canvas in (whole._canvases[0], whole._depth_canvas):
            canvas.culls = False
        left_out = dict.fromkeys(scene._cameras, 0)
        for _ in range(poses):
            scene.update(anywhere(simulator, pose, rng))
            culled.sync(scene._model)
            for name, camera in scene._cameras.items():
                for expected, picture in zip(
                    *(each.render(scene.data, camera) for each in (whole, culled)), strict=True
                ):
                    assert np.array_equal(picture, expected), name
                left_out[name] += whole._depth_canvas.scene.ngeom - culled._depth_canvas.scene.ngeom
                assert np.array_equal(*(each.segmentation(scene.data, camera) for each in (whole, culled))), name
        assert left_out["wrist"] > poses
        whole.close()
        culled.close()


def anywhere(simulator: MujocoSimulator, pose: ScenePose, rng: np.random.Generator) -> ScenePose:
    """A pose of the same scene, drawn at random."""
    model, _ = simulator._physics()
    box, qpos = simulator.task.workspace, pose.qpos.copy()
    for joint in range(model.njnt):
        start = model.jnt_qposadr[joint]
        if model.jnt_type[joint] == 0:  # free
            qpos[start : start + 3] = rng.uniform(np.subtract(box.lower, 0.3), np.add(box.upper, 0.5))
            qpos[start + 3 : start + 7] = Rotation.random(random_state=rng).as_quat()
        elif model.jnt_limited[joint]:
            qpos[start] = rng.uniform(*model.jnt_range[joint])
    return ScenePose(qpos, pose.mocap_pos, pose.mocap_quat, pose.site_rgba)
