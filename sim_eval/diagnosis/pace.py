"""The speed of policy and simulator, and the number of workers for this machine."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from statistics import median
from timeit import timeit

import numpy as np

from sim_eval.core.resources import GIGABYTE, available_cores, available_memory
from sim_eval.core.types import EpisodeKey, Simulator, observe_task
from sim_eval.diagnosis.findings import Finding
from sim_eval.evaluation.workers import affordable_workers
from sim_eval.policies.policy import Policy, PolicyRequest

WARM_UP, CHUNKS = 3, 20
STEPS = 40  # timed control steps, and as many observations


def policy_pace(policy: Policy, simulator: Simulator, key: EpisodeKey) -> Iterator[Finding]:
    """The policy's latency for one observation at a time."""
    simulator.reset(key)
    observation = observe_task(simulator, simulator.task.instruction(key), tuple(policy.spec.cameras))
    privileged = simulator.privileged() if policy.spec.privileged else None
    requests = [
        PolicyRequest(observation, key, policy_call, simulator.spec.action, privileged)
        for policy_call in range(WARM_UP + CHUNKS)
    ]
    seconds = [timeit(partial(policy.predict, [request]), number=1) for request in requests][WARM_UP:]
    typical = median(seconds)
    yield Finding(
        "policy latency",
        "ok",
        f"{1000 * typical:.1f} ms a chunk (median of {CHUNKS}, {1000 * min(seconds):.1f} to {1000 * max(seconds):.1f})",
    )


def simulator_pace(simulator: Simulator, key: EpisodeKey) -> Iterator[Finding]:
    """Control steps and pictures a second, measured apart."""
    simulator.reset(key)
    simulator.observe()  # makes the renderer
    still = simulator.spec.action.clip(np.zeros(simulator.spec.action.dim))
    acting, looking = [], []
    for _ in range(STEPS):
        acting.append(timeit(lambda: simulator.act(still), number=1))
        looking.append(timeit(simulator.observe, number=1))
    cameras = len(simulator.spec.cameras)
    yield Finding(
        "simulator",
        "ok",
        f"{1 / median(acting):.0f} control steps/s, {cameras / median(looking):.0f} RGB-D frames/s ({cameras} cameras)",
    )


def worker_findings() -> Iterator[Finding]:
    """The suggestion for this machine; a worker needs as much memory as this process with policy and simulator."""
    import psutil

    needed = int(psutil.Process().memory_info().rss)
    cores, free = available_cores(), available_memory() + needed
    workers = affordable_workers(cores, free, needed)
    memory = f"{free / GIGABYTE:.1f} GB free / {needed / GIGABYTE:.1f} GB a worker"
    yield Finding("suggested --workers", "ok", f"{workers}, the lesser of {cores} cores and {memory}; at least 1")
