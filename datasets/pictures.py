"""The pictures in an episode file: how they are compressed, where they are, and how damage is noticed.

The first 512 bytes of an episode file, which HDF5 readers skip, hold a SHA-256 of everything that is not a picture. A
table in the file holds the position, size and CRC-32 of each compressed picture. A file is therefore opened and
verified after reading a few kilobytes of it, and each picture is verified when it is read.
"""

from __future__ import annotations

import hashlib
import os
import re
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
from sim_eval.core.files import USER_BLOCK

MARK = b"sim_eval episode 2 sha256 "
REMEDY = "delete it and collect it again"
_BLOCK = re.compile(re.escape(MARK) + rb"([0-9a-f]{64})( table (\d{1,15}) (\d{1,15})\0*)")

RGB, DEPTH = Blosc("lz4hc", clevel=1, shuffle=NOSHUFFLE), Blosc("lz4hc", clevel=3, shuffle=SHUFFLE)
# HDF5's registered numbers of Blosc and, within it, of LZ4. h5py reads such data after `import hdf5plugin`.
BLOSC_FILTER, LZ4 = 32001, 1
# Blosc's threads survive no fork, and DataLoader workers are forked. Without them it is safe in threads as well.
blosc.use_threads = False


class Codec(Protocol):
    """Decompresses pictures of one kind."""

    def decode(self, content: bytes, out: NDArray[Any]) -> object:
        """Writes the picture into ``out``.

        Raises:
            ValueError, RuntimeError: the content is no such picture.
        """


@dataclass(frozen=True, eq=False)
class Pictures:
    """The pictures of an episode of T steps and C cameras, on the disk. It holds no open file, so that it may be used
    by several threads and sent to other processes.

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
        rgb, depth = np.empty((*size, 3), dtype=np.uint8), np.empty(size, dtype=np.float32)
        outputs: tuple[NDArray[Any], ...] = rgb, depth
        rows = self.table[step, list(self.cameras).index(camera)]
        try:
            # Read, not mapped: a page that the disk has lost is then an error to catch.
            with self.path.open("rb", buffering=0) as stream:
                for row, codec, output in zip(rows.tolist(), self.codecs, outputs, strict=True):
                    codec.decode(_content(stream.fileno(), *row), output)
        except (OSError, RuntimeError, ValueError) as error:
            raise SimEvalError(f"{self.path}: '{camera}' at step {step} is damaged ({error}): {REMEDY}") from error
        return rgb, depth

    def verify(self) -> None:
        """Compares every picture's checksum.

        Raises:
            SimEvalError: the file is gone or damaged.
        """
        try:
            with self.path.open("rb", buffering=0) as stream:
                for row in self.table.reshape(-1, 3).tolist():
                    _content(stream.fileno(), *row)
        except (OSError, ValueError) as error:
            raise unsound(self.path, f"a picture is damaged: {error}") from error


def filter_options(codec: Blosc, picture: NDArray[Any]) -> tuple[int, ...]:
    """HDF5's options of the Blosc filter for chunks of one such picture; the twos are versions of filter and format."""
    return 2, 2, picture.itemsize, picture.nbytes, codec.clevel, codec.shuffle, LZ4


def seal(body: bytes, table: NDArray[np.int64], position: int) -> bytes:
    """A whole file, with the checksum of what is not a picture.

    Args:
        body: what follows the first 512 bytes.
        table: see :class:`Pictures`.
        position: of the table in the file.
    """
    where = f" table {position} {table.size // 3}".encode().ljust(USER_BLOCK - len(MARK) - 64, b"\0")
    digest = hashlib.sha256(where)
    for begin, end in _between(table.reshape(-1, 3), USER_BLOCK + len(body)):
        digest.update(body[begin - USER_BLOCK : end - USER_BLOCK])
    return MARK + digest.hexdigest().encode() + where + body


def read_table(path: Path) -> NDArray[np.int64]:
    """The table [pictures, 3] of a file, after its checksum was compared.

    Raises:
        SimEvalError: the file is missing, truncated, damaged or foreign.
    """
    try:
        with path.open("rb", buffering=0) as stream:
            handle = stream.fileno()
            size = os.fstat(handle).st_size
            if (block := _BLOCK.fullmatch(os.pread(handle, USER_BLOCK, 0))) is None:
                raise unsound(path, "sim_eval did not write it, or its beginning is lost")
            position, count = int(block[3]), int(block[4])
            if position + 24 * count > size:
                raise ValueError("too short")
            table = np.frombuffer(os.pread(handle, 24 * count, position), dtype="<i8").reshape(count, 3)
            digest = hashlib.sha256(block[2])
            for begin, end in _between(table, size):
                digest.update(os.pread(handle, end - begin, begin))
    except OSError as error:
        raise SimEvalError(f"cannot read {path} ({error.strerror}): check the path and permissions") from error
    except ValueError as error:
        raise unsound(path, "it is truncated or damaged") from error
    if digest.hexdigest().encode() != block[1]:
        raise unsound(path, "it is truncated or damaged")
    return table


def unsound(path: Path, reason: str) -> SimEvalError:
    return SimEvalError(f"{path} is not a sound episode ({reason}): {REMEDY}")


def _content(handle: int, position: int, size: int, checksum: int) -> bytes:
    content = os.pread(handle, size, position)
    if zlib.crc32(content) != checksum:
        raise ValueError("its checksum differs")
    return content


def _between(table: NDArray[np.int64], size: int) -> list[tuple[int, int]]:
    """Begin and end of each part of a file of ``size`` bytes that holds no picture.

    Raises:
        ValueError: the pictures overlap or leave the file.
    """
    ordered = table[np.argsort(table[:, 0])]
    begins = np.append(USER_BLOCK, ordered[:, 0] + ordered[:, 1])
    ends = np.append(ordered[:, 0], size)
    if (begins > ends).any() or (table < 0).any():
        raise ValueError("its pictures overlap")
    return [(begin, end) for begin, end in zip(begins.tolist(), ends.tolist(), strict=True) if begin < end]
