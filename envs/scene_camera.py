"""RGB-D pictures of a running MuJoCo model, rendered from a copy of all positions, which never affects the physics.

:class:`MujocoSimulator` is what the simulators on MuJoCo share.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from sim_eval.core.cameras import camera_to_world_from_mujoco, intrinsics_from_fovy
from sim_eval.core.types import (
    ActionSpec,
    CameraView,
    EnvironmentSpec,
    FloatArray,
    RenderConfig,
    RenderMode,
    SensorReadings,
    Task,
)
from sim_eval.envs.rendering import RgbdRenderer, SceneOptions

if TYPE_CHECKING:
    import mujoco


# The third-person camera of videos looks slightly down at a point above the middle of the workspace.
VIDEO_ELEVATION, VIDEO_FOVY = 22.0, 40.0  # degrees
VIDEO_RAISED = 0.16  # metres
VIDEO_CAMERA = "agentview"  # every simulator here has it, fixed in the world; in a copy of the model it is moved


@dataclass(frozen=True, eq=False)
class ScenePose:
    """All that moves or changes colour within an episode; arrays as in MuJoCo's data and model."""

    qpos: FloatArray
    mocap_pos: FloatArray
    mocap_quat: FloatArray
    site_rgba: NDArray[np.float32]


def place_camera(model: mujoco.MjModel, camera: int, position: FloatArray, target: FloatArray, fovy: float) -> None:
    """Moves a camera that is fixed in the world: from a position [3] it looks at a target [3], in metres.

    Args:
        fovy: vertical field of view, degrees.
    """
    from scipy.spatial.transform import Rotation

    backward = (position - target) / np.linalg.norm(position - target)
    right = np.cross((0.0, 0.0, 1.0), backward)
    right /= np.linalg.norm(right)
    pose = Rotation.from_matrix(np.stack([right, np.cross(backward, right), backward], axis=1))
    model.cam_pos[camera], model.cam_quat[camera] = position, pose.as_quat()[[3, 0, 1, 2]]
    model.cam_fovy[camera] = fovy


def state_names(model: mujoco.MjModel) -> tuple[str, ...]:
    """Names of the numbers of a flat state: time, joint positions, joint velocities."""
    names = ["time"]
    for kind, starts, size in (("qpos", model.jnt_qposadr, model.nq), ("qvel", model.jnt_dofadr, model.nv)):
        for joint, (start, end) in enumerate(zip(starts, [*starts[1:], size], strict=True)):
            names += [f"{kind} {model.joint(joint).name}[{place}]" for place in range(end - start)]
    return tuple(names)


class SceneCamera:
    """Renders the cameras of a model, one instant after another.

    Args:
        model: of the physics; read, never changed.
        cameras: our name of a camera -> the model's.
        config: size of each camera, and the rendering mode.
        scene_options: the rendered parts of the model.

    Attributes:
        data: poses of bodies, sites, geoms and cameras at the instant of the last :meth:`update`.
    """

    def __init__(
        self, model: mujoco.MjModel, cameras: Mapping[str, str], config: RenderConfig, scene_options: SceneOptions
    ) -> None:
        self._cameras = {name: model.camera(theirs).id for name, theirs in cameras.items()}
        self._config, self._scene_options = config, scene_options
        self._renderers: dict[tuple[int, int], RgbdRenderer] = {}
        self._views: dict[str, CameraView] = {}  # of this instant, so that two callers cost one rendering
        self.follow(model)

    def follow(self, model: mujoco.MjModel) -> None:
        """Takes over a new episode's changes to the model, or another copy of the model."""
        import mujoco

        self._model, self.data = model, mujoco.MjData(model)
        self._views = {}
        self.sync()

    def sync(self) -> None:
        """Takes over colours and the like that the model has changed within an episode."""
        for renderer in self._renderers.values():
            renderer.sync(self._model)

    def update(self, data: mujoco.MjData | ScenePose) -> None:
        """Moves everything to its place in the physics."""
        import mujoco

        self.data.qpos[:] = data.qpos
        self.data.mocap_pos[:], self.data.mocap_quat[:] = data.mocap_pos, data.mocap_quat
        mujoco.mj_kinematics(self._model, self.data)
        mujoco.mj_camlight(self._model, self.data)

    def look_at(self, name: str, position: FloatArray, target: FloatArray, fovy: float) -> None:
        """Moves one of our cameras in the model, which must be a copy; see :func:`place_camera`."""
        place_camera(self._model, self._cameras[name], position, target, fovy)

    def forget(self) -> None:
        """Ends the instant: its pictures are discarded."""
        self._views = {}

    def view(self, name: str) -> CameraView:
        """The picture of one of our cameras, as of the last :meth:`update`."""
        if name not in self._views:
            camera = self._cameras[name]
            rgb, depth = self._renderer(name).render(self.data, camera)
            intrinsics = intrinsics_from_fovy(float(self._model.cam_fovy[camera]), *self._config.size(name))
            pose = camera_to_world_from_mujoco(self.data.cam_xpos[camera], self.data.cam_xmat[camera])
            self._views[name] = CameraView(rgb, depth, intrinsics, pose)
        return self._views[name]

    def rgb(self, name: str) -> NDArray[np.uint8]:
        """The picture of one of our cameras, uint8 [H, W, 3], without its depth."""
        return self._renderer(name).render_rgb(self.data, self._cameras[name])

    def segmentation(self, name: str) -> NDArray[np.int32]:
        """Geom id of each pixel of a camera, int32 [H, W]; -1: none."""
        return self._renderer(name).segmentation(self.data, self._cameras[name])

    def close(self) -> None:
        """Frees the renderers; may be called twice."""
        while self._renderers:
            self._renderers.popitem()[1].close()

    def _renderer(self, camera: str) -> RgbdRenderer:
        """The renderer of the camera's size."""
        size = self._config.size(camera)
        if size not in self._renderers or self._renderers[size].inherited:
            self._renderers[size] = RgbdRenderer(self._model, *size, self._config.mode, self._scene_options)
        return self._renderers[size]


