"""Meta-World 3.1 behind the Simulator protocol: Sawyer, a mocap hand, 80 Hz, 4-D actions in [-1, 1].

Its environments carry state from one episode to the next, in the compiled model and in themselves, and ignore
``reset(seed=)``. Here each episode has a new environment, made from one compiled model in a few milliseconds, and
everything random is drawn from the episode's key.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import ActionSpec, EpisodeKey, FloatArray, RenderConfig, Snapshot, Status, Task
from sim_eval.envs.opengl import choose_backend
from sim_eval.envs.rendering import SceneOptions
from sim_eval.envs.scene_camera import MujocoSimulator, SceneCamera, place_camera, state_names

if TYPE_CHECKING:
    import mujoco
    from metaworld.sawyer_xyz_env import SawyerXYZEnv

ROBOT = "Sawyer"
ACTION = ActionSpec(
    names=("dx", "dy", "dz", "gripper"),
    low=(-1.0,) * 4,
    high=(1.0,) * 4,
    control_mode="ee_target_delta_position",
    control_hz=80,
    frame="world",
    metres_per_unit=0.01,
    gripper="closes",
)
# Our camera names -> Meta-World's. Our camera in front of the table replaces an unused one. The field's camera,
# corner2, is rendered upright, although Meta-World mounts it upside down.
CAMERAS = {"agentview": "topview", "wrist": "gripperPOV", "corner2": "corner2"}
AGENTVIEW_POSITION, AGENTVIEW_TARGET, AGENTVIEW_FOVY = (0.65, -0.05, 0.75), (-0.02, 0.68, 0.08), 48.0
# The first four numbers of Meta-World's observation; the others are the state of objects.
PROPRIO = {"eef_pos": 3, "gripper_opening": 1}
WIDEST_METRES = 0.1  # between the claws; an opening of 1
# Visual geoms are in the first two groups. Its objects are small meshes: a coarser grid would swallow their handles.
GROUPS, CELL_METRES = (0, 1), 0.005
# Lights are far away, so shading at the corners of a box is enough. The floor, far below the table, takes longest to
# draw; "fast" leaves it out.
QUADS, FLOOR = 1, "floor"


def mount_cameras(model: mujoco.MjModel) -> None:
    """Places our camera and turns the field's upright, in place."""
    ours, field = (model.camera(CAMERAS[name]) for name in ("agentview", "corner2"))
    place_camera(model, ours.id, np.array(AGENTVIEW_POSITION), np.array(AGENTVIEW_TARGET), AGENTVIEW_FOVY)
    w, x, y, z = field.quat
    field.quat[:] = -z, y, -x, w  # times half a turn about the optical axis


def scene_options(model: mujoco.MjModel, options: RenderConfig) -> SceneOptions:
    """The rendered parts of Meta-World's scenes."""
    floors = {geom for geom in range(model.ngeom) if model.geom(geom).name == FLOOR}
    hidden = frozenset(floors if options.mode == "fast" else ())
    return SceneOptions(GROUPS, hidden, not options.hide_goal, CELL_METRES, quads=QUADS)


