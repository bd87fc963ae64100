"""Cores and memory that this process may use, of the machine and within its control groups (versions 1 and 2), and how
to load without looking for garbage."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

GIGABYTE = 1e9
ROOT = Path("/")


def available_cores(root: Path = ROOT) -> int:
    """Cores that this process may use; at least one.

    Args:
        root: of the file system.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *_group_cores(root)]))


def available_memory(root: Path = ROOT) -> int:
    """Bytes that this process can still take.

    Args:
        root: of the file system.
    """
    import psutil

    return min([int(psutil.virtual_memory().available), *_group_memory(root)])


@contextmanager
def uncollected() -> Iterator[None]:
    """Suspends the garbage collector while modules and models are loaded, which make a million objects and no garbage.

    It would go over them again and again, for a quarter of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def return_memory() -> None:
    """Returns to the system what this process has freed, where the C library can."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _groups(root: Path, controller: str) -> Iterator[tuple[Path, bool]]:
    """The folders of this process's control groups, innermost first, and whether each is of version 2."""
    lines = []
    with suppress(OSError):
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / (controller if controllers else "")
        path = PurePosixPath(group.lstrip("/"))
        for each in (path, *path.parents):  # in a container, a group may be missing and its ancestor stand for it
            yield mount / each, not controllers


def _group_cores(root: Path) -> Iterator[int]:
    """Whole cores that each control group with a quota leaves."""
    for folder, newer in _groups(root, "cpu"):
        files = ["cpu.max"] if newer else ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        with suppress(OSError, ValueError):  # ValueError: "max", no quota
            quota, period = map(int, " ".join((folder / file).read_text() for file in files).split())
            if quota > 0:  # -1: no quota
                yield quota // period


def _group_memory(root: Path) -> Iterator[int]:
    """What each control group with a limit leaves."""
    for folder, newer in _groups(root, "memory"):
        limit, usage = ("memory.max", "memory.current") if newer else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        with suppress(OSError, ValueError):  # ValueError: "max", no limit
            free = int((folder / limit).read_text()) - int((folder / usage).read_text())
            statistics = dict(entry.split() for entry in (folder / "memory.stat").read_text().splitlines())
            yield max(0, free) + int(statistics.get("inactive_file" if newer else "total_inactive_file", 0))
