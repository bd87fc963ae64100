"""Collect demonstrations: ``python -m sim_eval.collect --task robosuite/LiftWide --episodes 150 --out data/lift_wide``.

One HDF5 file an episode, in robomimic's layout with depth and cameras. The same command again goes on where it
stopped, with any number of ``--workers``: the files are the same.
"""

from __future__ import annotations

import sys
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from sim_eval.console import at_least, make_folder, named_tasks, run
from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import RenderConfig

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from sim_eval.core.types import EpisodeKey
    from sim_eval.datasets.attempts import AttemptsLog
    from sim_eval.datasets.episode_file import EpisodeHeader
    from sim_eval.evaluation.engine import EpisodeResult
    from sim_eval.evaluation.jobs import CollectJob
    from sim_eval.evaluation.scheduler import EpisodeScheduler
    from sim_eval.evaluation.workers import Lost
    from sim_eval.policies.policy import Policy


@dataclass(frozen=True)
class CollectArguments:
    """Collect demonstrations with a policy.

    Attributes:
        task: what to demonstrate: tasks and suites of tasks, separated by commas, for example robosuite/LiftWide.
        out: folder for the episode files of all tasks; one that already holds some of them is continued.
        policy: who demonstrates: scripted, a shipped checkpoint's name, or a checkpoint folder.
        episodes: how many episodes of each task the folder shall hold in the end.
        split: train or val; test episodes are never collected.
        keep_failures: keep failed episodes too.
        disturb: push the demonstrator off its path but record clean labels (DART), so that a learner sees recoveries.
        rehearse: run each episode without recording first, and again only if it succeeds; faster where simulation is
            cheap beside rendering and the demonstrator fails now and then.
        settle: control steps that are recorded after the first success; where success is a distance to come under, with
            few of them a policy may learn to stop just short of it.
        render: fast, or faithful for the simulator's own look; without it faithful for LIBERO and fast for all else.
        hide_goal: leave out the marks by which some simulators show where the goal is.
        size: height and width of every camera in pixels.
        cameras: which of the environment's cameras are recorded, separated by commas; default: all.
        device: for a learned policy: auto, cpu, cuda.
        workers: processes that run episodes; 1 is this process, and with 2 or more it survives a crash of a simulator.
    """

    task: Annotated[str, tyro.conf.arg(metavar="T[,T...]")]
    out: Path
    policy: str = "scripted"
    episodes: int = 100
    split: Literal["train", "val"] = "train"
    keep_failures: bool = False
    disturb: bool = True
    dry_run_first: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    post_success_steps: int = 10
    render: Literal["fast", "faithful"] | None = None
    hide_goal: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    size: int = 128
    cameras: Annotated[str, tyro.conf.arg(metavar="C[,C...]")] = ""
    device: str = "auto"
    workers: int = 1


def main(arguments: CollectArguments) -> int:
    """Runs the command; returns the exit code."""
    at_least("episodes", arguments.episodes, 1)
    at_least("size", arguments.size, 16)
    at_least("workers", arguments.workers, 1)
    at_least("post-success-steps", arguments.post_success_steps, 0)
    from sim_eval.datasets.attempts import AttemptsLog, CollectionConfig
    from sim_eval.envs.tasks import choose_render
    from sim_eval.evaluation.engine import RolloutProtocol
    from sim_eval.evaluation.jobs import CollectJob, PolicySource
    from sim_eval.evaluation.scheduler import EpisodeScheduler
    from sim_eval.policies.policy import AS_SAVED

    tasks = named_tasks(arguments.task)
    if not tasks:
        raise SimEvalError("--task names nothing: name a task or a suite")
    source = PolicySource(arguments.policy, arguments.device, AS_SAVED, threads=1)
    policy = source.load()
    make_folder(arguments.out)
    render = choose_render(arguments.render or policy.spec.render, tasks)
    render_config = RenderConfig(render, arguments.size, arguments.size, arguments.hide_goal)
    there = found(arguments, tasks, render_config)
    collection_config = CollectionConfig(
        " ".join(filter(None, (policy.spec.name, policy.spec.digest))), arguments.disturb, arguments.post_success_steps
    )
    attempts = {task: AttemptsLog(arguments.out, task, arguments.split, collection_config) for task in tasks}
    schedulers = {
        task: EpisodeScheduler(
            task,
            arguments.split,
            arguments.episodes,
            [key.index for key in keys],
            arguments.keep_failures,
            () if arguments.keep_failures else attempts[task].failed,
        )
        for task, keys in there.items()
    }
    job = CollectJob(
        policy.spec,
        RolloutProtocol(post_success_steps=arguments.post_success_steps, render=render_config),
        arguments.out,
        keep_failures=arguments.keep_failures,
        disturb=arguments.disturb,
        dry_run_first=arguments.dry_run_first,
        cameras=tuple(name.strip() for name in arguments.cameras.split(",") if name.strip()),
        there={task: headers[min(headers)].spec.cameras for task, headers in there.items() if headers},
        source=source,
    )
    began = time.monotonic()
    try:
        with outcomes(job, policy, list(schedulers.values()), arguments.workers) as ended:
            fill(schedulers, attempts, ended)
    except KeyboardInterrupt:
        kept = sum(
            len(scheduler.kept) + len(written(arguments.out, scheduler, scheduler.running))
            for scheduler in schedulers.values()
        )
        raise KeyboardInterrupt(
            f"interrupted: {kept} of {arguments.episodes * len(tasks)} episodes kept in {arguments.out}; "
            "the same command continues"
        ) from None
    report(list(schedulers.values()), sum(map(len, there.values())), time.monotonic() - began, arguments)
    return 0


