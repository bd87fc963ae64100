"""Demonstrator for PickPlaceCan: pick the can, carry it over the wall to its compartment, let go, rise."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sim_eval.core.types import ActionChunk, FloatArray
from sim_eval.policies.scripted.waypoints import carry, finger_width, grasp, is_held, let_go, upright

# A place in the can's compartment, world frame. The compartment's centre is out of reach with an upright gripper.
COMPARTMENT = np.array([0.165, 0.36])
HOVER_METRES = 0.1  # the fingers pass over the can, which stands 4 cm above its centre
CARRY_METRES = 1.02  # height of the can's centre while it crosses the walls, which end at 0.9
RELEASE_METRES = 0.91
CAN_METRES = 0.05  # its width
OVER_METRES = 0.02


def pick_place(state: Mapping[str, FloatArray], instruction: str) -> ActionChunk:
    """One action from the gripper's and the can's pose."""
    can = state["can_pos"]
    offset, width = can - state["eef_pos"], finger_width(state)
    across = COMPARTMENT - can[:2]
    beside = float(np.linalg.norm(across))
    if beside < 2 * OVER_METRES and can[2] < RELEASE_METRES:
        return let_go(state["eef_mat"], width, CAN_METRES)
    if is_held(offset, width, CAN_METRES):
        # Up first, then over, then down: sideways only as far as the height allows.
        rise = (CARRY_METRES if beside > OVER_METRES else RELEASE_METRES - 0.02) - can[2]
        across = across * np.clip(1.5 - rise / 0.05, 0.0, 1.0)
        return carry(across, rise, upright(state["eef_mat"]), beside)
    return grasp(offset, upright(state["eef_mat"]), HOVER_METRES)


DEMONSTRATORS = {"robosuite/PickPlaceCan": pick_place}
