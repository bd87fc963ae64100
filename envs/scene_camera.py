"""Looks at a running MuJoCo model with positions of its own, so that looking never touches the physics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sim_eval.core.cameras import camera_to_world_from_mujoco, intrinsics_from_fovy
from sim_eval.core.types import CameraView, RenderConfig
from sim_eval.envs.rendering import RgbdRenderer, SceneOptions

if TYPE_CHECKING:
    import mujoco


def state_names(model: mujoco.MjModel) -> tuple[str, ...]:
    """What the numbers of a flat state are that is time, joint positions, joint velocities."""
    names = ["time"]
    for kind, starts, size in (("qpos", model.jnt_qposadr, model.nq), ("qvel", model.jnt_dofadr, model.nv)):
        for joint, (start, end) in enumerate(zip(starts, [*starts[1:], size], strict=True)):
            names += [f"{kind} {model.joint(joint).name}[{place}]" for place in range(end - start)]
    return tuple(names)


class SceneCamera:
    """Poses and RGB-D pictures of one instant after another.

    Args:
        model: of the physics; read, never changed.
        cameras: our name of a camera -> the model's.
        options: how big and by which renderer.
        look: what is drawn.

    Attributes:
        data: where everything is at the instant of the last :meth:`update`: bodies, sites, geoms, cameras.
    """

    def __init__(
        self, model: mujoco.MjModel, cameras: Mapping[str, str], options: RenderConfig, scene_options: SceneOptions
    ) -> None:
        self._cameras = {name: model.camera(theirs).id for name, theirs in cameras.items()}
        self._options, self._scene_options = options, scene_options
        self._renderer: RgbdRenderer | None = None
        self._seen: dict[str, CameraView] = {}  # pictures of this instant, so that two onlookers cost one rendering
        self.follow(model)

    def follow(self, model: mujoco.MjModel) -> None:
        """Takes over what a new episode changed in the model, or another copy of it."""
        import mujoco

        self._model, self.data = model, mujoco.MjData(model)
        self._seen = {}
        self.repaint()

    def repaint(self) -> None:
        """Takes over colours and the like that the model has changed within an episode."""
        if self._renderer is not None:
            self._renderer.sync(self._model)

    def update(self, data: mujoco.MjData) -> None:
        """Moves everything to where it is in the physics now."""
        import mujoco

        self.data.qpos[:] = data.qpos
        self.data.mocap_pos[:], self.data.mocap_quat[:] = data.mocap_pos, data.mocap_quat
        mujoco.mj_kinematics(self._model, self.data)
        mujoco.mj_camlight(self._model, self.data)

    def forget(self) -> None:
        """The instant is over: the pictures of it are drawn anew when asked for."""
        self._seen = {}

    def view(self, name: str) -> CameraView:
        """The picture of one of our cameras, as of the last :meth:`update`."""
        if name not in self._seen:
            camera, options = self._cameras[name], self._options
            rgb, depth = self._render().render(self.data, camera)
            fovy = float(self._model.cam_fovy[camera])
            intrinsics = intrinsics_from_fovy(fovy, options.height, options.width)
            pose = camera_to_world_from_mujoco(self.data.cam_xpos[camera], self.data.cam_xmat[camera])
            self._seen[name] = CameraView(rgb, depth, intrinsics, pose)
        return self._seen[name]

    def segmentation(self, name: str) -> NDArray[np.int32]:
        """Geom id int32 [H, W] of what each pixel of a camera shows, -1 where nothing."""
        return self._render().segmentation(self.data, self._cameras[name])

    def close(self) -> None:
        """Frees the renderer; may be called twice."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _render(self) -> RgbdRenderer:
        if self._renderer is None:
            options = self._options
            self._renderer = RgbdRenderer(self._model, options.height, options.width, options.mode, self._scene_options)
        return self._renderer
