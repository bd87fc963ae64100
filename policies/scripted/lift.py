"""Demonstrator for the Lift family: line up over the cube, descend, close, lift."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sim_eval.core.types import ActionChunk, FloatArray
from sim_eval.policies.scripted.waypoints import (
    CLOSE,
    disturbed,
    finger_width,
    grasp,
    is_at,
    towards,
    upright,
    yaw_error,
)

# The cube is 40 to 44 mm wide; narrower than this the fingers hold it.
HOLDING_METRES = 0.048


def lift(state: Mapping[str, FloatArray], instruction: str) -> ActionChunk:
    """One action from the gripper's and the cube's pose."""
    offset = state["cube_pos"] - state["eef_pos"]
    if is_at(offset) and finger_width(state) < HOLDING_METRES:
        return disturbed(towards(np.array([0.0, 0.0, 0.1]), np.zeros(3), CLOSE), 0.0)
    return grasp(offset, upright(state["eef_mat"], yaw_error(state["eef_mat"], state["cube_mat"])))


DEMONSTRATORS = {"robosuite/Lift": lift, "robosuite/LiftWide": lift}
