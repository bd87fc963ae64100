"""Collect demonstrations: ``python -m sim_eval.collect --task robosuite/LiftWide --episodes 150 --out data/lift_wide``.

Each episode is one HDF5 file in robomimic's layout, with depth and cameras. The same command again continues where it
stopped. The files are the same for any number of ``--workers``.
"""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from sim_eval.configs import CollectConfig
from sim_eval.console import make_folder, named_tasks, run
from sim_eval.core.decoding import decode, encode
from sim_eval.core.errors import SimEvalError
from sim_eval.core.programs import command
from sim_eval.core.types import RenderConfig

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from sim_eval.core.types import EpisodeKey
    from sim_eval.datasets.attempts import AttemptsLog
    from sim_eval.datasets.episode_file import EpisodeHeader
    from sim_eval.evaluation.engine import EpisodeResult
    from sim_eval.evaluation.jobs import CollectJob
    from sim_eval.evaluation.scheduler import EpisodeScheduler
    from sim_eval.evaluation.workers import Lost
    from sim_eval.policies.policy import Policy


def main(config: CollectConfig) -> int:
    """Runs the command; returns the exit code."""
    config = decode(CollectConfig, encode(config))
    from sim_eval.datasets.attempts import AttemptsLog
    from sim_eval.datasets.recorder import existing
    from sim_eval.envs.tasks import choose_render
    from sim_eval.evaluation.engine import RolloutProtocol
    from sim_eval.evaluation.jobs import CollectJob, PolicySource
    from sim_eval.evaluation.scheduler import EpisodeScheduler
    from sim_eval.evaluation.workers import worker_count
    from sim_eval.policies.policy import AS_SAVED

    tasks = named_tasks(config.task)
    if not tasks:
        raise SimEvalError("--task names nothing: name a task or a suite")
    source = PolicySource(config.policy, config.device, AS_SAVED, threads=1)
    policy = source.load()
    if config.workers == "auto":  # a policy on a GPU is called by this process alone
        workers = 1 if source.elsewhere(policy) else worker_count("auto", config.episodes * len(tasks))
        config = replace(config, workers=workers)
    make_folder(config.out)
    mode = choose_render(config.render or policy.spec.render, tasks)
    render = RenderConfig(mode, config.size, config.size, config.hide_goal)
    outcome_settings = {
        "policy": " ".join(filter(None, (policy.spec.name, policy.spec.digest))),
        "disturb": config.disturb,
        "post_success_steps": config.post_success_steps,
        "render": str(render),
    }
    with ExitStack() as locks:
        # Locked before the folder is read, so that no other collector changes it any more.
        logs = {task: locks.enter_context(closing(AttemptsLog(config.out, task, config.split))) for task in tasks}
        headers = existing(config.out, tasks, config.split)
        schedulers = {}
        for task, log in logs.items():
            check_existing(config, render, headers[task].values(), not log.is_new)
            log.begin(config, outcome_settings)
            kept, failed = [key.index for key in headers[task]], () if config.keep_failures else log.failed
            schedulers[task] = EpisodeScheduler(task, config.split, config.episodes, kept, config.keep_failures, failed)
        job = CollectJob(
            policy.spec,
            RolloutProtocol(post_success_steps=config.post_success_steps, render=render),
            config.out,
            config=config,
            recorded={task: found[min(found)].spec.cameras for task, found in headers.items() if found},
            source=source,
        )
        began = time.monotonic()
        try:
            with outcomes(job, policy, list(schedulers.values()), int(config.workers)) as ended:
                fill(schedulers, logs, ended)
        except KeyboardInterrupt:
            done = sum(len(each.kept) + len(written(config.out, each, each.running)) for each in schedulers.values())
            raise KeyboardInterrupt(
                f"interrupted: {done} of {config.episodes * len(tasks)} episodes kept in {config.out}; "
                "the same command continues"
            ) from None
    report(list(schedulers.values()), sum(map(len, headers.values())), time.monotonic() - began, config)
    return 0


def check_existing(
    config: CollectConfig, render: RenderConfig, headers: Iterable[EpisodeHeader], has_log: bool
) -> None:
    """Refuses a folder whose episodes of a task were collected differently.

    Args:
        has_log: an attempts log says how many steps follow the first success; otherwise the episodes say it.

    Raises:
        SimEvalError: names what differs.
    """
    from sim_eval.envs.tasks import get_task

    for header in headers:
        if header.render_config != render:
            raise SimEvalError(
                f"{config.out} holds episodes of {header.key.task} rendered {header.render_config}, this command "
                f"renders {render}: choose another --out or the same --render, --size and --hide-goal"
            )
        if has_log or header.first_success is None:
            continue
        steps, last = header.length - header.first_success, get_task(header.key.task).max_episode_steps
        if steps != min(config.post_success_steps, last - header.first_success):
            raise SimEvalError(
                f"{config.out} holds {header.key} with {steps} steps after its success: choose another --out or "
                f"--post-success-steps {steps}"
            )


