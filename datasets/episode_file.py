"""One episode on disk: HDF5 in robomimic's layout, with depth, calibrated cameras and simulator states.

One file an episode, so that a crash can cost at most the episode that was running.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import h5py
import numpy as np
from isal import isal_zlib
from numcodecs.shuffle import Shuffle
from numpy.typing import NDArray

from sim_eval.core import old_files
from sim_eval.core.decoding import decode
from sim_eval.core.errors import SimEvalError
from sim_eval.core.files import sealed, unsealed, write_sealed
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

SUFFIX = ".hdf5"
MARK = b"sim_eval episode 1 sha256 "

Array: TypeAlias = NDArray[np.generic]


@dataclass(frozen=True, eq=False)
class Episode:
    """What is remembered of T control steps.

    Attributes:
        key: which episode this is.
        instruction, workspace: what was asked, and where.
        robot: its name.
        action: what the action vectors mean.
        observations: T observations, one before each action.
        actions: float64 [T, A], the demonstrator's clean labels.
        executed_actions: float64 [T, A], what moved the robot; differs where the collector disturbed the demonstrator.
        states: float64 [T, S], the simulator's state before each action.
        success: bool [T], the success rule after each action.
        phases: int64 [T], phases fulfilled after each action.
        provenance: ``env_args`` (JSON) and ``model_file`` (MJCF).
        versions: package name -> version that made it.
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
        """What the environment offered, read off the first observation."""
        first = self.observations[0]
        cameras = {name: (view.rgb.shape[0], view.rgb.shape[1]) for name, view in first.views.items()}
        return EnvironmentSpec(self.robot, cameras, {k: len(v) for k, v in first.proprio.items()}, self.action)


@dataclass(frozen=True)
class EpisodeHeader:
    """What can be told of a file without decoding a picture; ``success`` is True when any step succeeded."""

    key: EpisodeKey
    instruction: str
    workspace: WorkspaceBox
    spec: EnvironmentSpec
    length: int
    success: bool
    versions: Mapping[str, str]
    render_config: RenderConfig


def file_name(key: EpisodeKey) -> str:
    """The file name of an episode, for example ``robosuite-LiftWide_train_00012.hdf5``."""
    return f"{key.stem}{SUFFIX}"


def episode_files(folder: Path) -> list[Path]:
    """The finished episode files of a folder, sorted by name; temporary files are not among them."""
    return sorted(folder.glob(f"[!.]*{SUFFIX}"))


def write_episode(path: Path, episode: Episode) -> None:
    """Writes an episode so that ``path`` either holds all of it or is untouched, whenever the process dies.

    Raises:
        SimEvalError: the episode contradicts itself, or the disk refuses.
    """
    write_sealed(path, _pack(episode), read_header, "free some space or choose another folder")


def read_episode(path: Path, pictures: bool = True) -> Episode:
    """A whole episode; its pictures are slices of one array a camera.

    Args:
        pictures: without them the observations have no views, and reading takes a fifth of the time.

    Raises:
        SimEvalError: the file is missing, truncated, damaged or foreign.
    """
    with _opened(path) as data:
        header, demo = header_of(data), data["demo_0"]
        return Episode(
            key=header.key,
            instruction=header.instruction,
            workspace=header.workspace,
            robot=header.spec.robot,
            action=header.spec.action,
            observations=_unstack(header, demo["obs"], pictures),
            actions=demo["actions"][()],
            executed_actions=demo["executed_actions"][()],
            states=demo["states"][()],
            success=demo["rewards"][()] > 0,
            phases=demo["phases"][()],
            provenance={"env_args": data.attrs["env_args"], "model_file": demo.attrs["model_file"]},
            versions=header.versions,
            render_config=header.render_config,
        )


def read_header(path: Path) -> EpisodeHeader:
    """What an episode is. Cheap, for no picture is decoded, and sure, for the checksum is compared.

    Raises:
        SimEvalError: the file is missing, truncated, damaged or foreign.
    """
    with _opened(path) as data:
        return header_of(data)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[h5py.Group]:
    with unsealed(path, MARK, "episode", "delete it and collect it again") as file:
        yield file["data"]


def create_demo(file: h5py.File, episode: Episode) -> h5py.Group:
    """The group of an episode in an empty file; with its ``rewards`` it holds all that :func:`header_of` reads."""
    data = file.create_group("data")
    data.attrs.update(total=len(episode.actions), env_args=episode.provenance["env_args"])
    demo: h5py.Group = data.create_group("demo_0")
    demo.attrs.update(num_samples=len(episode.actions), ep_meta=json.dumps(_meta(episode)))
    return demo


