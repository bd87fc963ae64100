"""Views in LLaVA-3D's picture size: the shortest side is resized, the middle is cropped, and depth and intrinsics are
adapted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from sim_eval.core.types import CameraView, FloatArray

PIXEL_CENTRE = 0.5  # coordinate of the first pixel's centre in our intrinsics; in LLaVA-3D's it is 0


def square_view(view: CameraView, size: int) -> CameraView:
    """The middle of a view, ``size`` x ``size`` pixels, with its depth and intrinsics.

    Square and landscape pictures get exactly LLaVA-3D's numbers. For portrait pictures LLaVA-3D's own code does not
    move the principal point, which is a mistake; here it is moved. RGB is resized as by CLIP's processor (Pillow,
    bicubic); depth is that of the nearest pixel. The intrinsics are scaled by LLaVA-3D's convention, which keeps the
    corner of the grid of pixel centres fixed: they are wrong by up to ``(scale - 1) / 2`` pixels, and by half a pixel
    more if the crop is odd. A view that already has this size is returned unchanged, without such an error.
    """
    height, width = view.depth.shape
    if (height, width) == (size, size):
        return view
    shortest = min(height, width)
    tall, wide = (size if side == shortest else int(size * side / shortest) for side in (height, width))
    top, left = (tall - size) // 2, (wide - size) // 2
    rgb = np.asarray(Image.fromarray(view.rgb).resize((wide, tall), Image.Resampling.BICUBIC))
    depth = F.interpolate(torch.from_numpy(view.depth)[None, None], (tall, wide), mode="nearest-exact")[0, 0].numpy()
    intrinsics = view.intrinsics.copy()
    for axis, scale, crop in ((0, wide / width, (wide - size) / 2), (1, tall / height, (tall - size) / 2)):
        intrinsics[axis, :2] *= scale
        intrinsics[axis, 2] = (view.intrinsics[axis, 2] - PIXEL_CENTRE) * scale - crop + PIXEL_CENTRE
    return CameraView(
        np.ascontiguousarray(rgb[top : top + size, left : left + size]),
        np.ascontiguousarray(depth[top : top + size, left : left + size]),
        intrinsics,
        view.camera_to_world,
    )


def aligned_view(view: CameraView, axis_align: FloatArray) -> CameraView:
    """The view in a world that is transformed by ``axis_align`` (4x4, as in ScanNet)."""
    return replace(view, camera_to_world=axis_align @ view.camera_to_world)