class MujocoSimulator(ABC):
    """The parts of a :class:`sim_eval.core.types.Simulator` that do not depend on the robot and its scene."""

    # Videos show a scene from this side: degrees from the world's x axis, and metres from the middle of the workspace.
    VIDEO_AZIMUTH: ClassVar[float]
    VIDEO_DISTANCE: ClassVar[float]
    _scene_camera: SceneCamera

    def __init__(
        self,
        task: Task,
        options: RenderConfig,
        robot: str,
        cameras: Iterable[str],
        proprio: Mapping[str, int],
        action: ActionSpec,
    ) -> None:
        self.task, self._options = task, options
        self.spec = EnvironmentSpec(robot, {name: options.size(name) for name in cameras}, proprio, action)

    def observe(self, cameras: Sequence[str] | None = None) -> SensorReadings:
        self._update_cameras()
        views = {name: self._scene_camera.view(name) for name in (self.spec.cameras if cameras is None else cameras)}
        return SensorReadings(views, self._proprio())

    def segmentation(self, camera: str) -> NDArray[np.int32]:
        """Geom id of each pixel, int32 [H, W]; -1: none."""
        self._update_cameras()
        return self._scene_camera.segmentation(camera)

    def pose(self) -> ScenePose:
        model, data = self._physics()
        return ScenePose(data.qpos.copy(), data.mocap_pos.copy(), data.mocap_quat.copy(), model.site_rgba.copy())

    def rerender(
        self, poses: Iterable[ScenePose], mode: RenderMode, size: tuple[int, int], cameras: Sequence[str]
    ) -> Generator[tuple[NDArray[np.uint8], Mapping[str, CameraView]], None, None]:
        """See :class:`sim_eval.core.types.Rerenderable`."""
        seen, shown = (copy.copy(self._physics()[0]) for _ in range(2))
        self._scene_camera.follow(seen)
        viewer = self._new_scene_camera(shown, RenderConfig(mode, *size))
        viewer.look_at(VIDEO_CAMERA, *self._viewpoint(), VIDEO_FOVY)
        try:
            for pose in poses:
                for model, scene_camera in ((seen, self._scene_camera), (shown, viewer)):
                    model.site_rgba[:] = pose.site_rgba
                    scene_camera.sync()
                    scene_camera.forget()
                    scene_camera.update(pose)
                yield viewer.rgb(VIDEO_CAMERA), {name: self._scene_camera.view(name) for name in cameras}
        finally:
            viewer.close()
            self._scene_camera.follow(self._physics()[0])

    def _viewpoint(self) -> tuple[FloatArray, FloatArray]:
        """Position [3] of the third-person camera, and the point [3] at which it looks, metres."""
        box = self.task.workspace
        target = np.add(box.lower, box.upper) / 2 + (0.0, 0.0, VIDEO_RAISED)
        azimuth, elevation = np.radians((self.VIDEO_AZIMUTH, VIDEO_ELEVATION))
        flat = np.cos(elevation)
        away = np.array([np.cos(azimuth) * flat, np.sin(azimuth) * flat, np.sin(elevation)])
        return target + self.VIDEO_DISTANCE * away, target

    @abstractmethod
    def _physics(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
        """The model and data of the running physics."""

    @abstractmethod
    def _new_scene_camera(self, model: mujoco.MjModel, options: RenderConfig) -> SceneCamera:
        """Renders the simulator's cameras from a model."""

    def _update_cameras(self) -> None:
        """Moves the scene's cameras and objects to their places in the physics."""
        self._scene_camera.update(self._physics()[1])

    @abstractmethod
    def _proprio(self) -> dict[str, FloatArray]:
        """Proprioception at this instant, field name -> float64 [n]."""