def header_of(data: h5py.Group) -> EpisodeHeader:
    """The header in a file's ``data`` group."""
    demo = data["demo_0"]
    meta = json.loads(demo.attrs["ep_meta"])
    cameras = {name: (int(size[0]), int(size[1])) for name, size in meta["cameras"].items()}
    proprio = {name: int(length) for name, length in meta["proprio"].items()}
    spec = decode(ActionSpec, old_files.action(meta["action"]))
    return EpisodeHeader(
        key=EpisodeKey(**meta["key"]),
        instruction=meta["lang"],
        workspace=WorkspaceBox(tuple(meta["workspace"]["lower"]), tuple(meta["workspace"]["upper"])),
        spec=EnvironmentSpec(meta["robot"], cameras, proprio, spec),
        length=int(demo.attrs["num_samples"]),
        success=bool(np.any(demo["rewards"][()] > 0)),
        versions=meta["versions"],
        render_config=_render_config(data, meta.get("shown"), cameras),
    )


def _render_config(
    data: h5py.Group, recorded: Mapping[str, Any] | None, cameras: Mapping[str, tuple[int, int]]
) -> RenderConfig:
    """How the task was rendered; files of earlier versions say it less plainly."""
    if recorded is not None:
        return RenderConfig(**old_files.render_config(recorded))
    told = json.loads(data.attrs["env_args"])
    size = next(iter(cameras.values()), (RenderConfig.height, RenderConfig.width))
    return RenderConfig(told.get("render", "fast"), *size, told.get("hide_goal", False))


def _unstack(header: EpisodeHeader, obs: h5py.Group, pictures: bool) -> list[Observation]:
    cameras = {
        name: [obs[f"{name}_{part}"][()] for part in ("image", "depth", "intrinsics", "camera_to_world")]
        for name in (header.spec.cameras if pictures else ())
    }
    proprio = {name: obs[f"robot0_{name}"][()] for name in header.spec.proprio}
    return [
        Observation(
            views={
                name: CameraView(rgb[step], depth[step, ..., 0], intrinsics[step], pose[step])
                for name, (rgb, depth, intrinsics, pose) in cameras.items()
            },
            proprio={name: values[step] for name, values in proprio.items()},
            instruction=header.instruction,
            workspace=header.workspace,
        )
        for step in range(header.length)
    ]


def _pack(episode: Episode) -> bytes:
    """The whole file as bytes."""
    try:
        arrays = _arrays(episode)
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"its parts differ in length: {lengths}")

        def fill(file: h5py.File) -> None:
            demo = create_demo(file, episode)
            demo.attrs.update(
                model_file=episode.provenance["model_file"],
                camera_info=json.dumps(_camera_info(episode.observations[0])),
            )
            for name, array in arrays.items():
                _store(demo, name, array)

        return sealed(MARK, fill)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise SimEvalError(f"episode {episode.key} cannot be stored ({reason}): mend what recorded it") from error


def _store(demo: h5py.Group, name: str, array: Array) -> None:
    if array.ndim != 4:
        demo.create_dataset(name, data=array)
        return
    # Measured on 128 x 128 robosuite frames, 60 steps x 2 cameras: gzip-1 with shuffle makes 18 kB of a picture and
    # 19 kB of a depth map (lzf: 25 and 21, and only h5py reads it); one frame a chunk reads a whole episode in 40 ms as
    # larger chunks do, and a single frame of both cameras in 3 ms instead of 4 (4 frames) or 13 (16 frames).
    pictures = demo.create_dataset(
        name,
        array.shape,
        array.dtype,
        chunks=(1, *array.shape[1:]),
        compression="gzip",
        compression_opts=1,
        shuffle=True,
    )
    # HDF5's own zlib takes half as long as rendering; ISA-L writes the same format in a quarter of that, 3 % larger.
    shuffle = Shuffle(array.itemsize)
    for step, picture in enumerate(array):
        content = isal_zlib.compress(shuffle.encode(np.ascontiguousarray(picture)), 1)
        pictures.id.write_direct_chunk((step, 0, 0, 0), content)


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


def _meta(episode: Episode) -> dict[str, object]:
    return {
        "lang": episode.instruction,
        "key": asdict(episode.key),
        "workspace": asdict(episode.workspace),
        "robot": episode.robot,
        "action": asdict(episode.action),
        "cameras": dict(episode.spec.cameras),
        "proprio": dict(episode.spec.proprio),
        "versions": dict(episode.versions),
        "shown": asdict(episode.render_config),
    }


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
