"""What this machine is: versions, processor and threads, which may change the last bit of a result."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import numpy as np

from sim_eval import __version__

PACKAGES = (
    "numpy",
    "mujoco",
    "robosuite",
    "metaworld",
    "rpent-libero",
    "torch",
    "transformers",
    "tokenizers",
    "h5py",
    "imageio-ffmpeg",
    "pillow",
)


def versions() -> dict[str, object]:
    """Of what may change the last bit of a result: package -> version."""
    return {"sim_eval": __version__, "python": platform.python_version(), **installed(PACKAGES)}


def installed(packages: Iterable[str]) -> dict[str, str]:
    """Package -> version, of those that are installed."""
    found = {}
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def machine() -> dict[str, object]:
    """Versions, processor and threads: what may change the last bit of a result."""
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "processor": _processor(),
        "instructions": _instructions(),
        "torch_threads": torch_threads(),
    }


def torch_threads() -> int | None:
    """Of this process; None: a policy without a network does not load torch."""
    torch = sys.modules.get("torch")
    return int(torch.get_num_threads()) if torch else None


def _processor() -> str:
    """Name and stepping: several generations of a processor may share their name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    parts = [told.get("model name", platform.machine())]
    parts += [f"{name} {told[name]}" for name in ("cpu family", "model", "stepping") if name in told]
    return ", ".join(parts)


def _instructions() -> str:
    """The processor's vector instructions, as NumPy sees them: libraries choose their kernels by them."""
    found = cast(Any, np).show_config(mode="dicts")  # its stub knows no mode
    return " ".join(found["SIMD Extensions"].get("found", ()))
