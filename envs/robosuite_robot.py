"""The robot of a robosuite environment, as it was built: what its actions mean, and how its fingers move."""

from __future__ import annotations

import atexit
import copy
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sim_eval.core.errors import SimEvalError, extra
from sim_eval.core.types import ActionSpec, ControlMode, FloatArray, GripperConvention
from sim_eval.envs.opengl import choose_backend

if TYPE_CHECKING:
    import mujoco
    from robosuite.environments.manipulation.manipulation_env import ManipulationEnv
    from robosuite.robots import Robot

# robosuite's controllers of the end effector, and what their input is -> what an action sets.
END_EFFECTOR: Mapping[tuple[str, str], ControlMode] = {
    ("OSC_POSE", "delta"): "ee_delta_pose",
    ("OSC_POSE", "absolute"): "ee_pose",
    ("OSC_POSITION", "delta"): "ee_delta_position",
    ("OSC_POSITION", "absolute"): "ee_position",
}
AXES = ("x", "y", "z", "rx", "ry", "rz")
DRIVE_STEPS = 1500  # of the physics (3 s), in which the fingers of every gripper come to rest
FARTHEST_METRES = 1.0  # between pads


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
    """Imports robosuite. Where numba has no folder to write to, it gets a temporary one, and compiles all again.

    Raises:
        SimEvalError: it is not installed, or nothing can render.
    """
    choose_backend()  # robosuite imports MuJoCo
    with quiet(), extra("robosuite", "--no-deps robosuite==1.5.2"):  # pyproject.toml says why
        try:
            import_module("sim_eval.envs.osc_pose")
        except RuntimeError:
            import numba

            numba.config.CACHE_DIR = tempfile.mkdtemp(prefix="sim_eval-numba-")
            atexit.register(shutil.rmtree, numba.config.CACHE_DIR, ignore_errors=True)
            import_module("sim_eval.envs.osc_pose")
    spare_robot_models()


def spare_robot_models() -> None:
    """Keeps robosuite from compiling each robot by itself, before the scene: it uses none of these models.

    One takes a third of a second and 100 MB.
    """
    from robosuite.models.robots.robot_model import RobotModel

    RobotModel.set_mujoco_model = lambda self, mujoco_model=None: setattr(self, "mujoco_model", mujoco_model)


def single_arm_robots() -> list[str]:
    """robosuite's names of its robots with one arm on a fixed base."""
    load_robosuite()
    from robosuite.models.robots.robot_model import REGISTERED_ROBOTS
    from robosuite.robots import ROBOT_CLASS_MAPPING, FixedBaseRobot

    fixed = [name for name, kind in ROBOT_CLASS_MAPPING.items() if kind is FixedBaseRobot and name in REGISTERED_ROBOTS]
    models = {name: REGISTERED_ROBOTS[name] for name in fixed}
    # Other packages, such as LIBERO, register theirs when they are imported.
    return sorted(
        name for name, model in models.items() if len(model.arms) == 1 and model.__module__.startswith("robosuite.")
    )


def repair_grippers() -> None:
    """Corrects names of finger pads that robosuite gets wrong, so that it sees what they grasp."""
    from robosuite.models.grippers.xarm7_gripper import XArm7GripperBase

    pads = {f"{side}_fingerpad": [f"{side}_finger_pad_1", f"{side}_finger_pad_2"] for side in ("left", "right")}
    XArm7GripperBase._important_geoms = property(lambda self: pads)


def only_robot(env: ManipulationEnv) -> Robot:
    """The robot of an environment.

    Raises:
        SimEvalError: there are several, or it is no single arm on a fixed base.
    """
    from robosuite.robots import FixedBaseRobot

    robots = env.robots
    if len(robots) != 1 or not isinstance(robots[0], FixedBaseRobot) or list(robots[0].arms) != ["right"]:
        names = " and ".join(f"{robot.name} ({len(robot.arms)} arms)" for robot in robots)
        raise SimEvalError(
            f"the environment has {names}: choose one robot with one arm and a fixed base: "
            f"{', '.join(single_arm_robots())}"
        )
    return robots[0]


@dataclass(frozen=True)
class Fingers:
    """The fingers of a gripper of n joints.

    Attributes:
        joints: their addresses among the positions [n].
        closed, opened: their positions [n] where the gripper has closed on nothing, and where it is open.
        pads: geoms of either side, between which an object is held.
        convention: what the largest command does.
    """

    joints: NDArray[np.int64]
    closed: FloatArray
    opened: FloatArray
    pads: tuple[tuple[int, ...], tuple[int, ...]]
    convention: GripperConvention

    def opening(self, positions: FloatArray) -> FloatArray:
        """How far the fingers are open, from 0 (closed) to 1, float64 [1].

        Args:
            positions: of all joints of the model.
        """
        travel = self.opened - self.closed
        share = (positions[self.joints] - self.closed) @ travel / (travel @ travel)
        return np.array([np.clip(share, 0.0, 1.0)])

    def gap(self, model: mujoco.MjModel, data: mujoco.MjData) -> FloatArray:
        """Metres between the pads of either side, float64 [1]."""
        return np.array([_gap(model, data, self.pads)])


