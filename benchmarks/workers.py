"""What a second worker brings: ``python -m benchmarks.workers --policy deep_llama``.

One worker, two with a copy of the policy each, and two that ask one policy, one by one or in batches, run the same
episodes in turn, so that whatever else the machine does slows all alike. Starting is not timed: it happens once in a
run. The processes stay open and need up to 1 GB each.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

import tyro
from annotated_types import Ge

from sim_eval.console import run
from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import EpisodeKey, RenderConfig

if TYPE_CHECKING:
    from sim_eval.evaluation.engine import EpisodeResult
    from sim_eval.evaluation.workers import WorkerPool

PROGRAM = "python -m benchmarks.workers"
WARM_UP = 3  # episodes a worker that are not timed


@dataclass(frozen=True)
class WorkersArguments:
    """Time episodes with one worker and with several, in turn.

    Attributes:
        policy: a shipped checkpoint's name, or a checkpoint folder.
        episodes: of each side in each round, split val; the more, the less the last one counts, when a worker is idle.
        rounds: how often the sides take turns.
        workers: how many the several are.
        task: what they do.
    """

    policy: Annotated[str, tyro.conf.arg(metavar="NAME|DIR")]
    episodes: Annotated[int, Ge(1)] = 20
    rounds: Annotated[int, Ge(1)] = 5
    workers: Annotated[int, Ge(1)] = 2
    task: str = "robosuite/Lift"


def main(arguments: WorkersArguments) -> int:
    """Runs the command; returns the exit code."""
    os.environ.update(LP_NUM_THREADS="0", OMP_NUM_THREADS="1")
    from tqdm import tqdm

    from sim_eval.evaluation.batching import Batcher
    from sim_eval.evaluation.engine import RolloutProtocol
    from sim_eval.evaluation.jobs import PolicySource, RolloutJob
    from sim_eval.evaluation.workers import Supervision, WorkerPool
    from sim_eval.policies.policy import AS_SAVED
    from sim_eval.reporting.tables import Table

    source = PolicySource(arguments.policy, "cpu", AS_SAVED, threads=1)
    policy = source.load()
    protocol = RolloutProtocol(render=RenderConfig.for_cameras("fast", policy.spec.cameras))
    keys = [EpisodeKey(arguments.task, "val", index) for index in range(arguments.episodes)]
    several = arguments.workers
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        asking = RolloutJob(policy.spec, protocol, Path(folder))
        own, bounds = replace(asking, source=source), Supervision()
        crews = {
            "1 worker": WorkerPool(own, 1, bounds),
            f"{several} workers, a copy each": WorkerPool(own, several, bounds),
            f"{several} workers, one policy, one by one": WorkerPool(asking, several, bounds, Batcher(policy, 1, 0.01)),
            f"{several} workers, one policy, in batches": WorkerPool(
                asking, several, bounds, Batcher(policy, several, 0.01)
            ),
        }
        for worker_pool in crews.values():
            stack.enter_context(closing(worker_pool))
            seconds(worker_pool, (keys * WARM_UP * several)[: WARM_UP * several])
        taken: dict[str, list[float]] = {name: [] for name in crews}
        for _ in tqdm(range(arguments.rounds), unit="round", file=sys.stderr, dynamic_ncols=True):
            for name, worker_pool in crews.items():
                taken[name].append(seconds(worker_pool, keys))
    (first, alone), *_ = taken.items()
    rows = []
    for name, times in taken.items():
        ratios = [before / now for before, now in zip(alone, times, strict=True)]
        rate = 60 * arguments.episodes / median(times)
        rows.append((name, f"{rate:.1f}", f"{median(ratios):.2f}", f"{min(ratios):.2f}", f"{max(ratios):.2f}"))
    print(f"{arguments.policy}, {arguments.task}: {arguments.rounds} rounds of {arguments.episodes} episodes a side")
    print(Table(("side", "episodes/min", f"of {first}'s", "least", "most"), rows))
    return 0


def seconds(worker_pool: WorkerPool[EpisodeResult], keys: Sequence[EpisodeKey]) -> float:
    """Wall-clock time of the episodes.

    Raises:
        SimEvalError: one broke.
    """
    from sim_eval.evaluation.engine import EpisodeResult

    began = time.perf_counter()
    for outcome in worker_pool.run(keys):
        if not isinstance(outcome, EpisodeResult) or outcome.error:
            raise SimEvalError(f"an episode broke, so there is nothing to time: {outcome}")
    return time.perf_counter() - began


if __name__ == "__main__":
    run(main, WorkersArguments, PROGRAM)
