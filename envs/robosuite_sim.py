"""robosuite 1.5 behind the Simulator protocol: one arm, moved by robosuite's own controller for it, at 20 Hz.

The environment is built once and soft-reset (``hard_reset=False``: 1 ms, not 160). Everything random is drawn from the
episode's key, so an episode depends neither on earlier episodes nor on the process.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from sim_eval.core.types import EpisodeKey, FloatArray, RenderConfig, Snapshot, Status, Task
from sim_eval.envs.rendering import SceneOptions
from sim_eval.envs.robosuite_robot import action_spec, find_fingers, load_robosuite, only_robot, quiet, repair_grippers
from sim_eval.envs.scene_camera import MujocoSimulator, SceneCamera, state_names

if TYPE_CHECKING:
    import mujoco
    from robosuite.environments.manipulation.manipulation_env import ManipulationEnv

CONTROL_HZ = 20
DEFAULT_ROBOT = "Panda"
# Our camera names -> robosuite's.
CAMERAS = {"agentview": "agentview", "wrist": "robot0_eye_in_hand"}


@dataclass(frozen=True)
class RobosuiteScene:
    """The robosuite environment of a task.

    Attributes:
        environment: robosuite's name.
        phase: the number of fulfilled phases, as a function of the running environment and the goal's index; all
            phases: success.
        objects: name for scripted demonstrators -> MuJoCo body.
        arguments: for ``robosuite.make``, made for each environment; they override ours, but for the task's robot.
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

    VIDEO_AZIMUTH, VIDEO_DISTANCE = -50.0, 1.5
    # The simulator whose model MuJoCo parsed last; None: another model was. MuJoCo keeps the source of the last model,
    # 130 MB, and can write the XML of no other.
    _parsed: ClassVar[weakref.ref[RobosuiteSimulator] | None] = None

    def __init__(self, task: Task, scene: RobosuiteScene, options: RenderConfig) -> None:
        load_robosuite()
        with quiet():
            import mujoco
            import robosuite

            from sim_eval.envs.osc_pose import control_step

            repair_grippers()
            arguments = {
                "robots": DEFAULT_ROBOT,
                "has_renderer": False,
                "has_offscreen_renderer": False,
                "use_camera_obs": False,
                "use_object_obs": False,
                "control_freq": CONTROL_HZ,
                "horizon": task.max_episode_steps,
                "ignore_done": True,
                "hard_reset": False,
                "seed": 0,
                **scene.arguments(),
            }
            if task.robot:
                arguments["robots"] = task.robot
            self._env: ManipulationEnv = robosuite.make(scene.environment, **arguments)
        mujoco.MjModel.from_xml_string("<mujoco/>")  # parsed last, so that the source of ours is freed
        RobosuiteSimulator._parsed = None
        robot = only_robot(self._env)
        for name in self._env.observation_names:  # `observe` reads the state instead
            self._env.modify_observable(name, "enabled", False)
            self._env.modify_observable(name, "active", False)
        self._step = control_step(self._env)
        self._scene = scene
        self._model = self._env.sim.model._model
        self._scene_camera = self._new_scene_camera(self._model, options)
        self._site = robot.eef_site_id["right"]
        self._joints = robot._ref_joint_pos_indexes
        self._fingers = find_fingers(self._env)
        self._bodies = {name: self._model.body(body).id for name, body in scene.objects.items()}
        self._state_names = state_names(self._model)
        self._goal = 0
        own = RobosuiteSimulator._proprio(self)  # a subclass that adds fields is not ready yet
        proprio = {name: len(values) for name, values in own.items()}
        super().__init__(task, options, robot.name, CAMERAS, proprio, action_spec(self._env, self._fingers))

    def reset(self, key: EpisodeKey) -> None:
        self._scene.randomize(self._env, key.rng("objects"))
        reseed(self._env, key.rng("reset"))
        with quiet():  # robosuite warns at each reset where it has no controller file for a robot
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
        """Robot fields as in proprioception, and ``<object>_pos`` [3], ``<object>_mat`` [3, 3] in the world frame;
        of other arms than the Panda ``finger_gap`` [1], metres between the finger pads."""
        self._update_cameras()
        state, seen = self._proprio(), self._scene_camera.data
        state["eef_mat"] = seen.site_xmat[self._site].reshape(3, 3).copy()
        for name, index in self._bodies.items():
            state[f"{name}_pos"] = seen.xpos[index].copy()
            state[f"{name}_mat"] = seen.xmat[index].reshape(3, 3).copy()
        if self._fingers is not None and self.spec.robot != DEFAULT_ROBOT:  # the Panda's joints are the gap themselves
            state["finger_gap"] = self._fingers.gap(self._model, seen)
        return state

    def provenance(self) -> Mapping[str, str]:
        import mujoco
        import robosuite

        if self._parsed is None or self._parsed() is not self:
            xml = self._env.model.get_xml()
            for processor in self._env._xml_processors:
                xml = processor(xml)
            mujoco.MjModel.from_xml_string(xml)
            RobosuiteSimulator._parsed = weakref.ref(self)
        heights, widths = zip(*self.spec.cameras.values(), strict=True)
        arguments = {
            "env_name": self._scene.environment,
            "env_version": robosuite.__version__,
            "type": 1,  # robomimic's number for robosuite
            "env_kwargs": {
                "robots": self.spec.robot,
                "control_freq": self.spec.action.control_hz,
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

    def _physics(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
        return self._model, self._env.sim.data._data

    def _new_scene_camera(self, model: mujoco.MjModel, options: RenderConfig) -> SceneCamera:
        return SceneCamera(model, CAMERAS, options, self._scene.scene_options(model))

    def _proprio(self) -> dict[str, FloatArray]:
        import mujoco

        seen = self._scene_camera.data
        matrix = seen.site_xmat[self._site]
        wxyz = np.empty(4)
        mujoco.mju_mat2Quat(wxyz, matrix)
        columns = matrix.reshape(3, 3)[:, :2]
        readings = {
            "eef_pos": seen.site_xpos[self._site].copy(),
            "eef_quat": wxyz[[1, 2, 3, 0]],  # x, y, z, w
            # First two columns of the rotation matrix: continuous, unlike a quaternion (Zhou et al. 2019).
            "eef_rot6d": columns.T.reshape(6).copy(),
        }
        if self._fingers is not None:
            readings["gripper_qpos"] = seen.qpos[self._fingers.joints].copy()
            readings["gripper_opening"] = self._fingers.opening(seen.qpos)
        return {**readings, "joint_pos": seen.qpos[self._joints].copy()}
