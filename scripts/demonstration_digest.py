"""Prints what demonstrations hold, one JSON line per episode: ``python scripts/demonstration_digest.py DIR``.

Each line has the SHA-256 of every decoded array and the meaning of every attribute, independent of how the arrays are
compressed and of names that changed between versions. So two collections are equal exactly when their lines are. Arrays
are read by h5py alone, as other programs read them.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401  # lets h5py decode the pictures
import numpy as np

from sim_eval.core.decoding import encode
from sim_eval.core.errors import SimEvalError
from sim_eval.datasets.episode_file import episode_files, read_header

STORAGE = "picture_table"  # a dataset about the file itself
INSTALLED = re.compile(r'(?<=")/[^"]*/site-packages/')  # where the machine that recorded keeps its meshes


def digest(path: Path) -> dict[str, object]:
    """The contents of an episode file in a stable form.

    Raises:
        SimEvalError: the file is damaged.
    """
    header = encode(read_header(path))
    header.pop("depth_range")  # says of the pictures what they say themselves; old files lack it
    header["versions"].pop("sim_eval", None)  # depends on how it was installed
    arrays: dict[str, str] = {}

    def add(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset) and name != STORAGE:
            values = np.ascontiguousarray(item[()])
            arrays[name] = hashlib.sha256(f"{values.dtype.str} {values.shape} ".encode() + values.tobytes()).hexdigest()

    with h5py.File(path, "r") as file:
        data = file["data"]
        demo = data["demo_0"]
        demo.visititems(add)
        return {
            "header": header,
            "total": int(data.attrs["total"]),
            "num_samples": int(demo.attrs["num_samples"]),
            "env_args": json.loads(data.attrs["env_args"]),
            "camera_info": json.loads(demo.attrs["camera_info"]),
            "model_file": hashlib.sha256(INSTALLED.sub("", demo.attrs["model_file"]).encode()).hexdigest(),
            "arrays": arrays,
        }


def main(folders: list[str]) -> int:
    if not folders:
        print("usage: demonstration_digest.py DIR [DIR ...]", file=sys.stderr)
        return 2
    try:
        for path in (path for folder in folders for path in episode_files(Path(folder))):
            print(json.dumps(digest(path), sort_keys=True))
    except SimEvalError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
