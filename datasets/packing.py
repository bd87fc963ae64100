"""Demonstrations packed once for training: their pictures stay on the disk and are decoded when somebody looks.

A packed file an episode, named after what it was made of. What the system keeps of it in memory, all trainings share.
"""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import h5py
import numpy as np
from numcodecs.blosc import NOSHUFFLE, SHUFFLE, Blosc
from numpy.typing import NDArray
from tqdm import tqdm

from sim_eval.core.errors import SimEvalError
from sim_eval.core.files import USER_BLOCK, sealed, write_sealed
from sim_eval.core.types import CameraView, EpisodeKey, FloatArray, Observation
from sim_eval.datasets.checks import episode_problems
from sim_eval.datasets.episode_file import SUFFIX, Episode, EpisodeHeader, create_demo, header_of, read_episode

FOLDER = ".packed"
MARK = b"sim_eval packed 1 sha256 "

# Measured on 128 x 128 robosuite frames: rgb shrinks from 49 to 22 kB and depth from 66 to 19 kB, so that a window of
# two cameras is 82 instead of 230 kB, and 4 ms decode a batch of 32 beside a network that keeps both cores and the
# cache busy. zstd makes 70 kB and takes 8 ms; LZ4's higher levels save 3 kB a window and pack four times as long.
RGB, DEPTH = Blosc("lz4hc", clevel=1, shuffle=NOSHUFFLE), Blosc("lz4hc", clevel=3, shuffle=SHUFFLE)


@dataclass(frozen=True, eq=False)
class PackedEpisode:
    """What training needs of an episode of T steps and C cameras; it holds no picture.

    Attributes:
        path: of the packed file.
        header: what the episode is; the cameras' order is that of ``spec.cameras``.
        actions: float64 [T, A], the labels.
        proprio: field -> float64 [T, n].
        intrinsics, camera_to_world: float64 [T, C, 3, 3] and [T, C, 4, 4].
        places: int64 [2 T C + 1], where in the file each picture begins, a view's rgb before its depth.
    """

    path: Path
    header: EpisodeHeader
    actions: FloatArray
    proprio: Mapping[str, FloatArray]
    intrinsics: FloatArray
    camera_to_world: FloatArray
    places: NDArray[np.int64]

    @property
    def key(self) -> EpisodeKey:
        return self.header.key

    def observation(self, step: int) -> Observation:
        """What was seen before action ``step``, bit for bit; its views are decoded when looked up."""
        proprio = {name: values[step] for name, values in self.proprio.items()}
        return Observation(PackedViews(self, step), proprio, self.header.instruction, self.header.workspace)


class PackedViews(Mapping[str, CameraView]):
    """The views of one step by camera name; each look-up decodes a fresh picture, which nobody else holds.

    Args:
        episode, step: whose.

    Raises:
        SimEvalError: on look-up, the packed file is gone or damaged.
    """

    def __init__(self, episode: PackedEpisode, step: int) -> None:
        self._episode, self._step = episode, step

    def __getitem__(self, name: str) -> CameraView:
        episode, cameras = self._episode, self._episode.header.spec.cameras
        height, width = cameras[name]
        camera = list(cameras).index(name)
        first = 2 * (self._step * len(cameras) + camera)
        begin, middle, end = episode.places[first : first + 3].tolist()
        rgb = np.empty((height, width, 3), dtype=np.uint8)
        depth = np.empty((height, width), dtype=np.float32)
        try:
            # Read, not mapped: the system shares it among processes all the same, and a lost page is an error to catch.
            with episode.path.open("rb", buffering=0) as stream:
                stream.seek(begin)
                data = memoryview(stream.read(end - begin))
            if len(data) < end - begin:  # Blosc would read on in memory
                raise EOFError
            RGB.decode(data[: middle - begin], out=rgb)
            DEPTH.decode(data[middle - begin :], out=depth)
        except (OSError, EOFError, RuntimeError, ValueError) as error:
            raise _damaged(episode.path, error) from error
        where = self._step, camera
        return CameraView(rgb, depth, episode.intrinsics[where], episode.camera_to_world[where])

    def __contains__(self, name: object) -> bool:  # Mapping's own would decode
        return name in self._episode.header.spec.cameras

    def __iter__(self) -> Iterator[str]:
        return iter(self._episode.header.spec.cameras)

    def __len__(self) -> int:
        return len(self._episode.header.spec.cameras)


