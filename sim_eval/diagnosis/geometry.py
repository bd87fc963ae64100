"""Reprojection test: whether all cameras see one world, and objects at the simulator's positions.

It reads only the calibrated views of the Simulator protocol. A surface that one camera sees can be hidden from another,
but cannot be where the other sees empty space. In a sound scene hardly a point contradicts another camera (none of
46,000 at 64 x 64 pixels); with a flipped picture or a depth in another unit many do. Each known error is undone on
trial, and the one whose correction makes the cameras agree is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sim_eval.core.cameras import FARTHEST, project, unproject
from sim_eval.core.types import CameraView, FloatArray, Observation
from sim_eval.diagnosis.findings import Finding, graded, level_above

Views: TypeAlias = Mapping[str, CameraView]
Repair: TypeAlias = Callable[[CameraView], CameraView]

# Metres, plus a share of the distance, by which two views of one surface may differ beyond what a pixel spans.
TOLERANCE, RELATIVE_TOLERANCE = 0.005, 0.01
# Share of contradicting points. Measured on four tasks, fast and faithful: at most 0.0001 from 64 pixels on, 0.06 at
# 32 (walls thinner than a pixel); with a picture turned round or a depth of another kind 0.004 to 1.
CONTRADICTION_WARNING, CONTRADICTION_FAULT = 0.002, 0.02
LEAST_POINTS = 50  # common to two cameras; fewer prove nothing
NEAR_OBJECT = 0.08  # largest distance in metres from the middle of an object that fits a gripper to its visible surface
SEEN_THROUGH_FAULT = 0.1  # share of rays through an object's middle; a few, as of a hollow object, are only a warning
# By how much the edges of a picture and of its depth may correlate better when the picture is flipped.
EDGE_WARNING, EDGE_FAULT = 0.01, 0.1


@dataclass(frozen=True)
class Moment:
    """An observation, and the simulator's own state of objects at that instant."""

    observation: Observation
    privileged: Mapping[str, FloatArray]


def ray_lengths(view: CameraView) -> FloatArray:
    """Length [H, W] of each pixel's ray up to a planar depth of 1."""
    unit = replace(view, depth=np.ones_like(view.depth), camera_to_world=np.eye(4))
    lengths: FloatArray = np.linalg.norm(unproject(unit), axis=-1)
    return lengths


def _turned(turn: Callable[[NDArray[Any]], NDArray[Any]]) -> Repair:
    return lambda view: replace(view, rgb=turn(view.rgb), depth=turn(view.depth))


TURNS: Mapping[str, tuple[Repair, str]] = {
    "upside down": (_turned(np.flipud), "turn its rows round: row 0 is the top"),
    "mirrored": (_turned(np.fliplr), "turn its columns round: column 0 is the left"),
    "turned by 180 degrees": (_turned(lambda picture: picture[::-1, ::-1]), "turn its rows and columns round"),
}
# Error in depth -> its correction, and the remedy for the user.
DEPTH_ERRORS: Mapping[str, tuple[Repair, str]] = {
    "depth in millimetres": (
        lambda view: replace(view, depth=view.depth / np.float32(1000)),
        "divide the depth by 1000: metres",
    ),
    "depth along the ray": (
        lambda view: replace(view, depth=(view.depth / ray_lengths(view)).astype(np.float32)),
        "give planar depth, along the optical axis and not along each pixel's ray",
    ),
}
ERRORS = {**TURNS, **DEPTH_ERRORS}


def scene_findings(moments: Sequence[Moment]) -> Iterator[Finding]:
    """All checks of the cameras by their pictures of some moments."""
    yield from depth_ranges([moment.observation.views for moment in moments])
    yield from camera_agreement([moment.observation.views for moment in moments])
    yield from known_positions(moments)
    yield from edges_agree([moment.observation.views for moment in moments])


