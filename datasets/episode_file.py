"""One demonstration on disk: HDF5 in robomimic's layout, with depth, calibrated cameras and simulator states.

There is one file for each episode, so a crash loses at most the episode that was running. Pictures are compressed with
LZ4, one frame at a time, so training reads the same file: see :mod:`sim_eval.datasets.stored_pictures`. Other programs
read it with h5py after ``import hdf5plugin``.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import h5py
import numpy as np
from numpy.typing import NDArray

from sim_eval.core.decoding import decode, encode
from sim_eval.core.errors import SimEvalError
from sim_eval.core.files import sealed, verified, write_sealed
from sim_eval.core.types import (
    ActionSpec,
    CameraView,
    EnvironmentSpec,
    EpisodeKey,
    FloatArray,
    Observation,
    RenderConfig,
    WorkspaceBox,
)
from sim_eval.datasets import old_demonstrations
from sim_eval.datasets.stored_pictures import DEPTH, REMEDY, RGB, Pictures

MARK = b"sim_eval episode 2 sha256 "
SUFFIX = ".hdf5"

Array: TypeAlias = NDArray[np.generic]


@dataclass(frozen=True, eq=False)
class Episode:
    """The record of T control steps.

    Attributes:
        key: which episode this is.
        instruction: the sentence that was given.
        workspace: where the task happens.
        robot: the robot's name.
        action: what the action vectors mean.
        observations: T observations, one before each action.
        actions: float64 [T, A], the demonstrator's clean labels.
        executed_actions: float64 [T, A], what moved the robot; differs where the collector disturbed the demonstrator.
        states: float64 [T, S], the simulator's state before each action.
        success: bool [T], the success rule after each action; all False where the episode broke off.
        phases: int64 [T], number of phases fulfilled after each action.
        provenance: ``env_args`` (JSON) and ``model_file`` (MJCF).
        versions: package name -> version that recorded it.
        render_config: how the task was rendered.
    """

    key: EpisodeKey
    instruction: str
    workspace: WorkspaceBox
    robot: str
    action: ActionSpec
    observations: Sequence[Observation]
    actions: FloatArray
    executed_actions: FloatArray
    states: FloatArray
    success: NDArray[np.bool_]
    phases: NDArray[np.int64]
    provenance: Mapping[str, str]
    versions: Mapping[str, str]
    render_config: RenderConfig

    @property
    def proprio(self) -> Mapping[str, FloatArray]:
        """Field -> float64 [T, n]."""
        return {name: np.stack([seen.proprio[name] for seen in self.observations]) for name in self.spec.proprio}

    @property
    def spec(self) -> EnvironmentSpec:
        """What the environment offered, according to the first observation."""
        first = self.observations[0]
        cameras = {name: (view.rgb.shape[0], view.rgb.shape[1]) for name, view in first.views.items()}
        return EnvironmentSpec(self.robot, cameras, {k: len(v) for k, v in first.proprio.items()}, self.action)


@dataclass(frozen=True)
class EpisodeHeader:
    """What is known of a file before any picture is decoded.

    Attributes:
        spec: robot, cameras, proprio and action.
        length: number of control steps.
        first_success: the control step (from 1) after which the success rule first held; None: never.
        depth_range: camera -> smallest and largest depth in metres; empty for files of versions before 0.2.

    The others are those of :class:`Episode`.
    """

    key: EpisodeKey
    instruction: str
    workspace: WorkspaceBox
    spec: EnvironmentSpec
    length: int
    first_success: int | None
    depth_range: Mapping[str, tuple[float, float]]
    versions: Mapping[str, str]
    render_config: RenderConfig

    @property
    def success(self) -> bool:
        """The success rule held after some step."""
        return self.first_success is not None


@dataclass(frozen=True, eq=False)
class StoredEpisode:
    """What training needs of an episode of T steps; it holds no picture and no open file.

    Attributes:
        header: what the episode is.
        actions: float64 [T, A], the labels.
        proprio: field -> float64 [T, n].
        intrinsics, camera_to_world: camera -> float64 [T, 3, 3] and [T, 4, 4].
        pictures: where the pictures are on the disk.
    """

    header: EpisodeHeader
    actions: FloatArray
    proprio: Mapping[str, FloatArray]
    intrinsics: Mapping[str, FloatArray]
    camera_to_world: Mapping[str, FloatArray]
    pictures: Pictures

    @property
    def key(self) -> EpisodeKey:
        return self.header.key

    def observation(self, step: int) -> Observation:
        """The observation before action ``step``; each view is read and decoded when it is looked up."""
        proprio = {name: values[step] for name, values in self.proprio.items()}
        return Observation(StoredViews(self, step), proprio, self.header.instruction, self.header.workspace)


class StoredViews(Mapping[str, CameraView]):
    """The views of one step by camera name. Each look-up returns fresh arrays.

    Raises:
        SimEvalError: on look-up, the file is gone or damaged.
    """

    def __init__(self, episode: StoredEpisode, step: int) -> None:
        self._episode, self._step = episode, step

    def __getitem__(self, name: str) -> CameraView:
        episode, step = self._episode, self._step
        rgb, depth = episode.pictures.read(step, name)
        return CameraView(rgb, depth, episode.intrinsics[name][step], episode.camera_to_world[name][step])

    def __contains__(self, name: object) -> bool:  # Mapping's own would decode
        return name in self._episode.intrinsics

    def __iter__(self) -> Iterator[str]:
        return iter(self._episode.intrinsics)

    def __len__(self) -> int:
        return len(self._episode.intrinsics)


def file_name(key: EpisodeKey) -> str:
    """The file name of an episode, for example ``robosuite-LiftWide_train_00012.hdf5``."""
    return f"{key.stem}{SUFFIX}"


def episode_files(folder: Path) -> list[Path]:
    """The finished episode files of a folder, sorted by name, without temporary files."""
    return sorted(folder.glob(f"[!.]*{SUFFIX}"))


def write_episode(path: Path, episode: Episode) -> None:
    """Writes an episode so that ``path`` either holds all of it or is untouched, whenever the process dies.

    Raises:
        SimEvalError: the episode contradicts itself, or the disk refuses.
    """
    try:
        arrays = _arrays(episode)
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"its parts differ in length: {lengths}")
        if arrays["actions"].shape != (wanted := (len(episode.actions), episode.action.dim)):
            raise ValueError(f"actions must be {list(wanted)}, not {list(arrays['actions'].shape)}")
        content = sealed(MARK, lambda file: _fill(file, episode, arrays))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise SimEvalError(f"episode {episode.key} cannot be stored ({reason}): mend what recorded it") from error
    remedy = "free some space or choose another folder"
    write_sealed(path, content, lambda written: open_episode(written).pictures.verify(), remedy)


def read_episode(path: Path, pictures: bool = True) -> Episode:
    """A whole episode.

    Args:
        pictures: False leaves the views of all observations empty, and no picture is read.

    Raises:
        SimEvalError: the file is missing, truncated, damaged or foreign.
    """
    with _opened(path) as file:
        stored, demo = file.stored, file.demo
        seen = [stored.observation(step) for step in range(stored.header.length)]
        return Episode(
            key=stored.key,
            instruction=stored.header.instruction,
            workspace=stored.header.workspace,
            robot=stored.header.spec.robot,
            action=stored.header.spec.action,
            observations=[replace(each, views=dict(each.views) if pictures else {}) for each in seen],
            actions=stored.actions,
            executed_actions=demo["executed_actions"][()],
            states=demo["states"][()],
            success=demo["rewards"][()] > 0,
            phases=demo["phases"][()],
            provenance={"env_args": file.data.attrs["env_args"], "model_file": demo.attrs["model_file"]},
            versions=stored.header.versions,
            render_config=stored.header.render_config,
        )


def open_episode(path: Path) -> StoredEpisode:
    """An episode as training reads it. All but the pictures is read and verified now, the pictures when needed.

    Raises:
        SimEvalError: the file is missing, truncated, damaged or foreign.
    """
    with _opened(path) as file:
        return file.stored


def read_header(path: Path) -> EpisodeHeader:
    """What an episode is; quicker than :func:`open_episode`.

    Raises:
        SimEvalError: the file is missing, truncated, damaged or foreign.
    """
    with _opened(path) as file:
        return file.header


@dataclass(frozen=True)
class _File:
    """An open file whose checksum was compared."""

    path: Path
    is_old: bool
    parts: NDArray[np.int64]
    data: h5py.Group

    @property
    def demo(self) -> h5py.Group:
        return self.data["demo_0"]

    @property
    def header(self) -> EpisodeHeader:
        meta = old_demonstrations.meta(self.data) if self.is_old else json.loads(self.demo.attrs["ep_meta"])
        success = self.demo["rewards"][()] > 0
        meta["first_success"] = int(np.argmax(success)) + 1 if success.any() else None
        fields = {"instruction": meta.pop("lang"), "length": int(self.demo.attrs["num_samples"]), **meta}
        return decode(EpisodeHeader, fields, str(self.path))

    @property
    def stored(self) -> StoredEpisode:
        header, obs = self.header, self.demo["obs"]
        spec, length, cameras = header.spec, header.length, header.spec.cameras
        if self.is_old:
            table = old_demonstrations.read_table(self.data, cameras)
            pictures = Pictures(self.path, cameras, table, old_demonstrations.CODECS)
        else:
            pictures = Pictures(self.path, cameras, self.parts.reshape(length, len(cameras), 2, 3))
        return StoredEpisode(
            header=header,
            actions=_array(self.demo, "actions", length, spec.action.dim),
            proprio={name: _array(obs, f"robot0_{name}", length, size) for name, size in spec.proprio.items()},
            intrinsics={name: _array(obs, f"{name}_intrinsics", length, 3, 3) for name in cameras},
            camera_to_world={name: _array(obs, f"{name}_camera_to_world", length, 4, 4) for name in cameras},
            pictures=pictures,
        )


def _array(group: h5py.Group, name: str, *shape: int) -> FloatArray:
    """The dataset of this name; raises ValueError where its shape is another, before it is read."""
    if group[name].shape != shape:
        raise ValueError(f"{name} must be {list(shape)}, not {list(group[name].shape)}")
    values: FloatArray = group[name][()]
    return values


@contextmanager
def _opened(path: Path) -> Iterator[_File]:
    is_old = old_demonstrations.is_old(path)
    parts = verified(path, old_demonstrations.MARK if is_old else MARK, "episode", REMEDY)
    try:
        with h5py.File(path, "r") as file:
            yield _File(path, is_old, parts, file["data"])
    except (AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:  # sealed by another
        raise SimEvalError(f"{path} is not a sound episode ({' '.join(str(error).split())}): {REMEDY}") from error


def _fill(file: h5py.File, episode: Episode, arrays: Mapping[str, Array]) -> h5py.Dataset:
    """Writes the groups and datasets; returns the table of pictures."""
    import hdf5plugin  # it takes a while, and only writing needs it

    data = file.create_group("data")
    data.attrs.update(total=len(episode.actions), env_args=episode.provenance["env_args"])
    demo = data.create_group("demo_0")
    demo.attrs.update(
        num_samples=len(episode.actions),
        ep_meta=json.dumps(_meta(episode, arrays)),
        model_file=episode.provenance["model_file"],
        camera_info=json.dumps(_camera_info(episode.observations[0])),
    )
    pictures = {}
    for name, array in arrays.items():
        if array.ndim != 4:
            demo.create_dataset(name, data=array)
            continue
        codec = RGB if array.dtype == np.uint8 else DEPTH
        options = hdf5plugin.Blosc("lz4hc", codec.clevel, codec.shuffle)
        dataset = demo.create_dataset(name, array.shape, array.dtype, chunks=(1, *array.shape[1:]), **options)
        pictures[name] = codec, dataset
    table = np.zeros((len(episode.actions), len(pictures), 3), dtype="<i8")
    for step in range(len(table)):  # the pictures of a step stand together
        for column, (name, (codec, dataset)) in enumerate(pictures.items()):
            content = codec.encode(np.ascontiguousarray(arrays[name][step]))
            dataset.id.write_direct_chunk((step, 0, 0, 0), content)
            place = dataset.id.get_chunk_info_by_coord((step, 0, 0, 0))
            table[step, column] = place.byte_offset, place.size, zlib.crc32(content)
    return demo.create_dataset("picture_table", data=table)


def _arrays(episode: Episode) -> dict[str, Array]:
    """Dataset name -> array [T, ...]; a type that would lose digits is refused."""

    def stack(values: Iterable[Array], dtype: type[np.generic]) -> Array:
        return np.stack(list(values), dtype=dtype, casting="safe")

    dones = np.array(episode.success, dtype=np.int64)
    dones[-1] = 1
    arrays: dict[str, Array] = {
        "actions": stack(episode.actions, np.float64),
        "executed_actions": stack(episode.executed_actions, np.float64),
        "states": stack(episode.states, np.float64),
        "rewards": np.array(episode.success, dtype=np.float64),
        "dones": dones,
        "phases": np.array(episode.phases, dtype=np.int64),
    }
    first = episode.observations[0]
    for seen in episode.observations:
        if seen.views.keys() != first.views.keys() or seen.proprio.keys() != first.proprio.keys():
            raise ValueError("its cameras or proprio fields change on the way")
    for name in first.views:
        views = [seen.views[name] for seen in episode.observations]
        arrays[f"obs/{name}_image"] = stack([view.rgb for view in views], np.uint8)
        arrays[f"obs/{name}_depth"] = stack([view.depth for view in views], np.float32)[..., np.newaxis]
        arrays[f"obs/{name}_intrinsics"] = stack([view.intrinsics for view in views], np.float64)
        arrays[f"obs/{name}_camera_to_world"] = stack([view.camera_to_world for view in views], np.float64)
    for name in first.proprio:
        arrays[f"obs/robot0_{name}"] = stack([seen.proprio[name] for seen in episode.observations], np.float64)
    return arrays


def _meta(episode: Episode, arrays: Mapping[str, Array]) -> object:
    """The fields of :class:`EpisodeHeader` that stand in no array, with robomimic's name for the instruction."""
    depths = {name: arrays[f"obs/{name}_depth"] for name in episode.spec.cameras}
    return encode(
        {
            "lang": episode.instruction,
            "key": episode.key,
            "workspace": episode.workspace,
            "spec": episode.spec,
            "depth_range": {name: (float(depth.min()), float(depth.max())) for name, depth in depths.items()},
            "versions": episode.versions,
            "render_config": episode.render_config,
        }
    )


def _camera_info(first: Observation) -> dict[str, object]:
    """Calibration at the first step, for readers of robomimic files; every step's own stands in ``obs``."""
    return {
        name: {
            "height": view.rgb.shape[0],
            "width": view.rgb.shape[1],
            "intrinsics": view.intrinsics.tolist(),
            "camera_to_world": view.camera_to_world.tolist(),
            "axes": "opencv: x right, y down, z forward",
            "image_convention": "upright",
            "depth_unit": "metre",
        }
        for name, view in first.views.items()
    }
