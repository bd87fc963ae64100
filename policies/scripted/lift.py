"""Expert for the Lift family: line up over the cube, descend, close, lift.

It remembers nothing, so it recovers from any disturbance.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sim_eval.envs.contract import FloatArray
from sim_eval.policies.policy import ActionChunk
from sim_eval.policies.scripted.waypoints import CLOSE, OPEN, tilt_error, towards, yaw_error

HOVER_METRES = 0.06
AT_CUBE_METRES = 0.012
# The cube is 40 to 44 mm wide; narrower than this the fingers hold it.
HOLDING_METRES = 0.048
POSITION_NOISE, ROTATION_NOISE = 0.5, 0.15


def lift(state: Mapping[str, FloatArray], instruction: str) -> ActionChunk:
    """One action from the gripper's and the cube's pose."""
    offset = state["cube_pos"] - state["eef_pos"]
    turn = yaw_error(state["eef_mat"], state["cube_mat"])
    rotation = tilt_error(state["eef_mat"]) + np.array([0.0, 0.0, turn])
    beside = float(np.linalg.norm(offset[:2]))
    width = float(state["gripper_qpos"][0] - state["gripper_qpos"][1])
    at_cube = beside < AT_CUBE_METRES and abs(offset[2]) < AT_CUBE_METRES
    if at_cube:
        goal = np.array([0.0, 0.0, 0.1]) if width < HOLDING_METRES else offset
        action = towards(goal, 0 * rotation, CLOSE)
    else:
        # A funnel: the further beside the cube or the less lined up, the higher above it.
        height = HOVER_METRES * np.clip((beside - 0.005) / 0.03 + (abs(turn) - 0.05) / 0.3, 0.0, 1.0)
        action = towards(offset + np.array([0.0, 0.0, height]), rotation, OPEN, gain=1.5)
    fade = 0.0 if at_cube else float(np.clip((np.linalg.norm(offset) - 0.02) / 0.08, 0.05, 1.0))
    noise = fade * np.array([*[POSITION_NOISE] * 3, *[ROTATION_NOISE] * 3, 0.0])
    return ActionChunk(action[None], disturbance=noise)


EXPERTS = {"robosuite/Lift": lift, "robosuite/LiftWide": lift}
