"""robosuite's control step, with MuJoCo's substeps and the arm's controller in one compiled loop.

robosuite asks its operational space controller (OSC_POSE), which is written in Python, for torques before each of the
25 substeps of a control step. Here robosuite sets the goal of the control step, and code that numba compiles calls
MuJoCo and computes the same torques by the same functions. The result is the same to the last bit, which is checked on
every environment before it is used.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import llvmlite.binding
import mujoco
import numpy as np
from filelock import FileLock, Timeout
from numba import njit, types
from numba.extending import is_jitted
from robosuite.controllers.parts.arm.osc import OperationalSpaceController
from robosuite.controllers.parts.gripper.simple_grip import SimpleGripController
from robosuite.robots import FixedBaseRobot
from robosuite.utils.control_utils import nullspace_torques, opspace_matrices, orientation_error

from sim_eval.core.types import FloatArray

if TYPE_CHECKING:
    from robosuite.environments.manipulation.manipulation_env import ManipulationEnv

ControlStep: TypeAlias = Callable[[FloatArray], object]

PROVEN = {"robosuite": "1.5.2", "mujoco": "3.3.0"}
# The methods of an environment that make its step, and who may define them.
STEP = ("step", "_pre_action", "_update_observables", "_post_action")
KNOWN = ("robosuite.environments.base", "robosuite.environments.robot_env", "libero.libero.envs.bddl_base_domain")
CHECKED_STEPS = 3  # 72 compiled substeps; another BLAS differs in the first few
LONGEST_WAIT = 60.0  # seconds for another process that compiles

_POINTER = types.intp
_library = next(Path(mujoco.__file__).parent.glob("*mujoco*.[sd][oyl]*"), None)  # .so, .dylib or .dll
if _library is not None:
    llvmlite.binding.load_library_permanently(str(_library))
_mj_step1 = types.ExternalFunction("mj_step1", types.void(_POINTER, _POINTER))
_mj_step2 = types.ExternalFunction("mj_step2", types.void(_POINTER, _POINTER))
_mj_jacSite = types.ExternalFunction("mj_jacSite", types.void(_POINTER, _POINTER, _POINTER, _POINTER, types.int32))
_mj_fullM = types.ExternalFunction("mj_fullM", types.void(_POINTER, _POINTER, _POINTER))


def _run_substeps(  # type: ignore[no-untyped-def]
    count, model, data, inertia, qpos, qvel, bias, ctrl, site_pos, site_mat,
    site, base, joints, dofs, actuators, low, high, goal_pos, goal_mat, kp, kd, rest,
):  # fmt: skip
    """Runs substeps of MuJoCo under the torques that robosuite's controller computes.

    Every operation stands as in robosuite's ``OperationalSpaceController.run_controller``, in its order and with its
    memory layouts, because they decide the last bits.

    Args:
        count: of substeps; MuJoCo's step1 of the first was called before.
        model, data, inertia: addresses of MuJoCo's mjModel, mjData and its qM.
        qpos, qvel, bias, ctrl, site_pos, site_mat: MuJoCo's own arrays; ``bias`` is qfrc_bias.
        site, base: the controlled site, and the one in whose frame the goal stands.
        joints, dofs, actuators: the arm's places in qpos, in qvel, and in ctrl, n each.
        low, high: limits of the torques [n].
        goal_pos, goal_mat: where the site shall be [3], [3, 3].
        kp, kd: gains [6].
        rest: joint positions that the arm prefers [n].
    """
    size, n = len(qvel), len(dofs)
    all_pos, all_ori, all_mass = np.empty((3, size)), np.empty((3, size)), np.empty((size, size))
    base_pos, base_ori = np.empty((3, size)), np.empty((3, size))
    jac, jac_pos, jac_ori, mass = np.empty((6, n)), np.empty((3, n)), np.empty((3, n)), np.empty((n, n))
    wrench = np.empty(6)
    for substep in range(count):
        if substep > 0:
            _mj_step1(model, data)
        _mj_jacSite(model, data, all_pos.ctypes.data, all_ori.ctypes.data, site)
        _mj_jacSite(model, data, base_pos.ctypes.data, base_ori.ctypes.data, base)
        _mj_fullM(model, all_mass.ctypes.data, inertia)
        for j in range(n):
            for i in range(3):
                jac[i, j] = jac_pos[i, j] = all_pos[i, dofs[j]]
                jac[i + 3, j] = jac_ori[i, j] = all_ori[i, dofs[j]]
            for i in range(n):
                mass[j, i] = all_mass[dofs[i], dofs[j]]
        frame = site_mat[base].reshape((3, 3))
        error = site_pos[base] + np.dot(frame, goal_pos) - site_pos[site]
        force = error * kp[:3] + -(np.dot(all_pos, qvel) - np.dot(base_pos, qvel)) * kd[:3]
        turn = orientation_error(np.dot(frame, goal_mat), site_mat[site].reshape((3, 3)))
        torque = turn * kp[3:] + -(np.dot(all_ori, qvel) - np.dot(base_ori, qvel)) * kd[3:]
        _, lambda_pos, lambda_ori, nullspace = opspace_matrices(mass.T, jac, jac_pos, jac_ori)
        wrench[:3], wrench[3:] = np.dot(lambda_pos, force), np.dot(lambda_ori, torque)
        torques = np.dot(jac.T, wrench) + bias[dofs]
        torques += nullspace_torques(mass.T, nullspace, rest, qpos[joints], qvel[dofs])
        for j in range(n):
            ctrl[actuators[j]] = low[j] if torques[j] < low[j] else high[j] if torques[j] > high[j] else torques[j]
        _mj_step2(model, data)


_substeps = njit(cache=True, nogil=True)(_run_substeps)


def control_step(env: ManipulationEnv) -> ControlStep:
    """A function that executes an action in the environment as ``env.step`` does, to the last bit.

    It is compiled where that is proven, else robosuite's own, which is said once.

    Args:
        env: is reset before it is used.
    """
    own: ControlStep = env.step
    if reason := unproven(env):
        _say(reason)
        return own
    compiled = CompiledStep(env)
    with _one_process(None if _substeps.signatures else _substeps.stats.cache_path):
        same = same_bits(env, compiled)
    if not same:
        _say("the compiled loop rounds differently on this machine")
        return own
    return compiled


def unproven(env: ManipulationEnv) -> str:
    """Why the compiled loop may not stand in for the environment's own step; empty: it may."""
    if _library is None:
        return "MuJoCo's library does not lie in its package's folder"
    if not is_jitted(opspace_matrices):
        return "numba is switched off"
    for package, proven in PROVEN.items():
        if (found := version(package)) != proven:
            return f"{package} is {found}, and the compiled loop is proven for {proven}"
    if any(getattr(type(env), name).__module__ not in KNOWN for name in STEP):
        return f"{type(env).__name__} has a step of its own"
    if not env.ignore_done or any(observable.is_enabled() for observable in env._observables.values()):
        return "robosuite's horizon or observables are in use"
    if env.hard_reset:
        return "each reset makes another model (hard_reset)"
    robot, *others = env.robots
    if others or type(robot) is not FixedBaseRobot or robot.arms != ["right"] or not env.lite_physics:
        return f"{robot.name} is not one arm on a fixed base"
    arm, *grippers = robot.part_controllers.values()
    if (
        type(arm) is not OperationalSpaceController
        or (arm.interpolator_pos, arm.interpolator_ori, arm.input_ref_frame) != (None, None, "base")
        or not (arm.uncoupling and arm.lite_physics)
        or any(type(gripper) is not SimpleGripController or gripper.interpolator for gripper in grippers)
    ):
        return f"{robot.name}'s controller, {arm.name}, is not OSC_POSE with robosuite's default settings"
    return ""


