"""RGB-D pictures of a running MuJoCo model, rendered from a copy of all positions, which never affects the physics.

:class:`MujocoSimulator` is what the simulators on MuJoCo share.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sim_eval.core.cameras import camera_to_world_from_mujoco, intrinsics_from_fovy
from sim_eval.core.types import ActionSpec, CameraView, EnvironmentSpec, FloatArray, RenderConfig, SensorReadings, Task
from sim_eval.envs.rendering import RgbdRenderer, SceneOptions

if TYPE_CHECKING:
    import mujoco


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

    def update(self, data: mujoco.MjData) -> None:
        """Moves everything to its place in the physics."""
        import mujoco

        self.data.qpos[:] = data.qpos
        self.data.mocap_pos[:], self.data.mocap_quat[:] = data.mocap_pos, data.mocap_quat
        mujoco.mj_kinematics(self._model, self.data)
        mujoco.mj_camlight(self._model, self.data)

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

    @abstractmethod
    def _update_cameras(self) -> None:
        """Moves the scene's cameras and objects to their places in the physics."""

    @abstractmethod
    def _proprio(self) -> dict[str, FloatArray]:
        """Proprioception at this instant, field name -> float64 [n]."""
