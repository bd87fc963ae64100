"""Steps that waypoint experts share: the 7-D OSC_POSE action towards a pose, world frame, metres and radians."""

from __future__ import annotations

import numpy as np

from sim_eval.envs.contract import FloatArray

METRES_PER_UNIT, RADIANS_PER_UNIT = 0.05, 0.5
OPEN, CLOSE = -1.0, 1.0


def yaw_error(eef_mat: FloatArray, object_mat: FloatArray) -> float:
    """Rotation about world z, in (-pi/4, pi/4], that lines the fingers up with a square object's nearest face.

    Args:
        eef_mat, object_mat: rotation matrices [3, 3]; the fingers open along the gripper's y.
    """
    fingers = np.arctan2(eef_mat[1, 1], eef_mat[0, 1])
    face = np.arctan2(object_mat[1, 0], object_mat[0, 0])
    quarter = np.pi / 2
    return float((face - fingers + quarter / 2) % quarter - quarter / 2)


def tilt_error(eef_mat: FloatArray) -> FloatArray:
    """Rotation vector [3] about the world's x and y that points the gripper straight down."""
    return np.cross(eef_mat[:, 2], np.array([0.0, 0.0, -1.0]))


def towards(offset: FloatArray, rotation: FloatArray, gripper: float, gain: float = 1.0) -> FloatArray:
    """Action [7] for a position offset [3] in metres and a rotation vector [3] in radians, within the bounds."""
    action = np.concatenate([gain * offset / METRES_PER_UNIT, gain * rotation / RADIANS_PER_UNIT, [gripper]])
    return np.clip(action, -1.0, 1.0)