def found(
    arguments: CollectArguments, tasks: Sequence[str], render_config: RenderConfig
) -> dict[str, dict[EpisodeKey, EpisodeHeader]]:
    """What the folder holds of each task.

    Raises:
        SimEvalError: it cannot be used together, or was rendered otherwise.
    """
    from sim_eval.datasets.recorder import existing

    there: dict[str, dict[EpisodeKey, EpisodeHeader]] = {task: {} for task in tasks}
    for key, header in existing(arguments.out, tasks, arguments.split).items():
        if header.render_config != render_config:
            raise SimEvalError(
                f"{arguments.out} holds episodes of {key.task} rendered {header.render_config}, this command renders "
                f"{render_config}: "
                "choose another --out or the same --render, --size and --hide-goal"
            )
        there[key.task][key] = header
    return there


@contextmanager
def outcomes(
    job: CollectJob, policy: Policy, schedulers: Sequence[EpisodeScheduler], workers: int
) -> Iterator[Iterable[EpisodeResult | Lost]]:
    """What comes of the episodes that the quotas hand out, as they end; no worker is left afterwards."""
    from sim_eval.evaluation.jobs import OneSimulator
    from sim_eval.evaluation.workers import Supervision, WorkerPool

    def next_key() -> EpisodeKey | None:
        return next((key for scheduler in schedulers if (key := scheduler.next())), None)

    if workers == 1:
        with closing(OneSimulator(job.protocol.render)) as simulators:
            yield map(job.player(policy, simulators), iter(next_key, None))
    else:
        with closing(WorkerPool(job, workers, Supervision())) as worker_pool:
            yield worker_pool.run_from(next_key)


def fill(
    schedulers: Mapping[str, EpisodeScheduler],
    attempts: Mapping[str, AttemptsLog],
    ended: Iterable[EpisodeResult | Lost],
) -> None:
    """Tells the quotas what came of their episodes, and notes the failures, with a progress bar on stderr."""
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
                attempts[scheduler.task].fail(outcome.key.index)
            bar.set_postfix_str("success {}/{}".format(*attempted(schedulers.values())), refresh=False)
            bar.update(kept() - bar.n)


def attempted(schedulers: Iterable[EpisodeScheduler]) -> tuple[int, int]:
    """Successes and tries."""
    ended = [result.success for scheduler in schedulers for result in scheduler.ended]
    return sum(ended), len(ended)


def written(folder: Path, scheduler: EpisodeScheduler, indices: Iterable[int]) -> list[Path]:
    """Which of these episodes have a file."""
    from sim_eval.datasets.episode_file import file_name

    return [path for index in sorted(indices) if (path := folder / file_name(scheduler.key(index))).exists()]


def report(schedulers: Sequence[EpisodeScheduler], there: int, seconds: float, arguments: CollectArguments) -> None:
    """Prints what the folder holds now.

    Args:
        there: how many episodes it held before.

    Raises:
        SimEvalError: a task could not be demonstrated.
    """
    from sim_eval.envs.tasks import in_short
    from sim_eval.reporting.tables import terminal

    total = sum(len(scheduler.kept) for scheduler in schedulers)
    fresh = [(scheduler, scheduler.kept & {result.key.index for result in scheduler.ended}) for scheduler in schedulers]
    files = [path for scheduler, indices in fresh for path in written(arguments.out, scheduler, indices)]
    steps = sum(result.steps for scheduler in schedulers for result in scheduler.ended)
    if len(schedulers) > 1:
        rows = [
            (scheduler.task, str(len(scheduler.kept)), "{} / {}".format(*attempted([scheduler])), str(scheduler.errors))
            for scheduler in schedulers
        ]
        print(terminal(("task", "episodes", "successes / tries", "errors"), rows))
    successes, attempts = attempted(schedulers)
    print(
        f"{arguments.out}: {total} episodes of {in_short([each.task for each in schedulers])}, {arguments.split} "
        f"({there} from before)\n"
        f"this time: {successes} successes in {attempts} tries, {len(files)} written "
        f"({sum(path.stat().st_size for path in files) / 1e6:.0f} MB), {steps} control steps, {seconds:.0f} s"
    )
    if hopeless := [scheduler for scheduler in schedulers if scheduler.hopeless]:
        told = "; ".join(
            f"{each.successes} of {len(each.ended)} episodes of {each.task} ({each.errors} ended with an error)"
            for each in hopeless
        )
        raise SimEvalError(
            f"policy '{arguments.policy}' succeeded in {told}: it cannot demonstrate that; try --policy scripted"
        )


if __name__ == "__main__":
    run(main, CollectArguments, "python -m sim_eval.collect")
