"""Demonstrators for libero_object and libero_spatial: pick an object, carry it over its place, let go, rise.

The bounding boxes of the objects decide where to grasp, how high to travel and where to let go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sim_eval.core.types import ActionChunk, FloatArray
from sim_eval.policies.scripted.waypoints import carry, finger_width, grasp, is_at, let_go, upright

OPENING_METRES = 0.07  # wider objects are held by the rim
HAND_METRES, HAND_HALF_METRES = 0.1, 0.035  # half of the hand's length (along the opening) and of its thickness
PALM_METRES = 0.04  # height of the palm above the point between the fingers
TURN_COST = 0.01
CARRIED_METRES = 0.08  # distance that the middle of a carried object keeps from other objects
DEPTH_METRES = 0.035  # how far below an object's top it is held; deeper, the palm would touch it
RIM_DEPTH_METRES, RIM_INSET_METRES = 0.012, 0.008  # how far below and inside its rim a bowl is held
GROUND_METRES = 0.012  # least height of the grasp above the ground: the fingertips reach below it
CLEARANCE_METRES = 0.03  # above the highest object on the way
DEEP_METRES = 0.08  # a higher place is a container
BELOW_RIM_METRES = 0.02  # how far the fingers reach into a container
OVER_METRES = 0.01
SLACK_METRES = 0.03  # how far below the travelling height the hand may already move sideways
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
    """The object of this name; any of its axes may point up."""
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
    """All objects but the one that is to be moved; its place is among them."""
    names = [key.removesuffix("_box") for key in state if key.endswith("_box")]
    own = state["moved_pos"]
    return [thing(state, name) for name in names if not np.array_equal(state[f"{name}_pos"], own)]


def way_height(state: Mapping[str, FloatArray], start: FloatArray, end: FloatArray, beside: float) -> float:
    """Height, in metres, above which the way from one point [2] to another, seen from above, is free of objects.

    Only objects that are nearer to the way than ``beside`` count: an arm that is held high does not reach far.
    """
    along = (end - start) / max(float(np.sum((end - start) ** 2)), 1e-9)
    tops = [
        each.top
        for each in others(state)
        if gap(start + np.clip((each.middle[:2] - start) @ along, 0.0, 1.0) * (end - start), [each], beside) < beside
    ]
    return max(tops, default=-np.inf) + CLEARANCE_METRES


def turn_to(eef_mat: FloatArray, way: FloatArray) -> float:
    """Rotation about world z, in (-pi/2, pi/2], that makes the fingers open along a direction [2] or its opposite."""
    fingers = np.arctan2(eef_mat[1, 0], eef_mat[0, 0])
    wanted = np.arctan2(way[1], way[0])
    return float(np.pi / 2 - (np.pi / 2 - (wanted - fingers)) % np.pi)


def direction(angle: float) -> FloatArray:
    """Unit vector [2] at an angle from world x."""
    return np.array([np.cos(angle), np.sin(angle)])


def gap(point: FloatArray, things: Sequence[Thing], free: float) -> float:
    """Metres from a point [2], seen from above, to the nearest circle around an object; at most ``free``."""
    return min([free, *(float(np.linalg.norm(point - each.middle[:2]) - each.half_widths.max()) for each in things)])


def between_fingers(state: Mapping[str, FloatArray], moved: Thing) -> tuple[FloatArray, float]:
    """Grasp point [3] and turn for a narrow object, such that the hand has room beside other objects.

    The fingers close across a side that fits, in its middle and straight if that is possible.
    """
    height = max(moved.top - DEPTH_METRES, moved.bottom + GROUND_METRES)
    tall = [each for each in others(state) if each.top > height + PALM_METRES]

    def judge(way: tuple[FloatArray, float, float]) -> tuple[float, float]:
        point, angle, oddity = way
        spots = (point + reach * direction(angle) for reach in np.linspace(-1, 1, 5) * HAND_METRES)
        room = min(gap(spot, tall, HAND_HALF_METRES) for spot in spots)
        return round(room, 3), -oddity - TURN_COST * round(abs(turn_to(state["eef_mat"], direction(angle))), 1)

    ways = [
        (moved.middle[:2] + shift * along, float(np.arctan2(side[1], side[0])) + askew, abs(askew) + abs(shift) * 10)
        for side, half, along, length in zip(
            moved.sides, moved.half_widths, moved.sides[::-1], moved.half_widths[::-1], strict=True
        )
        for askew in (0.0, 0.2, -0.2, 0.4, -0.4)
        for shift in (0.0, length / 2, -length / 2)
        if 2 * half < OPENING_METRES
    ]
    point, angle, _ = max(ways, key=judge)
    return np.array([*point, height]), turn_to(state["eef_mat"], direction(angle))


def by_the_rim(state: Mapping[str, FloatArray], moved: Thing) -> tuple[FloatArray, float]:
    """Grasp point [3] and turn for a bowl: one finger inside and one outside, where there is room.

    In a drawer, that is along the drawer's front (its longer side) and towards its middle.
    """
    rotation, radius = state["moved_mat"], float(moved.half_widths.mean())

    def rim(way: FloatArray) -> FloatArray:
        outwards = rotation.T @ np.array([*way, 0.0])
        outwards[2] = 0.0
        outwards *= (radius - RIM_INSET_METRES) / np.linalg.norm(outwards)
        top = np.array([0.0, 0.0, moved.half_height - RIM_DEPTH_METRES])
        point: FloatArray = moved.middle + rotation @ (outwards + top)
        return point

    low = moved.top - 2 * RIM_DEPTH_METRES
    beside = [each for each in others(state) if each.bottom < moved.bottom + RIM_DEPTH_METRES and each.top > low]

    def judge(way: FloatArray) -> tuple[float, float]:
        finger = moved.middle[:2] + (radius + FINGER_METRES) * way
        # Rounding makes the choice between two equally good sides always the same.
        return round(gap(finger, beside, FREE_METRES), 3), -round(abs(turn_to(state["eef_mat"], way)), 1)

    here = state["eef_pos"][:2] - moved.middle[:2]
    if np.linalg.norm(here) > 1e-6:
        here = here / np.linalg.norm(here)
        if is_at(rim(here) - state["eef_pos"], 2 * RIM_DEPTH_METRES):
            return rim(here), turn_to(state["eef_mat"], here)
    ways = [direction(angle) for angle in np.arange(4) * np.pi / 2]
    for drawers in others(state):
        if drawers.bottom + DEEP_METRES < moved.bottom and moved.top < drawers.top:
            front = drawers.sides[int(drawers.half_widths.argmax())]
            ways = [front if (moved.middle - drawers.middle)[:2] @ front < 0 else -front]
    best = max(ways, key=judge)
    return rim(best), turn_to(state["eef_mat"], best)


def transport(state: Mapping[str, FloatArray], instruction: str) -> ActionChunk:
    """One action from the poses of the gripper and of the objects in the scene."""
    eef, width = state["eef_pos"], finger_width(state)
    moved, place = thing(state, "moved"), thing(state, "place")
    container, rimmed = place.half_height > DEEP_METRES / 2, bool(moved.half_widths.min() > OPENING_METRES / 2)
    across = (place.middle - moved.middle)[:2]
    beside = float(np.linalg.norm(across))
    # The height at which the object's bottom ends, such that the palm stays above a container's rim.
    reach = float(eef[2]) - moved.bottom
    seat = max(place.bottom + OVER_METRES, place.top - BELOW_RIM_METRES - reach) if container else place.bottom
    if beside < 2 * OVER_METRES and moved.bottom < seat + SEATED_METRES:
        return let_go(state["eef_mat"], width, LOOSE_METRES if rimmed else 2 * min(moved.half_widths))
    point, turn = (by_the_rim if rimmed else between_fingers)(state, moved)
    if state["held"][0]:
        # Up first, then over, then down a funnel: sideways only as far as the height allows.
        travel = max(way_height(state, moved.middle[:2], place.middle[:2], CARRIED_METRES), seat)
        rise = seat + (travel - seat) * np.clip((beside - OVER_METRES) / 0.03, 0.0, 1.0) - moved.bottom
        across = across * np.clip(1.0 - rise / SLACK_METRES, 0.0, 1.0)
        # Without turning: it would block the arm far out, where the elbow is straight.
        return carry(across, rise, np.zeros(3), beside)
    travel = max(way_height(state, eef[:2], point[:2], HAND_METRES), moved.top + CLEARANCE_METRES)
    return grasp(point - eef, upright(state["eef_mat"], turn), travel - float(point[2]))


DEMONSTRATORS = {
    f"{suite}/{number}": transport for suite in ("libero_object", "libero_spatial") for number in range(10)
}
