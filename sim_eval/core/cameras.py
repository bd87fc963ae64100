"""Pinhole geometry: MuJoCo camera -> intrinsics and camera_to_world; pixels <-> world points.

Pixel (column u, row v) has its centre at (u + 0.5, v + 0.5); depth is planar z. Axes are OpenCV's: x right, y down, z
forward.
"""

from __future__ import annotations

import numpy as np

from sim_eval.core.types import CameraView, FloatArray

FARTHEST = 50.0  # metres; larger depths are the far plane, or were given in millimetres
# MuJoCo's (and OpenGL's) camera looks along -z with y up.
OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])


def intrinsics_from_fovy(fovy_degrees: float, height: int, width: int) -> FloatArray:
    """Pinhole matrix [3, 3] of a camera with square pixels whose principal point is the middle of the picture.

    Args:
        fovy_degrees: vertical field of view.
        height, width: pixels.
    """
    focal = height / 2 / np.tan(np.radians(fovy_degrees) / 2)
    return np.array([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])


def camera_to_world_from_mujoco(position: FloatArray, rotation: FloatArray) -> FloatArray:
    """Pose [4, 4] from MuJoCo's ``cam_xpos`` [3] and ``cam_xmat`` [9]."""
    pose = np.eye(4)
    pose[:3, :3] = rotation.reshape(3, 3)
    pose[:3, 3] = position
    camera_to_world: FloatArray = pose @ OPENGL_TO_OPENCV
    return camera_to_world


def unproject(view: CameraView) -> FloatArray:
    """World points [H, W, 3], in metres, of all pixel centres."""
    height, width = view.depth.shape
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    rays = np.stack([columns, rows, np.ones_like(rows)], axis=-1) @ np.linalg.inv(view.intrinsics).T
    points = rays * view.depth[..., None].astype(np.float64)
    world: FloatArray = points @ view.camera_to_world[:3, :3].T + view.camera_to_world[:3, 3]
    return world


def project(points: FloatArray, intrinsics: FloatArray, camera_to_world: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Pixel coordinates [..., 2] (u, v) and planar depth [...], in metres, of world points [..., 3]."""
    local = (points - camera_to_world[:3, 3]) @ camera_to_world[:3, :3]
    pixels = local @ intrinsics.T
    return pixels[..., :2] / pixels[..., 2:], local[..., 2]