class CompiledStep:
    """A control step of an environment for which :func:`unproven` is empty.

    A fatal error of MuJoCo, such as a full stack, ends the process here, where MuJoCo's Python package raises it.
    """

    def __init__(self, env: ManipulationEnv) -> None:
        self._env, (self._robot,) = env, env.robots
        model, data = env.sim.model._model, env.sim.data._data
        arm = self._robot.part_controllers["right"]
        self._actuators = {
            part: np.array(places, np.intp) for part, places in self._robot._ref_actuators_indexes_dict.items()
        }
        self._limits = {part: model.actuator_ctrlrange[places].T.copy() for part, places in self._actuators.items()}
        self._substeps = int(env.control_timestep / env.model_timestep)
        self._ctrl, self._site = data.ctrl, model.site(arm.ref_name).id
        self._fixed: tuple[Any, ...] = (
            *(model._address, data._address, data.qM.ctypes.data),
            *(data.qpos, data.qvel, data.qfrc_bias, data.ctrl, data.site_xpos, data.site_xmat),
            *(self._site, model.site(f"{arm.naming_prefix}{arm.part_name}_center").id),
            *(np.array(arm.qpos_index, np.intp), np.array(arm.qvel_index, np.intp)),
            *(self._actuators["right"], *self._limits["right"]),
        )

    def __call__(self, action: FloatArray) -> None:
        env = self._env
        arm = self._robot.part_controllers["right"]  # a reset makes it anew
        env.timestep += 1
        env.sim.step1()
        count = self._substeps
        if arm.new_update:
            self._set_goals(action)
        else:  # the first step of a new controller uses what it stored when it was made
            env._pre_action(action, policy_step=True)
            env.sim.step2()
            env.sim.step1()
            count -= 1
        goals = (arm.goal_pos, arm.goal_ori, arm.kp, arm.kd, arm.initial_joint)
        _substeps(count, *self._fixed, *(np.ascontiguousarray(each, np.float64) for each in goals))
        arm.new_update = True
        env.cur_time += env.control_timestep
        env._post_action(action)

    def _set_goals(self, action: FloatArray) -> None:
        """Sets the arm's goal, and the gripper's controls, which stay the same in all substeps."""
        controllers = self._robot.part_controllers
        for controller in controllers.values():
            controller.new_update = False  # of all that it would look up, goals depend on the arm's pose alone
        arm, data = controllers["right"], self._env.sim.data._data
        arm.ref_pos[:], arm.ref_ori_mat.flat[:] = data.site_xpos[self._site], data.site_xmat[self._site]
        self._robot.composite_controller.update_state()
        self._robot.composite_controller.set_goal(action)
        for part, controller in controllers.items():
            if part != "right":
                self._ctrl[self._actuators[part]] = np.clip(controller.run_controller(), *self._limits[part])


