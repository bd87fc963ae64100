"""Cores and memory within control groups, and the number of workers that follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from sim_eval.core import resources
from sim_eval.core.resources import available_cores, available_memory
from sim_eval.evaluation import workers
from sim_eval.evaluation.workers import affordable_workers, worker_count

GROUPS_2 = {
    "proc/self/cgroup": "0::/jobs/one\n",
    "sys/fs/cgroup/jobs/one/memory.max": "max\n",
    "sys/fs/cgroup/jobs/one/memory.current": "100\n",
    "sys/fs/cgroup/jobs/one/memory.stat": "anon 70\ninactive_file 30\n",
    "sys/fs/cgroup/jobs/memory.max": "1000\n",
    "sys/fs/cgroup/jobs/memory.current": "600\n",
    "sys/fs/cgroup/jobs/memory.stat": "anon 500\ninactive_file 50\n",
}
GROUPS_1 = {  # in a container: the group's path is the host's, and the mount shows the container's group as the root
    "proc/self/cgroup": "12:cpu,cpuacct:/docker/a\n5:memory:/docker/a\n0::/docker/a\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "800\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "300\n",
    "sys/fs/cgroup/memory/memory.stat": "cache 3\ntotal_inactive_file 7\n",
}


def write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("files", "free"),
    [
        (GROUPS_2, 1000 - 600 + 50),
        (GROUPS_2 | {"sys/fs/cgroup/jobs/one/memory.max": "200\n"}, 200 - 100 + 30),
        (GROUPS_2 | {"sys/fs/cgroup/jobs/memory.current": "2000\n"}, 50),
        (GROUPS_1, 800 - 300 + 7),
        (GROUPS_1 | {"sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2**63 - 4096}\n"}, None),
        ({"proc/self/cgroup": "0::/\n"}, None),
        ({}, None),
    ],
)
def test_control_groups_limit_memory(
    files: dict[str, str], free: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, files)
    machine = psutil.virtual_memory()
    monkeypatch.setattr("psutil.virtual_memory", lambda: machine)
    assert available_memory(tmp_path) == (machine.available if free is None else free)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"proc/self/cgroup": "0::/jobs/one\n", "sys/fs/cgroup/jobs/one/cpu.max": "300000 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/jobs/one\n", "sys/fs/cgroup/jobs/cpu.max": "250000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 16),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/docker/a\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            16,
        ),
        ({}, 16),
    ],
)
def test_control_groups_limit_cores(
    files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, files)
    monkeypatch.setattr(resources.os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    assert available_cores(tmp_path) == cores


def test_workers_are_bound_by_cores_and_by_memory() -> None:
    assert affordable_workers(8, 100, 10) == 8
    assert affordable_workers(8, 35, 10) == 3
    assert affordable_workers(8, 5, 10) == 1


def test_workers_are_bound_by_episodes_unless_their_number_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "available_cores", lambda: 16)
    monkeypatch.setattr(workers, "available_memory", lambda: 10**13)
    assert [worker_count("auto", episodes) for episodes in (1, 7, 8, 20, 500)] == [1, 1, 2, 5, 16]
    monkeypatch.setattr(workers, "available_memory", lambda: 2_000_000_000)
    assert worker_count("auto", 500, shared=True) == 2
    monkeypatch.setattr(psutil.Process, "memory_info", lambda _: type("Memory", (), {"rss": 1_500_000_000}))
    assert worker_count("auto", 500) == 1
    assert worker_count(7, 1) == 7
