"""Checks that an episode is sound and that episodes belong together. Replays, which need a simulator, are elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import ActionSpec, CameraView, EpisodeKey, FloatArray
from sim_eval.datasets.episode_file import (
    Episode,
    EpisodeHeader,
    StoredEpisode,
    episode_files,
    file_name,
    read_episode,
    read_header,
)


@dataclass(frozen=True)
class FolderReport:
    """Totals of a folder's readable episodes, and one sentence for each problem."""

    episodes: int
    steps: int
    successes: int
    problems: tuple[str, ...]


def stored_problems(episode: StoredEpisode) -> list[str]:
    """The problems of an episode that show without decoding a picture, one sentence each."""
    found = _action_problems("actions", episode.actions, episode.header.spec.action)
    found += _proprio_problems(episode.proprio, episode.header.spec.proprio)
    for name, matrices in episode.intrinsics.items():
        found += _calibration_problems(name, matrices, episode.camera_to_world[name])
    for name, (least, most) in episode.header.depth_range.items():
        if not (least > 0 and np.isfinite(most)):
            found.append(f"camera '{name}': depth must be finite and above 0 m")
    return found


def episode_problems(episode: Episode) -> list[str]:
    """The problems of a whole episode, one sentence each; empty when it is sound."""
    found = []
    steps = len(episode.actions)
    for name in ("executed_actions", "states", "success", "phases", "observations"):
        if len(getattr(episode, name)) != steps:
            found.append(f"{name} has {len(getattr(episode, name))} steps, actions has {steps}")
    for name in ("actions", "executed_actions", "states"):
        values = getattr(episode, name)
        if values.dtype != np.float64:
            found.append(f"{name} must be float64, not {values.dtype}")
    found += _action_problems("actions", episode.actions, episode.action)
    if episode.executed_actions.shape != episode.actions.shape:
        found.append(f"executed_actions must be {list(episode.actions.shape)}")
    for name in ("executed_actions", "states"):
        if not np.isfinite(getattr(episode, name)).all():
            found.append(f"{name} is not finite")
    found += _proprio_problems(episode.proprio, episode.spec.proprio)
    for name, size in episode.spec.cameras.items():
        views = [seen.views[name] for seen in episode.observations]
        for step, view in enumerate(views):
            found += [f"camera '{name}' at step {step}: {problem}" for problem in _picture_problems(view, size)]
        intrinsics, poses = ([getattr(view, part) for view in views] for part in ("intrinsics", "camera_to_world"))
        found += _calibration_problems(name, np.array(intrinsics), np.array(poses))
    return found


def check_episode(path: Path) -> list[str]:
    """The problems of a file, one sentence each; empty when it is sound."""
    try:
        episode = read_episode(path)
    except SimEvalError as error:
        return [str(error)]
    found = episode_problems(episode)
    if path.name != file_name(episode.key):
        found.append(f"its name should be {file_name(episode.key)}")
    return found


def set_problems(headers: Mapping[Path, EpisodeHeader]) -> list[str]:
    """Why episodes may not be used together: a key twice, or robots, cameras, proprio or actions that differ."""
    found: list[str] = []
    first_file: dict[EpisodeKey, Path] = {}
    for path, header in headers.items():
        if header.key in first_file:
            found.append(f"episode {header.key} is in both {first_file[header.key]} and {path}: delete one of them")
        first_file.setdefault(header.key, path)
    reference = next(iter(headers), None)
    for path, header in headers.items():
        assert reference is not None
        for name in ("robot", "cameras", "proprio", "action"):
            mine, theirs = getattr(header.spec, name), getattr(headers[reference].spec, name)
            if mine != theirs:
                found.append(f"{path}: {name} is {mine}, but {reference} has {theirs}: do not mix them")
    return found


def check_folder(folder: Path) -> FolderReport:
    """Checks every episode of a folder, and that they belong together."""
    headers, problems = {}, []
    for path in episode_files(folder):
        problems += [f"{path.name}: {problem}" for problem in check_episode(path)]
        try:
            headers[path] = read_header(path)
        except SimEvalError:
            continue  # already among the problems
    return FolderReport(
        episodes=len(headers),
        steps=sum(header.length for header in headers.values()),
        successes=sum(header.success for header in headers.values()),
        problems=(*problems, *set_problems(headers)),
    )


def _action_problems(name: str, actions: FloatArray, spec: ActionSpec) -> list[str]:
    if actions.ndim != 2 or actions.shape[1] != spec.dim:
        return [f"{name} must be [{len(actions)}, {spec.dim}], not {list(actions.shape)}"]
    if not np.isfinite(actions).all():
        return [f"{name} is not finite"]
    return [] if np.array_equal(spec.clip(actions), actions) else [f"{name} leave the action bounds"]


def _proprio_problems(proprio: Mapping[str, FloatArray], lengths: Mapping[str, int]) -> list[str]:
    return [
        f"proprio '{name}' is not finite or not of length {lengths[name]}"
        for name, values in proprio.items()
        if values.shape[1:] != (lengths[name],) or not np.isfinite(values).all()
    ]


def _picture_problems(view: CameraView, size: tuple[int, int]) -> list[str]:
    found = []
    if view.rgb.shape != (*size, 3) or view.rgb.dtype != np.uint8:
        found.append(f"rgb must be uint8 {[*size, 3]}, not {view.rgb.dtype} {list(view.rgb.shape)}")
    if view.depth.shape != size or view.depth.dtype != np.float32:
        found.append(f"depth must be float32 {list(size)}, not {view.depth.dtype} {list(view.depth.shape)}")
    if not (np.isfinite(view.depth).all() and (view.depth > 0).all()):
        found.append("depth must be finite and above 0 m")
    return found


def _calibration_problems(name: str, intrinsics: FloatArray, poses: FloatArray) -> list[str]:
    """Of a camera's intrinsics [T, 3, 3] and camera_to_world [T, 4, 4]."""
    found = []
    for what, sound in (
        ("intrinsics are not a pinhole matrix", _is_pinhole(intrinsics)),
        ("camera_to_world is not a rotation and a translation", _is_rigid(poses)),
    ):
        if not sound.all():
            found.append(f"camera '{name}' at step {int(np.argmin(sound))}: {what}")
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
