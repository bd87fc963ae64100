"""Recorded pictures against pictures of the same instants that are rendered here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from sim_eval.core.types import CameraView
from sim_eval.diagnosis.findings import Finding, graded, level_above
from sim_eval.diagnosis.geometry import ERRORS, Repair

Pair: TypeAlias = tuple[CameraView, CameraView]  # recorded, rendered again

# Mean difference in grey levels of 255; fast and faithful pictures of robosuite differ by 1.2 to 1.9.
GREY_LIMITS = 1.0, 40.0
# Mean relative difference; rounding to whole millimetres makes up to 0.002 of it.
DEPTH_LIMITS = 0.005, 0.05
CALIBRATION_LIMITS = 1e-3, 1e-2  # pixels, metres and parts of a rotation
REPAIRS: Mapping[str, tuple[Repair, str]] = {
    **ERRORS,
    "red and blue exchanged": (
        lambda view: replace(view, rgb=view.rgb[..., ::-1]),
        "exchange the first and the last channel: rgb, not bgr",
    ),
}


def picture_findings(name: str, pairs: Sequence[Pair]) -> Iterator[Finding]:
    """Picture, depth and calibration of one camera."""
    sizes = {(one.depth.shape, other.depth.shape) for one, other in pairs if one.depth.shape != other.depth.shape}
    if sizes:
        recorded, rendered = min(sizes)
        measured = f"{recorded[0]}x{recorded[1]} recorded, {rendered[0]}x{rendered[1]} here"
        yield Finding(f"{name}: size", "fault", measured, "collect demonstrations of the size that the policy needs")
        return
    light, light_here = (_light([pair[side] for pair in pairs]) for side in (0, 1))
    yield _compared(f"{name}: rgb", pairs, grey_difference, GREY_LIMITS, f"grey levels {light}, here {light_here}")
    ratio = np.median([np.median(one.depth / other.depth) for one, other in pairs])
    yield _compared(f"{name}: depth", pairs, depth_difference, DEPTH_LIMITS, f"typically {ratio:.4g} times that here")
    apart = max(
        float(np.abs(getattr(one, part) - getattr(other, part)).max())
        for one, other in pairs
        for part in ("intrinsics", "camera_to_world")
    )
    yield graded(
        f"{name}: calibration",
        level_above(apart, *CALIBRATION_LIMITS),
        f"differs by at most {apart:.1g}",
        "the camera was moved or its lens changed: collect the demonstrations again",
    )


def grey_difference(one: CameraView, other: CameraView) -> float:
    """Mean absolute difference of two pictures, in grey levels."""
    return float(np.abs(one.rgb.astype(float) - other.rgb).mean())


def depth_difference(one: CameraView, other: CameraView) -> float:
    """Mean absolute difference of two depths, as a part of the second."""
    return float(np.abs(one.depth / other.depth - 1).mean())


def _light(views: Sequence[CameraView]) -> str:
    """Mean and standard deviation of the grey levels."""
    mean, contrast = np.mean([(view.rgb.mean(), view.rgb.mean(axis=-1).std()) for view in views], axis=0)
    return f"{mean:.0f} +- {contrast:.0f}"


def _compared(
    name: str,
    pairs: Sequence[Pair],
    difference: Callable[[CameraView, CameraView], float],
    limits: tuple[float, float],
    light: str,
) -> Finding:
    """The mean difference, or the known error whose correction halves it."""
    as_is = float(np.mean([difference(*pair) for pair in pairs]))
    undone = {
        error: float(np.mean([difference(repair(one), other) for one, other in pairs]))
        for error, (repair, _) in REPAIRS.items()
    }
    best = min(undone, key=lambda error: undone[error])
    level = level_above(as_is, *limits)
    measured = f"differs by {as_is:.3g} from the picture here ({light})"
    if level != "ok" and undone[best] < as_is / 2:
        return Finding(
            name, "fault", f"{best}: {measured}, by {undone[best]:.3g} when that is undone", REPAIRS[best][1]
        )
    return graded(
        name, level, measured, "evaluate as the demonstrations were rendered (--render), or collect them again"
    )
