"""Demonstrator for Stack: pick the cube that the instruction names first, carry it over the other, let go, rise."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sim_eval.core.types import ActionChunk, FloatArray
from sim_eval.policies.scripted.waypoints import carry, finger_width, grasp, is_held, let_go, upright, yaw_error

HALF_SIZE = {"red": 0.020, "green": 0.025}
CLEARANCE_METRES = 0.03  # between the cubes while one is carried over the other
OVER_METRES = 0.008
SEATED_METRES = 0.007
PRESS_METRES = 0.005  # the aim is that much below the seat, or the last millimetres would take too long


def stack(state: Mapping[str, FloatArray], instruction: str) -> ActionChunk:
    """One action from the gripper's and the cubes' poses; the instruction says which cube goes on which."""
    moved, base = sorted(HALF_SIZE, key=instruction.index)
    seat = state[f"{base}_pos"] + np.array([0.0, 0.0, HALF_SIZE[base] + HALF_SIZE[moved]]) - state[f"{moved}_pos"]
    offset = state[f"{moved}_pos"] - state["eef_pos"]
    beside, width, size = float(np.linalg.norm(seat[:2])), finger_width(state), 2 * HALF_SIZE[moved]
    if beside < HALF_SIZE[base] / 2 and abs(seat[2]) < SEATED_METRES:
        return let_go(state["eef_mat"], width, size)
    if is_held(offset, width, size):
        # Up first, then over, then down: sideways only as far as the height allows.
        rise = seat[2] + CLEARANCE_METRES * np.clip((beside - OVER_METRES) / 0.03, 0.0, 1.0)
        across = seat[:2] * np.clip(1.5 - rise / CLEARANCE_METRES, 0.0, 1.0)
        return carry(across, rise - PRESS_METRES, upright(state["eef_mat"]), beside)
    turn = yaw_error(state["eef_mat"], state[f"{moved}_mat"])
    return grasp(offset, upright(state["eef_mat"], turn))


DEMONSTRATORS = {"robosuite/Stack": stack}
