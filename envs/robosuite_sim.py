"""robosuite 1.5 behind the Simulator protocol: Panda, OSC_POSE, 20 Hz, 7-D actions in [-1, 1].

The environment is built once and soft-reset (``hard_reset=False``: 1 ms, not 160). Everything random is drawn from the
episode's key, so an episode depends neither on earlier episodes nor on the process.
"""

from __future__ import annotations

import atexit
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np

from sim_eval.core.types import ActionSpec, EpisodeKey, FloatArray, RenderConfig, Snapshot, Status, Task
from sim_eval.envs.rendering import SceneOptions, choose_backend
from sim_eval.envs.scene_camera import MujocoSimulator, SceneCamera, state_names

if TYPE_CHECKING:
    import mujoco
    from robosuite.environments.manipulation.manipulation_env import ManipulationEnv

CONTROL_HZ = 20
ROBOT = "Panda"
ACTION = ActionSpec(
    names=("dx", "dy", "dz", "drx", "dry", "drz", "gripper"),
    low=(-1.0,) * 7,
    high=(1.0,) * 7,
    control_mode="ee_delta_pose",
    control_hz=CONTROL_HZ,
    frame="base",
    metres_per_unit=0.05,
    radians_per_unit=0.5,
    rotation="axis_angle",
    gripper="closes",
)
# Our camera names -> robosuite's.
CAMERAS = {"agentview": "agentview", "wrist": "robot0_eye_in_hand"}
PROPRIO = {"eef_pos": 3, "eef_quat": 4, "eef_rot6d": 6, "gripper_qpos": 2, "joint_pos": 7}


@dataclass(frozen=True)
class RobosuiteScene:
    """The robosuite environment of a task.

    Attributes:
        environment: robosuite's name.
        phase: the number of fulfilled phases, as a function of the running environment and the goal's index; all
            phases: success.
        objects: name for scripted demonstrators -> MuJoCo body.
        arguments: for ``robosuite.make``, made for each environment; they override ours.
        randomize: sets in the compiled model what robosuite draws only when it builds an environment.
        hidden: prefixes of geoms that are rendered neither in RGB nor in depth.
        sites: whether MuJoCo's sites are rendered.
        cell_metres: cell of the grid by which ``fast`` decimates meshes.
    """

    environment: str
    phase: Callable[[ManipulationEnv, int], int]
    objects: Mapping[str, str]
    arguments: Callable[[], Mapping[str, object]] = dict
    randomize: Callable[[ManipulationEnv, np.random.Generator], None] = lambda env, rng: None
    hidden: tuple[str, ...] = ()
    sites: bool = False
    cell_metres: float = SceneOptions.cell_metres

    def scene_options(self, model: mujoco.MjModel) -> SceneOptions:
        """The parts of the compiled model that are rendered."""
        names = [model.geom(index).name for index in range(model.ngeom)]
        hidden = frozenset(index for index, name in enumerate(names) if name.startswith(self.hidden))
        return SceneOptions(hidden=hidden, sites=self.sites, cell_metres=self.cell_metres)


