"""Runs a rollout: loads the policy, opens the run folder, starts the workers, and keeps the results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TypeAlias

from sim_eval.configs import RolloutConfig
from sim_eval.core.types import InstructionCondition, RenderConfig
from sim_eval.core.versions import torch_threads
from sim_eval.envs.tasks import choose_render, expand, get_task
from sim_eval.evaluation.batching import Batcher
from sim_eval.evaluation.engine import EpisodeResult, RolloutProtocol, lost_episode
from sim_eval.evaluation.jobs import OneSimulator, PolicySource, RecorderFactory, RolloutJob
from sim_eval.evaluation.manifest import Manifest
from sim_eval.evaluation.run_folder import EPISODES, RunFolder, fresh_folder, open_run
from sim_eval.evaluation.workers import LocalWorker, Lost, Supervision, WorkerHandle, WorkerPool, worker_count
from sim_eval.policies.policy import Policy, PolicySpec, check_fit, is_foreign

DEFAULT_TASK = "robosuite/LiftWide"
Outcomes: TypeAlias = Iterable[EpisodeResult | Lost]


@contextmanager
def open_rollout(
    config: RolloutConfig, recorders: Callable[[PolicySpec, Path], Sequence[RecorderFactory]]
) -> Iterator[tuple[RunFolder, Outcomes]]:
    """The run folder of a rollout, and the outcomes of its remaining episodes, which run as they are iterated.

    Args:
        config: what ``checked()`` returned.
        recorders: makes further recorders for the policy and the run folder.

    Raises:
        SimEvalError: a task or the policy cannot be found, they do not fit each other, or the folder cannot be used.
    """
    if config.backend == "ray":
        import_module("sim_eval.evaluation.ray_workers")  # refuses a missing Ray before the policy is loaded
    tasks = expand(name.strip() for name in config.task.split(",") if name.strip())
    Manifest.plan(tasks or [DEFAULT_TASK], config.split, config.first, config.episodes)  # before the policy is loaded
    source = PolicySource.of(config)
    policy = source.load()
    tasks = tasks or list(policy.spec.tasks) or [DEFAULT_TASK]
    manifest = Manifest.plan(tasks, config.split, config.first, config.episodes)
    mode = choose_render(config.render or policy.spec.render, tasks)
    render = RenderConfig.for_cameras(mode, policy.spec.cameras, config.hide_goal)
    protocol = RolloutProtocol(
        n_action_steps=config.n_action_steps, instruction_condition=config.instruction_condition, render=render
    )
    for key in manifest.keys:  # refuses a task without counterfactual instructions
        get_task(key.task).instruction(key, protocol.instruction_condition)
    config = with_workers(config, source, policy, len(manifest.keys))
    folder = config.out or fresh_folder(policy.spec.name)
    job = RolloutJob(policy.spec, protocol, folder, tuple(recorders(policy.spec, folder)))
    with ExitStack() as stack:
        simulators = stack.enter_context(closing(OneSimulator(render)))
        if config.workers == 1 and config.backend == "local":
            pool, play = None, job.player(policy, simulators)
        else:
            pool = stack.enter_context(worker_pool(config, job, source, policy))
            if not (folder / EPISODES).exists():  # of a run that goes on, few episodes may be left
                pool.start(len(manifest.keys))
        spec = policy.spec
        del policy  # workers have their own copies, or call the pool's
        # In reverse order, so that the last one, which stays open, is needed first.
        environments = {name: simulators.of(name).spec for name in reversed(tasks)}
        for environment in environments.values():
            check_fit(spec, environment, config.other_robot)
        # Not what was allowed but what happened, so that the option alone ranks no run apart.
        protocol = replace(protocol, other_robot=any(is_foreign(spec, each) for each in environments.values()))
        saved = replace(config, task=",".join(tasks), out=folder)
        run_folder = stack.enter_context(open_run(folder, manifest, spec, protocol, environments, saved))
        if pool is None:
            yield run_folder, map(play, run_folder.remaining)
        else:
            simulators.close()
            yield run_folder, pool.run(run_folder.remaining)


def keep_outcomes(
    run_folder: RunFolder, outcomes: Outcomes, condition: InstructionCondition, warn: Callable[[str], object]
) -> Iterator[EpisodeResult]:
    """Writes the results into the run folder; yields each one that is written.

    Args:
        warn: is called with one line when a worker is lost or an episode breaks off.
    """
    for outcome in outcomes:
        if isinstance(outcome, Lost):
            warn(str(outcome))
            if outcome.key is None:
                continue
            run_folder.discard([outcome.key])
            if not outcome.final:
                continue
            task = get_task(outcome.key.task)
            result = lost_episode(task, outcome.key, condition, outcome.reason, outcome.seconds)
        else:
            result = outcome
            if result.error:
                warn(f"{result.key}: {result.error}")
        run_folder.append(result)
        yield result
    run_folder.finish()


def with_workers(config: RolloutConfig, source: PolicySource, policy: Policy, episodes: int) -> RolloutConfig:
    """The configuration with a number for ``--workers auto``.

    Workers share a policy on a GPU or a server then. It answers one request at a time, so that the results do not
    depend on the number of cores here.
    """
    if config.workers != "auto":
        return config
    batch = config.batch
    if batch is None and config.backend == "local" and source.elsewhere(policy):
        batch = 1
    workers = worker_count("auto", episodes, shared=bool(batch))
    return replace(config, workers=workers, batch=batch if workers > 1 else config.batch)


def batch_size(config: RolloutConfig, policy: Policy) -> int:
    """The largest batch of a shared policy; 0: each worker has its own copy.

    Workers have copies by default on a CPU, where their own cores compute them, and on Ray, which gives its GPUs to the
    workers. The machine's own GPU has memory for one policy, and a batch takes hardly longer than a single request.
    """
    device = getattr(policy, "device", None)
    if config.batch is not None:
        return config.batch
    if device is None or device.type == "cpu" or config.backend == "ray":
        return 0
    return 1 if config.deterministic else int(config.workers)


@contextmanager
def worker_pool(
    config: RolloutConfig, job: RolloutJob, source: PolicySource, policy: Policy
) -> Iterator[WorkerPool[EpisodeResult]]:
    """The workers of a rollout; they have ended when the block ends."""
    workers, size = int(config.workers), batch_size(config, policy)
    batcher = Batcher(policy, size, config.wait / 1e3) if size else None
    job = replace(job, threads=torch_threads()) if size else replace(job, source=source)
    del policy
    supervision = Supervision(config.watchdog, config.retries)
    with ExitStack() as stack:
        start: Callable[[], WorkerHandle] = LocalWorker
        if config.backend == "ray":
            from sim_eval.evaluation.ray_workers import Cluster

            start = stack.enter_context(closing(Cluster(config.ray_address, workers)))
        yield stack.enter_context(closing(WorkerPool(job, workers, supervision, batcher, start)))