def _gap(model: mujoco.MjModel, data: mujoco.MjData, pads: tuple[tuple[int, ...], tuple[int, ...]]) -> float:
    import mujoco

    ends = np.zeros(6)
    return min(
        (mujoco.mj_geomDistance(model, data, *pair, FARTHEST_METRES, ends) for pair in product(*pads)), default=0
    )


def find_fingers(env: ManipulationEnv) -> Fingers | None:
    """The fingers of the environment's robot; None: it has none.

    How far they travel stands nowhere: the limits of their joints are missing or out of reach. So they are driven open
    and shut in a copy of the physics, without gravity and without contact to anything but themselves.
    """
    robot = env.robots[0]
    gripper = robot.gripper["right"]
    if not gripper.joints or not gripper.dof:
        return None
    import mujoco

    model = copy.copy(env.sim.model._model)
    model.opt.gravity[:] = 0
    own = [model.geom(name).id for name in gripper.contact_geoms]
    others = np.setdiff1d(np.arange(model.ngeom), own)
    model.geom_contype[others] = model.geom_conaffinity[others] = 0
    sides = (gripper.important_geoms[f"{side}_fingerpad"] for side in ("left", "right"))
    left, right = (tuple(model.geom(name).id for name in side) for side in sides)
    joints = np.array(robot._ref_gripper_joint_pos_indexes["right"])

    def driven(command: float) -> tuple[FloatArray, float]:
        """Where the fingers' joints come to rest, and how far apart the pads are there."""
        data = mujoco.MjData(model)
        data.qpos[robot._ref_joint_pos_indexes], data.qpos[joints] = robot.init_qpos, gripper.init_qpos
        data.ctrl[robot._ref_joint_gripper_actuator_indexes["right"]] = _saturated(robot, command)
        mujoco.mj_step(model, data, DRIVE_STEPS)
        return data.qpos[joints].copy(), _gap(model, data, (left, right))

    (lowest, gap_at_lowest), (highest, gap_at_highest) = driven(-1.0), driven(1.0)
    if gap_at_highest > gap_at_lowest:
        return Fingers(joints, lowest, highest, (left, right), "opens")
    return Fingers(joints, highest, lowest, (left, right), "closes")


def _saturated(robot: Robot, command: float) -> FloatArray:
    """The actuators' setpoints after a gripper command was given for long; the robot is left as before its reset."""
    gripper, controller = robot.gripper["right"], robot.part_controllers["right_gripper"]
    gripper.current_action = np.zeros_like(gripper.current_action)
    reached, before = gripper.format_action(np.full(gripper.dof, command)), None
    while before is None or not np.array_equal(reached, before):
        before, reached = reached, gripper.format_action(np.full(gripper.dof, command))
    controller.set_goal(reached)
    gripper.current_action = np.zeros_like(gripper.current_action)
    return np.array(controller.run_controller(), np.float64)


def action_spec(env: ManipulationEnv, fingers: Fingers | None) -> ActionSpec:
    """What the actions of the environment mean, according to the controller of its robot.

    Raises:
        SimEvalError: the controller scales the axes of a translation or rotation differently.
    """
    controller, grips = env.robots[0].part_controllers["right"], env.robots[0].gripper["right"].dof
    low, high = env.action_spec
    arm = [f"arm_{number}" for number in range(len(low) - grips)]
    spec = ActionSpec(
        names=(*arm, *(["gripper"] if grips == 1 else [f"gripper_{number}" for number in range(grips)])),
        low=tuple(map(float, low)),
        high=tuple(map(float, high)),
        control_mode="other",
        control_hz=env.control_freq,
        gripper=fingers.convention if fingers else None,
        description=f"{controller.name} of robosuite",
    )
    kind = controller.name, getattr(controller, "input_type", "")
    if kind not in END_EFFECTOR or controller.impedance_mode != "fixed":
        return spec
    per_unit = np.ones(len(arm))
    if controller.input_type == "delta":
        per_unit = (controller.output_max - controller.output_min) / (controller.input_max - controller.input_min)
    if any(np.ptp(part) for part in (per_unit[:3], per_unit[3:]) if part.size):
        raise SimEvalError(f"{controller.name} scales its axes by {per_unit.tolist()}: give all of them one output_max")
    letter, turns = "d" if controller.input_type == "delta" else "", len(arm) > 3
    return replace(
        spec,
        names=(*(f"{letter}{axis}" for axis in AXES[: len(arm)]), *spec.names[len(arm) :]),
        control_mode=END_EFFECTOR[kind],
        frame=controller.input_ref_frame,
        metres_per_unit=float(per_unit[0]),
        radians_per_unit=float(per_unit[3]) if turns else None,
        rotation="axis_angle" if turns else None,
        description="",
    )