@contextmanager
def quiet() -> Iterator[None]:
    """Silences robosuite's warnings about optional packages."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)


def load_robosuite() -> None:
    """Imports robosuite. Where numba has no folder to write to, it gets a temporary one, and compiles all again."""
    try:
        import_module("sim_eval.envs.osc_pose")
    except RuntimeError:
        import numba

        numba.config.CACHE_DIR = tempfile.mkdtemp(prefix="sim_eval-numba-")
        atexit.register(shutil.rmtree, numba.config.CACHE_DIR, ignore_errors=True)
        import_module("sim_eval.envs.osc_pose")


def set_box_size(env: ManipulationEnv, name: str, half_size: FloatArray) -> None:
    """Sets the half sizes [3] of a free box in metres; mass and inertia follow from its density."""
    import mujoco

    model, data = env.sim.model._model, env.sim.data._data
    for geom in (f"{name}_g0", f"{name}_g0_vis"):
        index = model.geom(geom).id
        model.geom_size[index] = half_size
        model.geom_aabb[index, 3:] = half_size
        model.geom_rbound[index] = np.linalg.norm(half_size)
    body = model.body(f"{name}_main").id
    old_volume_mass = model.body_mass[body]
    x, y, z = (2 * half_size) ** 2
    density = next(obj.density for obj in env.model.mujoco_objects if obj.name == name)  # kg/m^3
    mass = float(density) * float(np.prod(2 * half_size))
    model.body_mass[body] = mass
    model.body_inertia[body] = mass / 12 * np.array([y + z, x + z, x + y])
    if old_volume_mass != mass:
        mujoco.mj_setConst(model, data)


def reseed(env: ManipulationEnv, rng: np.random.Generator) -> None:
    """Sets the generator of everything that robosuite draws at a soft reset."""
    env.rng = rng
    pending = [getattr(env, "placement_initializer", None)]
    while pending:
        sampler = pending.pop()
        if sampler is not None:
            sampler.rng = rng
            pending.extend(getattr(sampler, "samplers", {}).values())


class RobosuiteSimulator(MujocoSimulator):
    """One robosuite task, running; see :class:`sim_eval.core.types.Simulator`."""

    def __init__(self, task: Task, scene: RobosuiteScene, options: RenderConfig) -> None:
        super().__init__(task, options, ROBOT, CAMERAS, PROPRIO, ACTION)
        choose_backend()
        with quiet():
            load_robosuite()
            import robosuite

            from sim_eval.envs.osc_pose import control_step

            arguments = {
                "robots": ROBOT,
                "has_renderer": False,
                "has_offscreen_renderer": False,
                "use_camera_obs": False,
                "use_object_obs": False,
                "control_freq": CONTROL_HZ,
                "horizon": task.max_episode_steps,
                "ignore_done": True,
                "hard_reset": False,
                "seed": 0,
            }
            self._env: ManipulationEnv = robosuite.make(scene.environment, **{**arguments, **scene.arguments()})
        for name in self._env.observation_names:  # `observe` reads the state instead
            self._env.modify_observable(name, "enabled", False)
            self._env.modify_observable(name, "active", False)
        self._step = control_step(self._env)
        self._scene = scene
        self._model = self._env.sim.model._model
        self._scene_camera = SceneCamera(self._model, CAMERAS, options, scene.scene_options(self._model))
        self._site = self._env.robots[0].eef_site_id["right"]
        self._joints = self._env.robots[0]._ref_joint_pos_indexes
        self._fingers = self._env.robots[0]._ref_gripper_joint_pos_indexes["right"]
        self._bodies = {name: self._model.body(body).id for name, body in scene.objects.items()}
        self._state_names = state_names(self._model)
        self._goal = 0

    def reset(self, key: EpisodeKey) -> None:
        self._scene.randomize(self._env, key.rng("objects"))
        reseed(self._env, key.rng("reset"))
        self._env.reset()
        self._goal = self.task.goal(key)
        self._scene_camera.follow(self._model)

    def act(self, action: FloatArray) -> Status:
        self._step(np.asarray(action, np.float64))
        self._scene_camera.forget()
        phase = self._scene.phase(self._env, self._goal)
        return Status(success=phase == len(self.task.phases), phase=phase)

    def snapshot(self) -> Snapshot:
        return Snapshot(np.array(self._env.sim.get_state().flatten(), np.float64), self._state_names)

    def privileged(self) -> Mapping[str, FloatArray]:
        """Robot fields as in proprioception, and ``<object>_pos`` [3], ``<object>_mat`` [3, 3] in the world frame."""
        self._update_cameras()
        state, seen = self._proprio(), self._scene_camera.data
        state["eef_mat"] = seen.site_xmat[self._site].reshape(3, 3).copy()
        for name, index in self._bodies.items():
            state[f"{name}_pos"] = seen.xpos[index].copy()
            state[f"{name}_mat"] = seen.xmat[index].reshape(3, 3).copy()
        return state

    def provenance(self) -> Mapping[str, str]:
        import robosuite

        heights, widths = zip(*self.spec.cameras.values(), strict=True)
        arguments = {
            "env_name": self._scene.environment,
            "env_version": robosuite.__version__,
            "type": 1,  # robomimic's number for robosuite
            "env_kwargs": {
                "robots": ROBOT,
                "control_freq": CONTROL_HZ,
                "camera_names": list(CAMERAS.values()),
                "camera_heights": heights[0] if len(set(heights)) == 1 else heights,
                "camera_widths": widths[0] if len(set(widths)) == 1 else widths,
                "camera_depths": True,
            },
            "render": self._options.mode,
        }
        return {"env_args": json.dumps(arguments), "model_file": self._env.sim.model.get_xml()}

    def close(self) -> None:
        self._scene_camera.close()
        self._env.close()

    def _update_cameras(self) -> None:
        self._scene_camera.update(self._env.sim.data._data)

    def _proprio(self) -> dict[str, FloatArray]:
        import mujoco

        seen = self._scene_camera.data
        matrix = seen.site_xmat[self._site]
        wxyz = np.empty(4)
        mujoco.mju_mat2Quat(wxyz, matrix)
        columns = matrix.reshape(3, 3)[:, :2]
        return {
            "eef_pos": seen.site_xpos[self._site].copy(),
            "eef_quat": wxyz[[1, 2, 3, 0]],  # x, y, z, w
            # First two columns of the rotation matrix: continuous, unlike a quaternion (Zhou et al. 2019).
            "eef_rot6d": columns.T.reshape(6).copy(),
            "gripper_qpos": seen.qpos[self._fingers].copy(),
            "joint_pos": seen.qpos[self._joints].copy(),
        }