def same_bits(env: ManipulationEnv, compiled: ControlStep, steps: int = CHECKED_STEPS) -> bool:
    """Whether both steps lead through the same states; compiles the loop. The environment's state is restored."""
    model, data = env.sim.model._model, env.sim.data._data
    gripper = env.robots[0].gripper["right"]
    everything = mujoco.mjtState.mjSTATE_INTEGRATION
    actions = np.linspace(-0.5, 0.5, (steps + 1) * env.action_dim).reshape(-1, env.action_dim)

    def state() -> tuple[FloatArray, FloatArray]:
        integration = np.empty(mujoco.mj_stateSize(model, everything))
        mujoco.mj_getState(model, data, integration, everything)
        return integration, np.copy(gripper.current_action)

    def restore(kept: tuple[FloatArray, FloatArray]) -> None:
        mujoco.mj_setState(model, data, kept[0], everything)
        gripper.current_action = np.copy(kept[1])

    def states(step: ControlStep) -> list[FloatArray]:
        restore(start)
        reached = []
        for action in actions[1:]:
            step(action)
            reached.append(state()[0])
        return reached

    before = state()
    env.step(actions[0])  # a new controller's first step uses what it stored when it was made
    start = state()
    same = np.array_equal(states(env.step), states(compiled), equal_nan=True)
    restore(before)
    env.sim.forward()
    return same


@contextmanager
def _one_process(folder: str | None) -> Iterator[None]:
    """Holds a lock while the loop is compiled into numba's folder, so that other processes load what one compiled.

    Args:
        folder: numba's; None: nothing is compiled into a folder.
    """
    with ExitStack() as stack:
        if folder is not None:
            with suppress(Timeout, OSError, NotImplementedError):  # without the lock it takes time and nothing else
                stack.enter_context(FileLock(Path(folder) / "osc_pose.lock", timeout=LONGEST_WAIT))
        yield


@cache
def _say(reason: str) -> None:
    logging.getLogger(__name__).warning("control steps are robosuite's own, which take longer: %s", reason)