def environment_class(name: str) -> type[SawyerXYZEnv]:
    """Meta-World's environment of this name. Its model is compiled once: 20 MB, which live as long as the class.

    Raises:
        SimEvalError: Meta-World is not installed.
    """
    choose_backend()
    try:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    except ModuleNotFoundError as error:
        raise SimEvalError(f"metaworld/{name} needs {error.name}: pip install 'sim_eval[metaworld]'") from error
    import mujoco

    base: type[SawyerXYZEnv] = ALL_V3_ENVIRONMENTS[name]
    compiled: list[mujoco.MjModel] = []

    class Compiled(base):  # type: ignore[misc, valid-type]
        def _initialize_simulation(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
            if not compiled:
                compiled.append(super()._initialize_simulation()[0])
                mount_cameras(compiled[0])
            model = copy.copy(compiled[0])
            return model, mujoco.MjData(model)

    return Compiled


def new_environment(kind: type[SawyerXYZEnv], rng: np.random.Generator) -> SawyerXYZEnv:
    """An environment that draws its goal and objects from the generator at every reset."""
    env = kind()
    env._freeze_rand_vec, env.seeded_rand_vec = False, True
    env._set_task_called = True  # set_task would freeze the scene
    env._partially_observable = False  # the scripted policies read the goal from the observation
    vars(env).pop("sawyer_observation_space", None)
    env.max_path_length = sys.maxsize  # the engine counts steps
    env.seed(int(rng.integers(2**31)))
    return env


class MetaworldSimulator(MujocoSimulator):
    """One Meta-World task, running; see :class:`sim_eval.core.types.Simulator`."""

    VIDEO_AZIMUTH, VIDEO_DISTANCE = -42.0, 1.5

    def __init__(self, task: Task, name: str, options: RenderConfig) -> None:
        """Args: name: Meta-World's name of the environment."""
        super().__init__(task, options, ROBOT, CAMERAS, PROPRIO, ACTION)
        self._name = name
        self._kind = environment_class(name)
        self._env = self._kind()
        self._scene_camera = self._new_scene_camera(self._env.model, options)
        self._joint_names = state_names(self._env.model)

    def reset(self, key: EpisodeKey) -> None:
        self._env = new_environment(self._kind, key.rng("reset"))
        self._env.reset()
        self._scene_camera.follow(self._env.model)

    def act(self, action: FloatArray) -> Status:
        info = self._env.step(np.asarray(action, np.float64))[4]
        self._scene_camera.forget()
        success = bool(info["success"])
        return Status(success=success, phase=int(success))

    def snapshot(self) -> Snapshot:
        """Time, joints, the mocap target's pose, and the drawn goal and initial positions of objects."""
        data, drawn = self._env.data, self._env._last_rand_vec
        drawn = np.zeros(0) if drawn is None else drawn  # before the first reset
        parts = {"mocap_pos": data.mocap_pos[0], "mocap_quat": data.mocap_quat[0], "drawn": drawn}
        names = [f"{part}[{place}]" for part, values in parts.items() for place in range(len(values))]
        state = np.concatenate([[data.time], data.qpos, data.qvel, *parts.values()])
        return Snapshot(state, (*self._joint_names, *names))

    def privileged(self) -> Mapping[str, FloatArray]:
        """``observation`` [39]: the input of Meta-World's scripted policies: hand, gripper, objects and goal."""
        now = self._env._get_curr_obs_combined_no_goal()
        return {"observation": np.concatenate([now, now, self._env._get_pos_goal()])}

    def provenance(self) -> Mapping[str, str]:
        return self._provenance

    def close(self) -> None:
        self._scene_camera.close()
        self._env.close()  # type: ignore[no-untyped-call]

    def _physics(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
        return self._env.model, self._env.data

    def _new_scene_camera(self, model: mujoco.MjModel, options: RenderConfig) -> SceneCamera:
        return SceneCamera(model, CAMERAS, options, scene_options(model, options))

    def _proprio(self) -> dict[str, FloatArray]:
        # As Meta-World computes them, but without the state of objects.
        data = self._env.data
        apart = np.linalg.norm(data.body("rightclaw").xpos - data.body("leftclaw").xpos)
        return {
            "eef_pos": self._env.get_endeff_pos().copy(),
            "gripper_opening": np.clip([apart / WIDEST_METRES], 0.0, 1.0),
        }

    @cached_property
    def _provenance(self) -> Mapping[str, str]:
        from importlib.metadata import version

        import mujoco

        arguments = {
            "env_name": self._name,
            "env_version": version("metaworld"),
            "type": 1,  # robomimic's number for MuJoCo through robosuite; it has none for Meta-World
            "env_kwargs": {"camera_names": list(CAMERAS.values()), "camera_depths": True},
            "render": self._options.mode,
            "hide_goal": self._options.hide_goal,
        }
        model = mujoco.MjSpec.from_file(self._env.fullpath)
        model.compile()
        return {"env_args": json.dumps(arguments), "model_file": model.to_xml()}