def depth_ranges(scenes: Sequence[Views]) -> Iterator[Finding]:
    """Whether each camera's depths can be metres."""
    for name in scenes[0]:
        depth = np.stack([views[name].depth for views in scenes])
        unsound = ~(np.isfinite(depth) & (depth > 0))
        typical = float(np.median(depth))
        measured = f"{depth.min():.2f} to {depth.max():.2f}, typically {typical:.2f} m"
        if unsound.any():
            remedy = "give every pixel a finite depth above 0, the far plane where nothing is seen"
            yield Finding(
                f"{name}: depth here", "fault", f"{unsound.mean():.1%} of it is not above 0 or not finite", remedy
            )
            continue
        level = level_above(typical, FARTHEST, FARTHEST)
        yield graded(
            f"{name}: depth here", level, measured, "metres expected, these look like millimetres: divide by 1000"
        )


@dataclass(frozen=True)
class Agreement:
    """Numbers of points of one camera in the picture of another.

    Attributes:
        same: the other sees the same surface.
        contradicted: the other sees something behind the point.
        hidden: the other sees something in front of it.
    """

    same: int = 0
    contradicted: int = 0
    hidden: int = 0

    @property
    def contradiction(self) -> float:
        """Share of contradicted points without the hidden ones; 1 when too few agree."""
        return self.contradicted / (self.same + self.contradicted) if self.same >= LEAST_POINTS else 1.0

    @property
    def share(self) -> float:
        """Share of all points that both see."""
        return self.same / max(1, self.same + self.contradicted + self.hidden)


def agreement(scenes: Sequence[Views]) -> Agreement:
    """The agreement of all pairs of cameras in all scenes together."""
    pairs = [_compare(views[one], views[other]) for views in scenes for one in views for other in views if one != other]
    return Agreement(*(sum(counts) for counts in zip(*pairs, strict=True)))


def _compare(one: CameraView, other: CameraView) -> tuple[int, int, int]:
    """The numbers of points of one camera that the other sees too, sees through, and cannot see."""
    from scipy.ndimage import maximum_filter, minimum_filter

    height, width = other.depth.shape
    points = unproject(one).reshape(-1, 3)
    with np.errstate(all="ignore"):
        pixels, depth = project(points, other.intrinsics, other.camera_to_world)
        inside = (depth > 0) & np.all((pixels >= 0) & (pixels < (width, height)), axis=-1)
    inside &= one.depth.reshape(-1) < FARTHEST  # each camera has its own far plane
    columns, rows = pixels[inside].astype(int).T
    depth = depth[inside]
    # Depths of neighbouring pixels count too: a slanted surface changes its depth within one pixel.
    near, far = (filtered(other.depth, 3)[rows, columns] for filtered in (minimum_filter, maximum_filter))
    slack = TOLERANCE + RELATIVE_TOLERANCE * depth
    before, behind = depth <= near - slack, depth >= far + slack
    return int(np.sum(~before & ~behind)), int(np.sum(before)), int(np.sum(behind))


def camera_agreement(scenes: Sequence[Views]) -> Iterator[Finding]:
    """Whether the cameras see one world, and if not, the error of the camera that explains it."""
    names = tuple(scenes[0])
    if len(names) < 2:
        yield Finding("reprojection", "ok", f"{len(names)} camera: there is no other to compare it with")
        return
    as_is = agreement(scenes)
    measured = f"{as_is.contradiction:.2%} of the points of one camera contradict another ({as_is.share:.0%} agree)"
    level = level_above(as_is.contradiction, CONTRADICTION_WARNING, CONTRADICTION_FAULT)
    remedy = "check intrinsics and camera_to_world: pixels of this picture, OpenCV axes, metres"
    if level != "ok":
        suspects = [(name,) for name in names] + [names]
        trials = {
            (error, suspect): agreement([_undone(views, error, suspect) for views in scenes])
            for error in ERRORS
            for suspect in suspects
        }
        error, suspect = max(trials, key=lambda trial: trials[trial].share)
        if trials[error, suspect].contradiction < as_is.contradiction / 3:
            level, remedy = "fault", ERRORS[error][1]
            measured = f"{' and '.join(suspect)}: {error}; as it is, {measured}"
    yield graded("reprojection", level, measured, remedy)


