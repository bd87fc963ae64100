"""Checks that an episode is sound and that episodes belong together. Replays, which need a simulator, are elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sim_eval.core.types import EpisodeKey, FloatArray, without_derived
from sim_eval.datasets.episode_file import EpisodeHeader, StoredEpisode, file_name, open_episode, read_episode


def check_episode(path: Path) -> list[str]:
    """The problems of a file, one sentence each; empty when it is sound. Every picture is read.

    Raises:
        SimEvalError: the file is missing, truncated, damaged or foreign.
    """
    stored, episode = open_episode(path), read_episode(path, pictures=False)
    stored.pictures.verify()
    found = stored_problems(stored)
    for name in ("executed_actions", "states"):
        if not np.isfinite(getattr(episode, name)).all():
            found.append(f"{name} is not finite")
    if path.name != file_name(stored.key):
        found.append(f"its name should be {file_name(stored.key)}")
    return found


def stored_problems(episode: StoredEpisode) -> list[str]:
    """The problems that show without reading a picture, one sentence each."""
    found, spec, actions = [], episode.header.spec, episode.actions
    if not np.isfinite(actions).all():
        found.append("actions is not finite")
    elif not np.array_equal(spec.action.clip(actions), actions):
        found.append("actions leave the action bounds")
    for name, values in episode.proprio.items():
        if not np.isfinite(values).all():
            found.append(f"proprio '{name}' is not finite")
    for name in spec.cameras:
        if not (pinhole := _is_pinhole(episode.intrinsics[name])).all():
            found.append(f"camera '{name}' at step {np.argmin(pinhole)}: intrinsics are not a pinhole matrix")
        if not (rigid := _is_rigid(episode.camera_to_world[name])).all():
            found.append(
                f"camera '{name}' at step {np.argmin(rigid)}: camera_to_world is not a rotation and translation"
            )
    for name, (least, most) in episode.header.depth_range.items():
        if not (least > 0 and np.isfinite(most)):
            found.append(f"camera '{name}': depth must be finite and above 0 m")
    return found


def set_problems(headers: Mapping[Path, EpisodeHeader]) -> list[str]:
    """Why episodes may not be used together: a key twice, or robots, cameras, proprio or actions that differ."""
    found: list[str] = []
    first_file: dict[EpisodeKey, Path] = {}
    for path, header in headers.items():
        if (first := first_file.setdefault(header.key, path)) != path:
            found.append(f"episode {header.key} is in both {first} and {path}: delete one of them")
    for path, header in headers.items():
        reference = next(iter(headers))
        for name in ("robot", "cameras", "proprio", "action"):
            mine, theirs = getattr(header.spec, name), getattr(headers[reference].spec, name)
            if name == "proprio":
                mine, theirs = without_derived(mine), without_derived(theirs)
            if mine != theirs:
                found.append(f"{path}: {name} is {mine}, but {reference} has {theirs}: do not mix them")
    return found


def _is_pinhole(matrices: FloatArray) -> NDArray[np.bool_]:
    """Of each matrix [..., 3, 3]."""
    focal = matrices[..., (0, 1), (0, 1)]
    sound: NDArray[np.bool_] = (focal > 0).all(axis=-1) & (matrices[..., 2, :] == [0, 0, 1]).all(axis=-1)
    return sound


def _is_rigid(poses: FloatArray) -> NDArray[np.bool_]:
    """Of each pose [..., 4, 4]."""
    rotations = poses[..., :3, :3]
    products = np.swapaxes(rotations, -1, -2) @ rotations
    with np.errstate(invalid="ignore"):
        determinants = np.linalg.det(rotations)
    sound: NDArray[np.bool_] = (
        np.isfinite(poses).all(axis=(-1, -2))
        & np.isclose(products, np.eye(3), atol=1e-6).all(axis=(-1, -2))
        & (determinants > 0)
        & (poses[..., 3, :] == [0, 0, 0, 1]).all(axis=-1)
    )
    return sound
