"""Steps that waypoint demonstrators share: the 7-D OSC_POSE action towards a pose, world frame, metres and radians.

Demonstrators keep no state, so they recover from any disturbance.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sim_eval.core.types import ActionChunk, FloatArray

METRES_PER_UNIT, RADIANS_PER_UNIT = 0.05, 0.5
OPEN, CLOSE = -1.0, 1.0
HOVER_METRES = 0.06
AT_OBJECT_METRES = 0.012
HELD_METRES = 0.025
GRIP_SLACK_METRES, CLEAR_METRES = 0.004, 0.012
POSITION_NOISE, ROTATION_NOISE = 0.5, 0.15


def yaw_error(eef_mat: FloatArray, object_mat: FloatArray) -> float:
    """Rotation about world z, in (-pi/4, pi/4], that lines the fingers up with a square object's nearest face.

    Args:
        eef_mat, object_mat: rotation matrices [3, 3]; the fingers open along the gripper's x, a quarter from its y.
    """
    fingers = np.arctan2(eef_mat[1, 1], eef_mat[0, 1])
    face = np.arctan2(object_mat[1, 0], object_mat[0, 0])
    quarter = np.pi / 2
    return float((face - fingers + quarter / 2) % quarter - quarter / 2)


def upright(eef_mat: FloatArray, turn: float = 0.0) -> FloatArray:
    """Rotation vector [3] that points the gripper straight down and turns it about world z."""
    rotation: FloatArray = np.cross(eef_mat[:, 2], np.array([0.0, 0.0, -1.0])) + np.array([0.0, 0.0, turn])
    return rotation


def towards(offset: FloatArray, rotation: FloatArray, gripper: float, gain: float = 1.0) -> FloatArray:
    """Action [7] for a position offset [3] in metres and a rotation vector [3] in radians, within the bounds."""
    action = np.concatenate([gain * offset / METRES_PER_UNIT, gain * rotation / RADIANS_PER_UNIT, [gripper]])
    bounded: FloatArray = np.clip(action, -1.0, 1.0)
    return bounded


def finger_width(state: Mapping[str, FloatArray]) -> float:
    """Metres between the fingers."""
    if "finger_gap" in state:
        return float(state["finger_gap"][0])
    return float(state["gripper_qpos"][0] - state["gripper_qpos"][1])  # of the Panda


def is_at(offset: FloatArray, metres: float = AT_OBJECT_METRES) -> bool:
    """Is an object, ``offset`` [3] away from the gripper, between the fingers?"""
    return bool(np.linalg.norm(offset[:2]) < metres and abs(offset[2]) < metres)


def is_held(offset: FloatArray, width: float, size: float) -> bool:
    """Do fingers that are ``width`` apart hold an object that is ``size`` wide and ``offset`` [3] away?"""
    return is_at(offset, HELD_METRES) and width < size + GRIP_SLACK_METRES


def let_go(eef_mat: FloatArray, width: float, size: float) -> ActionChunk:
    """One action that opens the fingers, and rises once they are clear of an object ``size`` wide."""
    rise = 0.05 if width > size + CLEAR_METRES else 0.0
    return disturbed(towards(np.array([0.0, 0.0, rise]), upright(eef_mat), OPEN), 0.0)


def grasp(offset: FloatArray, rotation: FloatArray, hover: float = HOVER_METRES) -> ActionChunk:
    """One action towards an object with open fingers, down a funnel; at the object they close.

    The further the gripper is to the side, or the less it is lined up, the higher it stays, up to ``hover`` metres.
    """
    if is_at(offset):
        return disturbed(towards(offset, np.zeros(3), CLOSE), 0.0)
    beside, turn = float(np.linalg.norm(offset[:2])), abs(rotation[2])
    height = hover * np.clip((beside - 0.005) / 0.03 + (turn - 0.05) / 0.3, 0.0, 1.0)
    action = towards(offset + np.array([0.0, 0.0, height]), rotation, OPEN, gain=1.5)
    return disturbed(action, float(np.linalg.norm(offset)))


def carry(across: FloatArray, rise: float, rotation: FloatArray, metres: float) -> ActionChunk:
    """One action with closed fingers, by ``across`` [2] and ``rise`` metres; ``metres`` are left to the place."""
    return disturbed(towards(np.array([*across, rise]), rotation, CLOSE, gain=1.5), metres)


def disturbed(action: FloatArray, metres: float) -> ActionChunk:
    """The action with a disturbance that fades as fewer metres are left to the place that needs care."""
    fade = 0.0 if metres <= 0 else float(np.clip((metres - 0.02) / 0.08, 0.05, 1.0))
    return ActionChunk(action[None], disturbance=fade * np.array([*[POSITION_NOISE] * 3, *[ROTATION_NOISE] * 3, 0.0]))
