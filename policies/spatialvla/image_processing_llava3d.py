"""LLaVA-3D's picture size: shortest side resized, middle cropped, and depth, intrinsics and pose made to follow."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from sim_eval.core.types import CameraView, FloatArray

PIXEL_CENTRE = 0.5  # our intrinsics put the middle of the first pixel there; LLaVA-3D's put it at 0


def square_view(view: CameraView, size: int) -> CameraView:
    """The middle of a picture, ``size`` pixels square, with everything that belongs to it.

    As LLaVA-3D does it, number for number, on square and landscape pictures; its own code moves the principal point of
    a landscape picture only, so on portrait ones it is wrong. RGB is resized as CLIP's processor does (Pillow,
    bicubic), depth takes the nearest pixel's. The intrinsics are scaled in LLaVA-3D's convention, which lets the grid
    of pixel centres keep its corner: up to ``(scale - 1) / 2`` pixels beside the truth, and half a pixel more where the
    crop is odd. A camera rendered at ``size`` is returned as it is, with no such error.
    """
    height, width = view.depth.shape
    if (height, width) == (size, size):
        return view
    shortest = min(height, width)
    tall, wide = (size if side == shortest else int(size * side / shortest) for side in (height, width))
    top, left = (tall - size) // 2, (wide - size) // 2
    rgb = np.asarray(Image.fromarray(view.rgb).resize((wide, tall), Image.Resampling.BICUBIC))
    depth = F.interpolate(torch.from_numpy(view.depth)[None, None], (tall, wide), mode="nearest-exact")[0, 0].numpy()
    return CameraView(
        np.ascontiguousarray(rgb[top : top + size, left : left + size]),
        np.ascontiguousarray(depth[top : top + size, left : left + size]),
        _scaled(view.intrinsics, (wide / width, tall / height), ((wide - size) / 2, (tall - size) / 2)),
        view.camera_to_world,
    )


def aligned_view(view: CameraView, axis_align: FloatArray) -> CameraView:
    """The view in a world whose axes a scene's ``axis_align`` (4x4, as ScanNet gives it) has turned."""
    return replace(view, camera_to_world=axis_align @ view.camera_to_world)


def _scaled(intrinsics: FloatArray, scale: tuple[float, float], crop: tuple[float, float]) -> FloatArray:
    matrix = intrinsics.copy()
    for axis in (0, 1):
        matrix[axis, :2] *= scale[axis]
        matrix[axis, 2] = (intrinsics[axis, 2] - PIXEL_CENTRE) * scale[axis] - crop[axis] + PIXEL_CENTRE
    return matrix
