"""Score a policy: ``python -m sim_eval.rollout --policy deep_llama``.

Writes a run folder with the result, the trajectory and the video of every episode, and prints the success rate with its
interval. The same command with ``--out`` of an interrupted run continues it, with any number of ``--workers``.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from sim_eval.console import at_least, named_tasks, run
from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import RenderConfig
from sim_eval.policies.policy import Weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from sim_eval.core.types import InstructionCondition
    from sim_eval.evaluation.engine import EpisodeResult
    from sim_eval.evaluation.jobs import PolicySource, RolloutJob
    from sim_eval.evaluation.run_folder import RunFolder
    from sim_eval.evaluation.workers import Lost, WorkerHandle, WorkerPool
    from sim_eval.policies.policy import Policy

PROGRAM = "python -m sim_eval.rollout"
DEFAULT_TASK = "robosuite/LiftWide"


@dataclass(frozen=True)
class RolloutArguments:
    """Score a policy in simulation: success rate, interval, videos.

    Attributes:
        policy: deep_llama or another shipped checkpoint, a checkpoint folder, scripted, zero or random, another
            package's policy (NAME or NAME:ARGUMENT), or a server of openpi's protocol, as python -m sim_eval.serve.
        task: tasks and suites of tasks, separated by commas; without it those the checkpoint was trained on, or
            robosuite/LiftWide.
        episodes: episodes of each task.
        split: train, val or test; final numbers come from test, which is never trained on.
        first: index of the first episode.
        video: which episodes get a video; rendering every step takes most of the time, so say none for a long run.
        out: run folder; without it a new one under runs/. A folder of the same run that was interrupted is continued.
        device: auto, cpu, cuda or another of torch's devices.
        json: print one JSON object instead of the table.
        render: fast (no shadows, lighter meshes) or faithful (the simulator's own look); without it what the checkpoint
            was trained on, or faithful for LIBERO and fast for all else.
        hide_goal: leave out the marks by which some simulators show where the goal is.
        replan: control steps executed before the policy is asked again.
        euler_steps: of the sampler; without it what the checkpoint was saved with.
        weights: of the network; float32, bfloat16, int8 or nf4 (4 bits); the last two need sim_eval[quantized].
        compile: run the network's Euler step through torch.compile.
        telling: right, or wrong to tell the policy another goal's instruction than the one that is scored.
        threads: torch's CPU threads a process; with 1 the result does not depend on the machine's number of cores.
        workers: processes that run episodes; 1 is this process, without watchdog and retries, and with 2 or more it
            survives a simulator that crashes or hangs.
        batch: 0 gives each worker its own copy of the policy; otherwise one policy answers up to so many workers at
            once. Without it 0 on a CPU, and on a GPU the number of workers.
        wait: milliseconds that a question to the one policy waits for others.
        deterministic: no batch of more than 1, so that results are bit for bit those of one worker.
        watchdog: seconds without a control step after which a worker counts as hung.
        retries: of an episode whose worker died or hung, before it counts as failed.
        backend: where workers run: processes of this machine, or Ray actors, which needs sim_eval[ray].
        ray_address: host:port of a Ray cluster whose nodes share the run folder; without it one of this machine alone.
        keys: TOML or JSON file that says how a server is asked that is not sim_eval's own, or
            openpi_libero, which ships, for openpi's LIBERO checkpoints.
    """

    policy: Annotated[str, tyro.conf.arg(metavar="NAME|DIR|ws://HOST:PORT")]
    task: Annotated[str, tyro.conf.arg(metavar="T[,T...]")] = ""
    episodes: int = 20
    split: Annotated[str, tyro.conf.arg(metavar="{train,val,test}")] = "test"
    first: int = 0
    video: Literal["none", "failures", "all"] = "all"
    out: Path | None = None
    device: str = "auto"
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    render: Literal["fast", "faithful"] | None = None
    n_action_steps: int = 4
    euler_steps: int | None = None
    weights: Weights = "float32"
    compile: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    instruction_condition: Literal["correct", "counterfactual"] = "correct"
    hide_goal: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    threads: int = 1
    workers: int = 1
    batch: int | None = None
    wait: float = 10.0
    deterministic: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    watchdog: float = 300.0
    retries: int = 2
    backend: Literal["local", "ray"] = "local"
    ray_address: str | None = None
    keys: Path | None = None


def main(arguments: RolloutArguments) -> int:
    """Runs the command; returns the exit code."""
    at_least("episodes", arguments.episodes, 1)
    at_least("first", arguments.first, 0)
    at_least("n-action-steps", arguments.n_action_steps, 1)
    at_least("threads", arguments.threads, 1)
    at_least("workers", arguments.workers, 1)
    at_least("batch", arguments.batch or 0, 0)
    at_least("wait", arguments.wait, 0)
    at_least("watchdog", arguments.watchdog, 1)
    at_least("retries", arguments.retries, 0)
    at_least("euler-steps", 1 if arguments.euler_steps is None else arguments.euler_steps, 1)
    if arguments.deterministic and (arguments.batch or 0) > 1:
        raise SimEvalError(f"--deterministic answers one question at a time: leave --batch {arguments.batch} out")
    if arguments.ray_address and arguments.backend != "ray":
        raise SimEvalError("--ray-address is for --backend ray: add it")
    if arguments.backend == "ray":
        import_module("sim_eval.evaluation.ray_workers")  # without Ray it is refused here, before the long load
    from sim_eval.envs.tasks import choose_render, get_task
    from sim_eval.evaluation.engine import RolloutProtocol
    from sim_eval.evaluation.jobs import OneSimulator, RolloutJob
    from sim_eval.evaluation.manifest import Manifest
    from sim_eval.evaluation.run_folder import fresh_folder, open_run
    from sim_eval.policies.policy import check_fit

    names = named_tasks(arguments.task)
    Manifest.plan(names or [DEFAULT_TASK], arguments.split, arguments.first, arguments.episodes)  # before the long load
    source = policy_source(arguments)
    policy = source.load()
    names = names or list(policy.spec.tasks) or [DEFAULT_TASK]
    manifest = Manifest.plan(names, arguments.split, arguments.first, arguments.episodes)
    size = next(iter(policy.spec.cameras.values()), (RenderConfig.height, RenderConfig.width))
    render = choose_render(arguments.render or policy.spec.render, names)
    simulator = RenderConfig(render, *size, arguments.hide_goal)
    protocol = RolloutProtocol(
        n_action_steps=arguments.n_action_steps, instruction_condition=arguments.instruction_condition, render=simulator
    )
    for key in manifest.keys:
        get_task(key.task).instruction(
            key, protocol.instruction_condition
        )  # a task without a wrong one is refused before the first
    folder = arguments.out or fresh_folder(policy.spec.name)
    again = replace(arguments, task=",".join(names), out=folder)
    with closing(OneSimulator(protocol.render)) as simulators:
        # Backwards, so that the one left open is the one that is needed first.
        environments = {name: simulators.of(name).spec for name in reversed(names)}
        for spec in environments.values():
            check_fit(policy.spec, spec)
        with open_run(folder, manifest, policy.spec, protocol, environments, command(again)) as run_folder:
            scoring = RolloutJob(policy.spec, protocol, folder, arguments.video)
            if arguments.workers == 1 and arguments.backend == "local":
                play(
                    run_folder,
                    map(scoring.player(policy, simulators), run_folder.remaining),
                    protocol.instruction_condition,
                )
            else:
                simulators.close()
                with worker_pool(arguments, scoring, source, policy) as workers:
                    del policy  # the workers have copies of their own, or ask the one that the crew keeps
                    play(run_folder, workers.run(run_folder.remaining), protocol.instruction_condition)
            return report(run_folder, arguments)


def policy_source(arguments: RolloutArguments) -> PolicySource:
    """Where the arguments say that the policy is."""
    from sim_eval.evaluation.jobs import PolicySource
    from sim_eval.policies.policy import InferenceConfig

    inference = InferenceConfig(arguments.euler_steps, arguments.weights, arguments.compile)
    return PolicySource(arguments.policy, arguments.device, inference, arguments.threads, arguments.keys)


def command(arguments: RolloutArguments) -> list[str]:
    """The command line that runs these arguments."""
    words = PROGRAM.split()
    for name, value in asdict(arguments).items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(option)
        elif value is not None and value is not False:
            words += [option, str(value)]
    return words


def batch_size(arguments: RolloutArguments, policy: Policy) -> int:
    """How many workers one call of the policy answers at most; 0: each worker has its own copy.

    A copy is the default where the workers' own cores compute it, and on Ray, which gives its GPUs to the workers. A
    machine's own GPU has room for one, and a batch costs it hardly more than a single question.
    """
    device = getattr(policy, "device", None)
    if arguments.batch is not None:
        return arguments.batch
    if device is None or device.type == "cpu" or arguments.backend == "ray":
        return 0
    return 1 if arguments.deterministic else arguments.workers


@contextmanager
def worker_pool(
    arguments: RolloutArguments, scoring: RolloutJob, source: PolicySource, policy: Policy
) -> Iterator[WorkerPool[EpisodeResult]]:
    """The workers that the arguments ask for; none is left afterwards."""
    from sim_eval.core.versions import torch_threads
    from sim_eval.evaluation.batching import Batcher
    from sim_eval.evaluation.workers import LocalProcess, Supervision, WorkerPool

    size = batch_size(arguments, policy)
    batcher = Batcher(policy, size, arguments.wait / 1e3) if size else None
    job = replace(scoring, threads=torch_threads()) if size else replace(scoring, source=source)
    del policy
    supervision = Supervision(arguments.watchdog, arguments.retries)
    with ExitStack() as stack:
        start: Callable[[], WorkerHandle] = LocalProcess
        if arguments.backend == "ray":
            from sim_eval.evaluation.ray_workers import Cluster

            start = stack.enter_context(closing(Cluster(arguments.ray_address, arguments.workers)))
        yield stack.enter_context(closing(WorkerPool(job, arguments.workers, supervision, batcher, start)))


def play(
    run_folder: RunFolder, outcomes: Iterable[EpisodeResult | Lost], instruction_condition: InstructionCondition
) -> None:
    """Keeps what comes of the remaining episodes, with a progress bar on stderr."""
    from tqdm import tqdm

    from sim_eval.envs.tasks import get_task
    from sim_eval.evaluation.engine import EpisodeResult, lost_episode
    from sim_eval.evaluation.run_folder import EPISODES

    planned, already = len(run_folder.manifest.keys), len(run_folder.results)
    if run_folder.torn:
        print(f"{run_folder.folder / EPISODES}: removed a torn last line; its episode runs again", file=sys.stderr)
    try:
        with tqdm(
            total=planned,
            initial=already,
            bar_format="{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
            smoothing=0,  # episodes end in bursts: the time left is better told from all of them
            file=sys.stderr,
            dynamic_ncols=True,
        ) as bar:
            for outcome in outcomes:
                if not isinstance(outcome, EpisodeResult):
                    bar.write(str(outcome), file=sys.stderr)
                    if outcome.key is None:
                        continue
                    run_folder.discard([outcome.key])
                    if not outcome.final:
                        continue
                    task = get_task(outcome.key.task)
                    outcome = lost_episode(task, outcome.key, instruction_condition, outcome.reason, outcome.seconds)
                elif outcome.error:
                    bar.write(f"{outcome.key}: {outcome.error}", file=sys.stderr)
                run_folder.append(outcome)
                played = len(run_folder.results) - already
                shown = standing(run_folder.results, played, bar.format_dict["elapsed"])
                bar.set_postfix_str(shown, refresh=False)
                bar.update()
        run_folder.finish()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted: {run_folder.kept()} of {planned} episodes kept in {run_folder.folder}; "
            f"the same command with --out {run_folder.folder} continues"
        ) from None


def standing(results: Sequence[EpisodeResult], played: int, seconds: float) -> str:
    """Where a run stands: successes so far, their rate with its interval, and how fast it goes."""
    from sim_eval.reporting.tables import interval, rate

    count, successes = len(results), sum(result.success for result in results)
    shown = f"success {successes}/{count}: {rate(successes, count)} {interval(successes, count)}"
    return f"{shown}, {60 * played / max(seconds, 1e-9):.1f} episodes/min"


def report(run_folder: RunFolder, arguments: RolloutArguments) -> int:
    """Prints the score of a finished run; returns the exit code.

    Raises:
        SimEvalError: every episode broke off, so there is no score.
    """
    from sim_eval.reporting.run_report import print_run

    print_run(run_folder.folder, run_folder.results, arguments.json)
    return 0


if __name__ == "__main__":
    run(main, RolloutArguments, PROGRAM)