@contextmanager
def outcomes(
    job: CollectJob, policy: Policy, schedulers: Sequence[EpisodeScheduler], workers: int
) -> Iterator[Iterable[EpisodeResult | Lost]]:
    """The results of the scheduled episodes, in the order in which they end; no worker is left afterwards."""
    from sim_eval.evaluation.jobs import OneSimulator
    from sim_eval.evaluation.workers import Supervision, WorkerPool

    def next_key(task: str = "") -> EpisodeKey | None:
        preferred = sorted(schedulers, key=lambda scheduler: scheduler.task != task)
        return next((key for scheduler in preferred if (key := scheduler.next())), None)

    if workers == 1:
        with closing(OneSimulator(job.protocol.render)) as simulators:
            yield map(job.player(policy, simulators), iter(next_key, None))
    else:
        with closing(WorkerPool(job, workers, Supervision())) as worker_pool:
            yield worker_pool.run_from(next_key)


def fill(
    schedulers: Mapping[str, EpisodeScheduler],
    logs: Mapping[str, AttemptsLog],
    ended: Iterable[EpisodeResult | Lost],
) -> None:
    """Hands results to the schedulers and logs failures, with a progress bar on stderr."""
    from tqdm import tqdm

    from sim_eval.envs.tasks import get_task, in_short
    from sim_eval.evaluation.engine import EpisodeResult, lost_episode

    def kept() -> int:
        return sum(min(len(scheduler.kept), scheduler.wanted) for scheduler in schedulers.values())

    wanted = sum(scheduler.wanted for scheduler in schedulers.values())
    with tqdm(
        total=wanted, initial=kept(), unit="episode", desc=in_short(schedulers), smoothing=0, dynamic_ncols=True
    ) as bar:
        for outcome in ended:
            if not isinstance(outcome, EpisodeResult):
                bar.write(str(outcome), file=sys.stderr)
                if not (outcome.key and outcome.final):
                    continue
                task = get_task(outcome.key.task)
                outcome = lost_episode(task, outcome.key, "correct", outcome.reason, outcome.seconds)
            elif outcome.error:
                bar.write(f"{outcome.key}: {outcome.error}", file=sys.stderr)
            scheduler = schedulers[outcome.key.task]
            scheduler.end(outcome)
            if outcome.error is None and outcome.key.index not in scheduler.kept:
                logs[scheduler.task].fail(outcome.key.index)
            bar.set_postfix_str("success {}/{}".format(*attempted(schedulers.values())), refresh=False)
            bar.update(kept() - bar.n)


class Tried(NamedTuple):
    successes: int
    attempts: int


def attempted(schedulers: Iterable[EpisodeScheduler]) -> Tried:
    """What was tried by this command."""
    ended = [result.success for scheduler in schedulers for result in scheduler.ended]
    return Tried(sum(ended), len(ended))


def written(folder: Path, scheduler: EpisodeScheduler, indices: Iterable[int]) -> list[Path]:
    """The existing files of these episodes."""
    from sim_eval.datasets.episode_file import file_name

    return [path for index in sorted(indices) if (path := folder / file_name(scheduler.key(index))).exists()]


def report(schedulers: Sequence[EpisodeScheduler], before: int, seconds: float, config: CollectConfig) -> None:
    """Prints a summary of the folder and of this command.

    Args:
        before: number of episodes that the folder held before.
        seconds: duration of this command.

    Raises:
        SimEvalError: a task could not be demonstrated.
    """
    from sim_eval.envs.tasks import in_short
    from sim_eval.reporting.records import print_records
    from sim_eval.reporting.tables import Table

    total = sum(len(scheduler.kept) for scheduler in schedulers)
    fresh = [(scheduler, scheduler.kept & {result.key.index for result in scheduler.ended}) for scheduler in schedulers]
    files = [path for scheduler, indices in fresh for path in written(config.out, scheduler, indices)]
    steps = sum(result.steps for scheduler in schedulers for result in scheduler.ended)
    size = sum(path.stat().st_size for path in files)
    tasks = [
        {"task": each.task, "episodes": len(each.kept), **attempted([each])._asdict(), "errors": each.errors}
        for each in schedulers
    ]
    values: dict[str, object] = {
        "out": config.out,
        "split": config.split,
        "episodes": total,
        "before": before,
        "written": len(files),
    }
    values |= {"bytes": size, "steps": steps, "seconds": seconds, "tasks": tasks}
    if not print_records(config, lambda: values, lambda: tasks):
        if len(schedulers) > 1:
            rows = [[str(cell) for cell in task.values()] for task in tasks]
            print(f"{Table(list(tasks[0]), rows)}\n")
        tried = attempted(schedulers)
        print(
            f"{config.out}: {total} episodes of {in_short([each.task for each in schedulers])}, {config.split} "
            f"({before} from before)\n"
            f"this time: {tried.successes} successes in {tried.attempts} attempts, {len(files)} written "
            f"({size / 1e6:.0f} MB), {steps} control steps, {seconds:.0f} s"
        )
    if failed := [scheduler for scheduler in schedulers if scheduler.given_up]:
        counts = "; ".join(
            f"{each.successes} of {len(each.ended)} episodes of {each.task} ({each.errors} ended with an error)"
            for each in failed
        )
        raise SimEvalError(
            f"policy '{config.policy}' succeeded in {counts}: it cannot demonstrate that; try --policy scripted"
        )


if __name__ == "__main__":
    run(main, CollectConfig, command("collect"))
