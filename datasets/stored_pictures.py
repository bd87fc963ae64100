"""The pictures in an episode file: how they are compressed, where they are, and how damage is noticed.

A table in the file has the position, size and CRC-32 of each compressed picture, and the file's own checksum covers
everything else. So a file is opened and verified after reading a few kilobytes of it, and each picture is verified when
it is read.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numcodecs import blosc
from numcodecs.blosc import NOSHUFFLE, SHUFFLE, Blosc
from numpy.typing import NDArray

from sim_eval.core.errors import SimEvalError

REMEDY = "delete it and collect it again"

# Measured by benchmarks/demonstration_storage.py on 128 x 128 robosuite frames, in CPU time: size and writing of one
# view (rgb and depth), reading is of 32 windows of two views in random order:
#   gzip-1, shuffled (version 0.1)    35 kB   0.8 ms   19.1 ms   and 41 kB more for a packed copy that training read
#   LZ4HC as below                    41 kB   0.5 ms    2.3 ms
#   LZ4HC-5                           39 kB   1.2 ms    2.1 ms
#   zstd-1                            37 kB   0.3 ms    7.5 ms
#   zstd-3                            33 kB   0.6 ms    6.2 ms
#   Blosc2 or Bitshuffle by h5py  35-51 kB  1.1-0.4 ms  20-28 ms
# A picture is written once and read in every epoch, so reading counts most. A training step takes 166 ms on these files
# and 186 ms on those of version 0.1.
RGB, DEPTH = Blosc("lz4hc", clevel=1, shuffle=NOSHUFFLE), Blosc("lz4hc", clevel=3, shuffle=SHUFFLE)
# Blosc's threads survive no fork, and DataLoader workers are forked. Without them it is safe in threads as well.
blosc.use_threads = False


HEADER = struct.Struct("<4s3I")  # of a Blosc chunk: flags, bytes of the picture, of a block, and of the chunk


class Codec(Protocol):
    """Decompresses pictures of one kind."""

    def decode(self, content: bytes, out: NDArray[Any]) -> object:
        """Writes the picture into ``out``; raises ValueError or RuntimeError where the content is no such picture."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """The pictures of an episode of T steps and C cameras, on the disk. It holds no open file, so threads may share it
    and other processes may get a copy.

    Attributes:
        path: the episode's file.
        cameras: camera name -> (height, width), in the table's order.
        table: int64 [T, C, 2, 3], rgb before depth: position in the file, number of bytes, CRC-32.
        codecs: of rgb and of depth.
    """

    path: Path
    cameras: Mapping[str, tuple[int, int]]
    table: NDArray[np.int64]
    codecs: tuple[Codec, Codec] = (RGB, DEPTH)

    def read(self, step: int, camera: str) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Fresh arrays: rgb uint8 [H, W, 3] and depth float32 [H, W] in metres.

        Raises:
            SimEvalError: the file is gone or damaged.
        """
        size = self.cameras[camera]
        try:
            rgb, depth = np.empty((*size, 3), dtype=np.uint8), np.empty(size, dtype=np.float32)
            outputs: tuple[NDArray[Any], ...] = rgb, depth
            places = self.table[step, list(self.cameras).index(camera)].tolist()
            # Read, not mapped: a page that the disk has lost is then an error to catch.
            with self.path.open("rb", buffering=0) as stream:
                for (position, length, checksum), codec, output in zip(places, self.codecs, outputs, strict=True):
                    content = os.pread(stream.fileno(), length, position)
                    if zlib.crc32(content) != checksum:
                        raise ValueError("its checksum differs")
                    # Blosc trusts the sizes in its own header and would read beyond what is here.
                    if isinstance(codec, Blosc) and HEADER.unpack(content[:16])[1::2] != (output.nbytes, length):
                        raise ValueError("its size is not that of the camera's pictures")
                    codec.decode(content, output)
        except (LookupError, MemoryError, OSError, RuntimeError, ValueError, zlib.error, struct.error) as error:
            raise SimEvalError(f"{self.path}: '{camera}' at step {step} is damaged ({error}): {REMEDY}") from error
        return rgb, depth

    def verify(self) -> None:
        """Reads every picture.

        Raises:
            SimEvalError: the file is gone or damaged.
        """
        for step in range(len(self.table)):
            for camera in self.cameras:
                self.read(step, camera)
