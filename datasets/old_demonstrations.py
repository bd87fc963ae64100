"""Reads the demonstrations of versions before 0.2: pictures in gzip, one checksum of the whole file, and their log."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numcodecs.shuffle import Shuffle
from numpy.typing import NDArray

from sim_eval.core import old_files
from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import RenderConfig

MARK = b"sim_eval episode 1 sha256 "


def is_old(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.read(len(MARK)) == MARK
    except OSError:
        return False  # the reader of today's files says why


def meta(data: h5py.Group) -> dict[str, Any]:
    """The attribute ``ep_meta`` in the form that today's files have."""
    old = json.loads(data["demo_0"].attrs["ep_meta"])
    spec = {name: old.pop(name) for name in ("robot", "cameras", "proprio")}
    spec["action"] = old_files.action(old.pop("action"))
    if (render := old.pop("shown", None)) is None:  # the first files said it in env_args only
        env_args = json.loads(data.attrs["env_args"])
        height, width = next(iter(spec["cameras"].values()), (RenderConfig.height, RenderConfig.width))
        render = {"height": height, "width": width, "hide_goal": env_args.get("hide_goal", False)}
        render["mode"] = env_args.get("render", "fast")
    return {**old, "spec": spec, "render_config": old_files.render_config(render), "depth_range": {}}


def read_table(data: h5py.Group, cameras: Mapping[str, tuple[int, int]]) -> NDArray[np.int64]:
    """Position, size and CRC-32 of each picture: int64 [T, C, 2, 3]."""
    obs = data["demo_0/obs"]
    columns = [_rows(obs[f"{camera}_{part}"]) for camera in cameras for part in ("image", "depth")]
    return np.stack(columns, axis=1).reshape(len(columns[0]), len(cameras), 2, 3)


def _rows(pictures: h5py.Dataset) -> NDArray[np.int64]:
    rows = []
    for step in range(len(pictures)):
        place = pictures.id.get_chunk_info_by_coord((step, 0, 0, 0))
        _, content = pictures.id.read_direct_chunk((step, 0, 0, 0))
        rows.append((place.byte_offset, place.size, zlib.crc32(content)))
    return np.array(rows, dtype=np.int64)


class Gzip:
    """Pictures in HDF5's filters shuffle and gzip.

    Args:
        itemsize: bytes a number.
    """

    def __init__(self, itemsize: int) -> None:
        self._itemsize = itemsize

    def decode(self, content: bytes, out: NDArray[Any]) -> None:
        Shuffle(self._itemsize).decode(zlib.decompressobj().decompress(content, out.nbytes), out)
        if out.dtype == np.float32 and not (np.isfinite(out).all() and (out > 0).all()):
            raise ValueError("depth must be finite and above 0 m")


CODECS = Gzip(1), Gzip(4)


def attempts(folder: Path, stem: str) -> tuple[Mapping[str, Any], set[int]]:
    """Settings and failed indices of the attempts log ``<stem>.tries.jsonl``; both empty where it is missing.

    Raises:
        SimEvalError: it is damaged.
    """
    path = folder / f"{stem}.tries.jsonl"
    try:
        whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        if not whole:  # a kill tore even the first line
            return {}, set()
        settings = old_files.renamed(json.loads(whole[0]), {"settle": "post_success_steps"})
        if not isinstance(settings, Mapping):
            raise TypeError("its first line is not a table")
        return settings, {int(json.loads(line)["failed"]) for line in whole[1:]}
    except FileNotFoundError:
        return {}, set()
    except (AttributeError, KeyError, OSError, TypeError, ValueError, RecursionError) as error:
        raise SimEvalError(f"{path} is damaged ({error}): delete it to repeat the failed attempts") from error
