"""Is a file sound, and do files belong together. What needs a simulator to tell (replay) is elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import CameraView, EpisodeKey, FloatArray
from sim_eval.datasets.episode_file import (
    Episode,
    EpisodeHeader,
    episode_files,
    file_name,
    read_episode,
    read_header,
)


@dataclass(frozen=True)
class FolderReport:
    """Totals of a folder's readable episodes, and one sentence a problem."""

    episodes: int
    steps: int
    successes: int
    problems: tuple[str, ...]


def episode_problems(episode: Episode) -> list[str]:
    """What is wrong inside an episode, one sentence each; empty when it is sound."""
    found = []
    steps = len(episode.actions)
    for name in ("executed_actions", "states", "success", "phases", "observations"):
        if len(getattr(episode, name)) != steps:
            found.append(f"{name} has {len(getattr(episode, name))} steps, actions has {steps}")
    for name in ("actions", "executed_actions"):
        if getattr(episode, name).shape != (steps, episode.action.dim):
            found.append(f"{name} must be [{steps}, {episode.action.dim}], not {list(getattr(episode, name).shape)}")
    for name in ("actions", "executed_actions", "states"):
        values = getattr(episode, name)
        if values.dtype != np.float64:
            found.append(f"{name} must be float64, not {values.dtype}")
        if not np.isfinite(values).all():
            found.append(f"{name} is not finite")
    if not found and not np.array_equal(episode.action.clip(episode.actions), episode.actions):
        found.append("actions leave the action bounds")
    spec = episode.spec
    for step, seen in enumerate(episode.observations):
        for name, values in seen.proprio.items():
            if values.shape != (spec.proprio.get(name),) or not np.isfinite(values).all():
                found.append(f"proprio '{name}' at step {step} is not finite or not of length {spec.proprio.get(name)}")
        for name, view in seen.views.items():
            found += [f"camera '{name}' at step {step}: {what}" for what in _view_problems(view, spec.cameras[name])]
    return found


def check_episode(path: Path) -> list[str]:
    """What is wrong with a file, one sentence each; empty when it is sound."""
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
    seen: dict[EpisodeKey, Path] = {}
    for path, header in headers.items():
        if header.key in seen:
            found.append(f"episode {header.key} is in both {seen[header.key]} and {path}: delete one of them")
        seen.setdefault(header.key, path)
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
        problems += [f"{path.name}: {what}" for what in check_episode(path)]
        try:
            headers[path] = read_header(path)
        except SimEvalError:
            continue  # named above
    return FolderReport(
        episodes=len(headers),
        steps=sum(header.length for header in headers.values()),
        successes=sum(header.success for header in headers.values()),
        problems=(*problems, *set_problems(headers)),
    )


def _view_problems(view: CameraView, size: tuple[int, int]) -> list[str]:
    found = []
    if view.rgb.shape != (*size, 3) or view.rgb.dtype != np.uint8:
        found.append(f"rgb must be uint8 {[*size, 3]}, not {view.rgb.dtype} {list(view.rgb.shape)}")
    if view.depth.shape != size or view.depth.dtype != np.float32:
        found.append(f"depth must be float32 {list(size)}, not {view.depth.dtype} {list(view.depth.shape)}")
    if not (np.isfinite(view.depth).all() and (view.depth > 0).all()):
        found.append("depth must be finite and above 0 m")
    matrix, pose = view.intrinsics, view.camera_to_world
    if matrix.shape != (3, 3) or not (matrix[0, 0] > 0 and matrix[1, 1] > 0 and np.array_equal(matrix[2], [0, 0, 1])):
        found.append("intrinsics are not a pinhole matrix")
    if pose.shape != (4, 4) or not _is_rigid(pose):
        found.append("camera_to_world is not a rotation and a translation")
    return found


def _is_rigid(pose: FloatArray) -> bool:
    rotation = pose[:3, :3]
    return bool(
        np.isfinite(pose).all()
        and np.allclose(rotation.T @ rotation, np.eye(3), atol=1e-6)
        and np.linalg.det(rotation) > 0
        and np.array_equal(pose[3], [0, 0, 0, 1])
    )
