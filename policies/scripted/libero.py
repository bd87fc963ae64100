"""Experts for libero_object and libero_spatial: pick something, carry it over its place, let go, rise.

Where to take hold, how high to travel and where to let go follow from the boxes round the things.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sim_eval.envs.contract import FloatArray
from sim_eval.policies.policy import ActionChunk
from sim_eval.policies.scripted.waypoints import (
    CLOSE,
    approach,
    disturbed,
    finger_width,
    is_at,
    let_go,
    towards,
    upright,
)

HAND_METRES = 0.07  # what is wider is not taken between the fingers but by its rim
DEPTH_METRES = 0.035  # of the point between the fingers below the top of what they hold, or the palm would touch it
RIM_DEPTH_METRES, RIM_INSET_METRES = 0.012, 0.008  # of that point below a bowl's rim, and inside it
GROUND_METRES = 0.012  # of that point above what the thing stands on: the fingertips reach further down
CLEARANCE_METRES = 0.03  # above the highest thing, on the way
DEEP_METRES = 0.08  # a place that is higher is a container
BELOW_RIM_METRES = 0.02  # how far the fingers reach into one
OVER_METRES = 0.015
SEATED_METRES = 0.008
FINGER_METRES = 0.05  # from the point between the open fingers to the outside of one
FREE_METRES = 0.02
LOOSE_METRES = 0.045  # opening at which fingers may rise from a rim


@dataclass(frozen=True)
class Thing:
    """An object as it stands: its middle [3], the axes [2, 2] of its sides seen from above, and half its sizes."""

    middle: FloatArray
    sides: FloatArray
    half_widths: FloatArray
    half_height: float

    @property
    def bottom(self) -> float:
        return float(self.middle[2]) - self.half_height

    @property
    def top(self) -> float:
        return float(self.middle[2]) + self.half_height


def thing(state: Mapping[str, FloatArray], name: str) -> Thing:
    """The object of this name, whichever of its axes points up."""
    rotation, (lower, upper) = state[f"{name}_mat"], state[f"{name}_box"]
    half = (upper - lower) / 2
    up = int(np.argmax(np.abs(rotation[2])))
    flat = [axis for axis in range(3) if axis != up]
    return Thing(
        middle=state[f"{name}_pos"] + rotation @ ((lower + upper) / 2),
        sides=rotation[:2, flat].T,
        half_widths=half[flat],
        half_height=float(half[up]),
    )


def others(state: Mapping[str, FloatArray]) -> list[Thing]:
    """Everything but what is to move; its place among it."""
    names = [key.removesuffix("_box") for key in state if key.endswith("_box")]
    own = state["moved_pos"]
    return [thing(state, name) for name in names if not np.array_equal(state[f"{name}_pos"], own)]


def turn_to(eef_mat: FloatArray, direction: FloatArray) -> float:
    """Rotation about world z, in (-pi/2, pi/2], after which the fingers open along the direction [2], either way."""
    fingers = np.arctan2(eef_mat[1, 1], eef_mat[0, 1])
    wanted = np.arctan2(direction[1], direction[0])
    return float(np.pi / 2 - (np.pi / 2 - (wanted - fingers)) % np.pi)


def between_fingers(state: Mapping[str, FloatArray], moved: Thing) -> tuple[FloatArray, float]:
    """Where [3] and with what turn to take hold of something narrow: across whichever side asks for less turning."""
    turns = [
        turn_to(state["eef_mat"], side)
        for side, half in zip(moved.sides, moved.half_widths, strict=True)
        if 2 * half < HAND_METRES
    ]
    height = max(moved.top - DEPTH_METRES, moved.bottom + GROUND_METRES)
    return np.array([*moved.middle[:2], height]), min(turns, key=abs)


def by_the_rim(state: Mapping[str, FloatArray], moved: Thing) -> tuple[FloatArray, float]:
    """Where [3] and with what turn to take hold of a bowl: one finger inside, one outside, where there is room."""
    rotation, radius = state["moved_mat"], float(moved.half_widths.mean())

    def rim(direction: FloatArray) -> FloatArray:
        outwards = rotation.T @ np.array([*direction, 0.0])
        outwards[2] = 0.0
        outwards *= (radius - RIM_INSET_METRES) / np.linalg.norm(outwards)
        top = np.array([0.0, 0.0, moved.half_height - RIM_DEPTH_METRES])
        return moved.middle + rotation @ (outwards + top)

    def room(direction: FloatArray) -> float:
        finger = moved.middle[:2] + (radius + FINGER_METRES) * direction
        gaps = [
            np.linalg.norm(finger - each.middle[:2]) - each.half_widths.max()
            for each in others(state)
            if each.top > moved.top - 2 * RIM_DEPTH_METRES and each.bottom < moved.bottom
        ]
        return min([FREE_METRES, *gaps])

    here = state["eef_pos"][:2] - moved.middle[:2]
    if np.linalg.norm(here) > 1e-6:
        here = here / np.linalg.norm(here)
        if is_at(rim(here) - state["eef_pos"], 2 * RIM_DEPTH_METRES):
            return rim(here), turn_to(state["eef_mat"], here)
    ways = [np.array([np.cos(angle), np.sin(angle)]) for angle in np.arange(4) * np.pi / 2]
    best = max(ways, key=lambda way: (round(room(way), 3), -round(abs(turn_to(state["eef_mat"], way)), 1)))
    return rim(best), turn_to(state["eef_mat"], best)


def transport(state: Mapping[str, FloatArray], instruction: str) -> ActionChunk:
    """One action from the gripper's pose and those of the things on the scene."""
    eef, width = state["eef_pos"], finger_width(state)
    moved, place = thing(state, "moved"), thing(state, "place")
    container, rimmed = place.half_height > DEEP_METRES / 2, bool(moved.half_widths.min() > HAND_METRES / 2)
    across = (place.middle - moved.middle)[:2]
    beside = float(np.linalg.norm(across))
    # Where the bottom of the thing comes to, by which the palm stays above a container's rim.
    reach = float(eef[2]) - moved.bottom
    seat = max(place.bottom + OVER_METRES, place.top - BELOW_RIM_METRES - reach) if container else place.bottom
    if beside < 2 * OVER_METRES and moved.bottom < seat + SEATED_METRES:
        return disturbed(let_go(state["eef_mat"], width, LOOSE_METRES if rimmed else 2 * min(moved.half_widths)), 0.0)
    travel = max(each.top for each in others(state)) + CLEARANCE_METRES
    grasp, turn = (by_the_rim if rimmed else between_fingers)(state, moved)
    if state["held"][0]:
        # Up first, then over, then down: sideways only as far as the height allows.
        rise = (travel if beside > OVER_METRES else seat) - moved.bottom
        across = across * np.clip(1.5 - rise / 0.05, 0.0, 1.0)
        return disturbed(towards(np.array([*across, rise]), upright(state["eef_mat"]), CLOSE, gain=1.5), beside)
    offset = grasp - eef
    if is_at(offset):
        return disturbed(towards(offset, np.zeros(3), CLOSE), 0.0)
    hover = max(travel - float(grasp[2]), CLEARANCE_METRES)
    return disturbed(approach(offset, upright(state["eef_mat"], turn), hover), float(np.linalg.norm(offset)))


EXPERTS = {f"{suite}/{number}": transport for suite in ("libero_object", "libero_spatial") for number in range(10)}