def _undone(views: Views, error: str, suspects: Sequence[str]) -> dict[str, CameraView]:
    undo, _ = ERRORS[error]
    return {name: undo(view) if name in suspects else view for name, view in views.items()}


def known_positions(moments: Sequence[Moment]) -> Iterator[Finding]:
    """Whether a surface is in front of, and near, the middle of every object whose position the simulator knows."""
    seen, through, distances = 0, 0, dict[str, float]()
    for moment in moments:
        for name, position in object_positions(moment).items():
            for view in moment.observation.views.values():
                with np.errstate(invalid="ignore"):
                    distance = float(np.nanmin(np.linalg.norm(unproject(view) - position, axis=-1)))
                distances[name] = min(distances.get(name, np.inf), distance)
                gap = _surface_before(view, position)
                seen += gap is not None
                through += gap is not None and gap < -TOLERANCE
    if not seen:
        yield Finding("known positions", "ok", "the simulator knows no position of an object that a camera sees")
        return
    far = {name: distance for name, distance in distances.items() if distance > NEAR_OBJECT}
    measured = (
        f"{seen - through} of {seen} rays through an object's middle meet a surface in front of it; nearest surface: "
        + ", ".join(f"{name} {1000 * distance:.0f} mm" for name, distance in distances.items())
    )
    level = level_above(through / seen, 0.0, SEEN_THROUGH_FAULT)
    yield graded(
        "known positions",
        "fault" if far else level,
        measured,
        "check camera_to_world, the depth's unit and that pictures are upright",
    )


def object_positions(moment: Moment) -> dict[str, FloatArray]:
    """The privileged ``<object>_pos`` [3] inside the workspace."""
    known, workspace = moment.privileged, moment.observation.workspace
    return {
        name.removesuffix("_pos"): known[name]
        for name in known
        if name.endswith("_pos") and name not in moment.observation.proprio
        if known[name].shape == (3,) and workspace.contains(known[name])
    }


def _surface_before(view: CameraView, point: FloatArray) -> float | None:
    """Metres along the optical axis by which the visible surface is in front of the point; None: it is not in view."""
    height, width = view.depth.shape
    (column, row), depth = project(point, view.intrinsics, view.camera_to_world)
    if depth <= 0 or not (0 <= column < width and 0 <= row < height):
        return None
    return float(depth - view.depth[int(row), int(column)])


def edges_agree(scenes: Sequence[Views]) -> Iterator[Finding]:
    """Whether picture and depth of each camera have their edges at the same places, or one of them is flipped."""
    for name in scenes[0]:
        views = [views[name] for views in scenes]
        as_is = _edge_correlation(views, lambda view: view)
        turned = {error: _edge_correlation(views, undo) for error, (undo, _) in TURNS.items()}
        best = max(turned, key=lambda error: turned[error])
        gain = turned[best] - as_is
        measured = f"edges of rgb and depth correlate with {as_is:.2f}"
        level = level_above(gain, EDGE_WARNING, EDGE_FAULT)
        if level != "ok":
            measured += f", with {turned[best]:.2f} if one of them is taken to be {best}"
        yield graded(f"{name}: rgb and depth", level, measured, "turn both alike: row 0 is the top, column 0 the left")


def _edge_correlation(views: Sequence[CameraView], undo: Repair) -> float:
    return float(np.mean([np.corrcoef(*_edges(undo(view).rgb, view.depth))[0, 1] for view in views]))


def _edges(rgb: NDArray[np.uint8], depth: NDArray[np.float32]) -> tuple[FloatArray, FloatArray]:
    """Smoothed strength of edges [H * W] in a picture and in the logarithm of its depth, the strongest capped."""
    from scipy.ndimage import gaussian_filter, sobel

    def strength(picture: FloatArray) -> FloatArray:
        edges = np.hypot(sobel(picture, 0), sobel(picture, 1))
        smooth: FloatArray = gaussian_filter(np.minimum(edges, np.quantile(edges, 0.97)), 1).ravel()
        return smooth

    return strength(rgb.mean(axis=-1)), strength(np.log(np.maximum(depth.astype(np.float64), 1e-6)))
