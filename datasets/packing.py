"""Pictures kept compressed in memory, without loss, and decoded each time that somebody looks at one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numcodecs.blosc import NOSHUFFLE, SHUFFLE, Blosc

from sim_eval.datasets.episode_file import Episode
from sim_eval.envs.contract import CameraView, FloatArray

# Measured on 128 x 128 robosuite frames: rgb shrinks from 49 to 22 kB and depth from 66 to 19 kB, so that a window of
# two cameras is 82 instead of 230 kB, and 4 ms decode a batch of 32 beside a network that keeps both cores and the
# cache busy. zstd makes 70 kB and takes 8 ms; LZ4's higher levels save 3 kB a window and pack four times as long.
RGB, DEPTH = Blosc("lz4hc", clevel=1, shuffle=NOSHUFFLE), Blosc("lz4hc", clevel=3, shuffle=SHUFFLE)


def packed(episode: Episode) -> Episode:
    """The same episode, bit for bit, whose observations' views are decoded when looked up."""
    observations = [replace(seen, views=PackedViews(seen.views)) for seen in episode.observations]
    return replace(episode, observations=observations)


class PackedViews(Mapping[str, CameraView]):
    """Views by camera name; each look-up decodes a fresh picture, which nobody else holds.

    Args:
        views: what is packed.
    """

    def __init__(self, views: Mapping[str, CameraView]) -> None:
        self._views = {name: _Packed.of(view) for name, view in views.items()}

    def __getitem__(self, name: str) -> CameraView:
        return self._views[name].view()

    def __contains__(self, name: object) -> bool:  # Mapping's own would decode
        return name in self._views

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)


@dataclass(frozen=True, slots=True)
class _Packed:
    """One view: ``rgb`` and ``depth`` as Blosc's bytes."""

    height: int
    width: int
    rgb: bytes
    depth: bytes
    intrinsics: FloatArray
    camera_to_world: FloatArray

    @classmethod
    def of(cls, view: CameraView) -> _Packed:
        height, width = view.depth.shape
        rgb, depth = (np.ascontiguousarray(picture) for picture in (view.rgb, view.depth))
        return cls(height, width, RGB.encode(rgb), DEPTH.encode(depth), view.intrinsics, view.camera_to_world)

    def view(self) -> CameraView:
        rgb = np.empty((self.height, self.width, 3), dtype=np.uint8)
        depth = np.empty((self.height, self.width), dtype=np.float32)
        RGB.decode(self.rgb, out=rgb)
        DEPTH.decode(self.depth, out=depth)
        return CameraView(rgb, depth, self.intrinsics, self.camera_to_world)