def open_packed(files: Sequence[Path], cache: Path | None = None, workers: int = 1) -> dict[Path, PackedEpisode]:
    """Episodes as training reads them; those that were not packed before are checked and packed first.

    A file that was packed is known by its size, its time and its checksum, and is not read again.

    Args:
        files: of episodes.
        cache: where packed files are; default: ``.packed`` beside each file.
        workers: processes that pack.

    Raises:
        SimEvalError: a file is unsound, or a packed one cannot be written or read.
    """
    targets = {file: _target(file, cache) for file in files}
    missing = [file for file, target in targets.items() if not target.exists()]
    packing = _pack_all(missing, [targets[file] for file in missing], workers)
    for _ in tqdm(packing, "packing demonstrations", len(missing), delay=1, leave=False):
        pass
    opening = tqdm(targets.items(), "opening demonstrations", delay=1, leave=False)
    return {file: _read(target) for file, target in opening}


def pack(source: Path, target: Path) -> None:
    """Writes the packed file of an episode, whole or not at all.

    Raises:
        SimEvalError: the episode is unsound, or the disk refuses.
    """
    episode = read_episode(source)
    if problems := episode_problems(episode):
        raise SimEvalError(f"{source}: {problems[0]}; delete it and collect it again")
    content = sealed(MARK, lambda file: _fill(file, episode))
    write_sealed(target, content, _read, "free some space or choose another folder with --cache")


def _pack_all(sources: Sequence[Path], targets: Sequence[Path], workers: int) -> Iterator[None]:
    if min(workers, len(sources)) <= 1:
        yield from map(pack, sources, targets)
        return
    # Forked, for a spawned process would not find a clone's packages; HDF5 and Blosc, which are all that it uses, may
    # be forked. Ctrl-C reaches this process alone.
    with ProcessPoolExecutor(
        workers, get_context("fork"), initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
    ) as pool:
        try:
            yield from pool.map(pack, sources, targets)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _target(file: Path, cache: Path | None) -> Path:
    try:
        status = file.stat()
        with file.open("rb") as stream:
            checksum = stream.read(USER_BLOCK)
    except OSError as error:
        raise SimEvalError(f"cannot read {file} ({error.strerror}): check the path and permissions") from error
    made_of = hashlib.sha256(MARK + checksum + f"{status.st_size} {status.st_mtime_ns}".encode()).hexdigest()
    return (file.parent / FOLDER if cache is None else cache) / f"{file.stem}-{made_of[:16]}{SUFFIX}"


def _fill(file: h5py.File, episode: Episode) -> None:
    demo = create_demo(file, episode)
    views = [list(seen.views.values()) for seen in episode.observations]
    pictures = [part for row in views for view in row for part in (_encode(RGB, view.rgb), _encode(DEPTH, view.depth))]
    demo["rewards"] = np.array(episode.success, dtype=np.float64)
    demo["actions"] = episode.actions
    demo["intrinsics"] = np.array([[view.intrinsics for view in row] for row in views])
    demo["camera_to_world"] = np.array([[view.camera_to_world for view in row] for row in views])
    demo["sizes"] = np.array([len(part) for part in pictures], dtype=np.int64)
    demo["pictures"] = np.frombuffer(b"".join(pictures), dtype=np.uint8)
    for name, values in episode.proprio.items():
        demo[f"obs/{name}"] = values


def _encode(codec: Blosc, picture: NDArray[np.uint8] | NDArray[np.float32]) -> bytes:
    return bytes(codec.encode(np.ascontiguousarray(picture)))


def _read(path: Path) -> PackedEpisode:
    try:
        with h5py.File(path, "r") as file:
            data = file["data"]
            demo = data["demo_0"]
            header = header_of(data)
            return PackedEpisode(
                path=path,
                header=header,
                actions=demo["actions"][()],
                proprio={name: demo[f"obs/{name}"][()] for name in header.spec.proprio},
                intrinsics=demo["intrinsics"][()],
                camera_to_world=demo["camera_to_world"][()],
                places=demo["pictures"].id.get_offset() + np.concatenate([[0], np.cumsum(demo["sizes"][()])]),
            )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> SimEvalError:
    return SimEvalError(f"{path} cannot be used ({type(error).__name__}): delete it and start again, it is packed anew")
