"""Resizing and cropping a view takes everything along that belongs to it."""

from __future__ import annotations

import numpy as np
import pytest

from sim_eval.core import cameras
from sim_eval.core.types import CameraView
from sim_eval.policies.spatialvla.image_processing_llava3d import aligned_view, square_view

POSE = np.array([[0.8, 0.6, 0.0, 0.1], [-0.6, 0.8, 0.0, 0.2], [0.0, 0.0, 1.0, 0.3], [0.0, 0.0, 0.0, 1.0]])


def scene(height: int, width: int) -> CameraView:
    """A plane that leans away from the camera, coloured by where it stands: red by x, green by y."""
    focal = 1.1 * width
    intrinsics = np.array([[focal, 0.0, 0.47 * width], [0.0, 0.9 * focal, 0.55 * height], [0.0, 0.0, 1.0]])
    u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    x, y = (u - intrinsics[0, 2]) / intrinsics[0, 0], (v - intrinsics[1, 2]) / intrinsics[1, 1]
    depth = 1.0 / (1.0 - 0.3 * x - 0.2 * y)  # z = 1 + 0.3 X + 0.2 Y
    red, green = (np.clip(127 + 200 * part * depth, 0, 255) for part in (x, y))
    return CameraView(
        np.stack([red, green, np.zeros_like(red)], axis=-1).astype(np.uint8), depth.astype(np.float32), intrinsics, POSE
    )


def turned(view: CameraView) -> CameraView:
    """The picture with rows and columns exchanged, which is what the camera's x and y exchanged would see."""
    swap = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    return CameraView(view.rgb.swapaxes(0, 1), view.depth.T, swap @ view.intrinsics @ swap, view.camera_to_world)


@pytest.mark.parametrize(("height", "width"), [(96, 128), (128, 96), (100, 100), (90, 200), (61, 47)])
@pytest.mark.parametrize("size", [112, 56])
def test_points_stay_on_the_surface(height: int, width: int, size: int) -> None:
    view = scene(height, width)
    made = square_view(view, size)
    assert (made.rgb.shape, made.depth.shape) == ((size, size, 3), (size, size))
    points = (cameras.unproject(made) - POSE[:3, 3]) @ POSE[:3, :3]
    # Depth is a neighbour's, the grid's corner is kept, an odd crop is half a pixel off: two pixels at the very most.
    pixel = 2 * max(1.0, min(height, width) / size) / view.intrinsics[0, 0] * made.depth.max()
    assert np.abs(points[..., 2] - 1 - 0.3 * points[..., 0] - 0.2 * points[..., 1]).max() < pixel
    for channel in (0, 1):
        seen = (made.rgb[..., channel].astype(float) - 127) / 200
        shown = (made.rgb[..., channel] > 5) & (made.rgb[..., channel] < 250)
        assert shown.any()
        assert np.abs(seen - points[..., channel])[shown].max() < pixel + 2 / 200


@pytest.mark.parametrize(("height", "width"), [(96, 128), (61, 47)])
def test_portrait_is_landscape_turned(height: int, width: int) -> None:
    view = scene(height, width)
    one, other = turned(square_view(view, 56)), square_view(turned(view), 56)
    assert np.abs(one.rgb.astype(int) - other.rgb).max() <= 1  # Pillow rounds after each of its two passes
    assert np.array_equal(one.depth, other.depth)
    np.testing.assert_allclose(one.intrinsics, other.intrinsics, atol=1e-12)


def test_a_picture_of_the_right_size_is_left_alone_and_axes_can_be_turned() -> None:
    view = scene(56, 56)
    assert square_view(view, 56) is view
    axis_align = np.array([[0.0, -1.0, 0.0, 2.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0], [0.0, 0.0, 0.0, 1.0]])
    expected = cameras.unproject(view) @ axis_align[:3, :3].T + axis_align[:3, 3]
    np.testing.assert_allclose(cameras.unproject(aligned_view(view, axis_align)), expected, atol=1e-12)
