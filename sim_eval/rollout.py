"""Score a policy: ``python -m sim_eval.rollout --policy deep_llama``.

Writes a run folder with the result, the trajectory and the video of every episode, and prints the success rate with its
interval. The same command with ``--out`` of an interrupted run continues it.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from sim_eval.console import at_least, run
from sim_eval.envs.contract import SimEvalError, SimulatorOptions
from sim_eval.policies.policy import Weights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sim_eval.envs.contract import Simulator
    from sim_eval.evaluation.engine import RolloutProtocol
    from sim_eval.evaluation.run_folder import RunFolder
    from sim_eval.policies.policy import Policy

PROGRAM = "python -m sim_eval.rollout"
DEFAULT_TASK = "robosuite/LiftWide"


@dataclass(frozen=True)
class RolloutArguments:
    """Score a policy in simulation: success rate, interval, videos.

    Attributes:
        policy: deep_llama or another shipped checkpoint, a checkpoint folder, scripted, zero or random, another
            package's policy (NAME or NAME:ARGUMENT), or a server of openpi's protocol, as python -m sim_eval.serve.
        task: tasks, separated by commas; without it those the checkpoint was trained on, or robosuite/LiftWide.
        episodes: episodes of each task.
        split: train, val or test; final numbers come from test, which is never trained on.
        first: index of the first episode.
        video: which episodes get a video; rendering every step takes most of the time, so say none for a long run.
        out: run folder; without it a new one under runs/. A folder of the same run that was interrupted is continued.
        device: auto, cpu, cuda or another of torch's devices.
        json: print one JSON object instead of the table.
        render: fast (no shadows, lighter meshes) or faithful (the simulator's own look).
        replan: control steps executed before the policy is asked again.
        euler_steps: of the sampler; without it what the checkpoint was saved with.
        weights: of the network; float32, bfloat16, int8 or nf4 (4 bits); the last two need sim_eval[quantized].
        compile: run the network's Euler step through torch.compile.
        telling: right, or wrong to tell the policy another goal's instruction than the one that is scored.
        threads: torch's CPU threads; with 1 the result does not depend on the machine's number of cores.
        keys: TOML or JSON file that says how a server is asked that is not sim_eval's own.
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
    render: Literal["fast", "faithful"] = "fast"
    replan: int = 4
    euler_steps: int | None = None
    weights: Weights = "float32"
    compile: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    telling: Literal["right", "wrong"] = "right"
    threads: int = 1
    keys: Path | None = None


def main(arguments: RolloutArguments) -> int:
    """Runs the command; returns the exit code."""
    at_least("episodes", arguments.episodes, 1)
    at_least("first", arguments.first, 0)
    at_least("replan", arguments.replan, 1)
    at_least("threads", arguments.threads, 1)
    at_least("euler-steps", 1 if arguments.euler_steps is None else arguments.euler_steps, 1)
    from sim_eval.envs.tasks import get_task
    from sim_eval.evaluation.engine import RolloutProtocol
    from sim_eval.evaluation.manifest import Manifest
    from sim_eval.evaluation.run_folder import fresh_folder, open_run
    from sim_eval.policies.policy import Inference, check_fit, load_policy

    named = [get_task(name.strip()) for name in arguments.task.split(",")] if arguments.task else []
    names = [task.name for task in named]
    Manifest.plan(names or [DEFAULT_TASK], arguments.split, arguments.first, arguments.episodes)  # before the long load
    inference = Inference(arguments.euler_steps, arguments.weights, arguments.compile)
    policy = load_policy(arguments.policy, arguments.device, inference, arguments.keys)
    if torch := sys.modules.get("torch"):  # a policy without a network does not load it
        torch.set_num_threads(arguments.threads)
    names = names or list(policy.spec.tasks) or [DEFAULT_TASK]
    manifest = Manifest.plan(names, arguments.split, arguments.first, arguments.episodes)
    size = next(iter(policy.spec.cameras.values()), (SimulatorOptions.height, SimulatorOptions.width))
    simulator = SimulatorOptions(arguments.render, *size)
    protocol = RolloutProtocol(replan=arguments.replan, telling=arguments.telling, simulator=simulator)
    for key in manifest.keys:
        get_task(key.task).instruction(key, protocol.telling)  # a task without a wrong one is refused before the first
    folder = arguments.out or fresh_folder(policy.spec.name)
    again = replace(arguments, task=",".join(names), out=folder)
    with ExitStack() as stack:
        simulators = {name: stack.enter_context(closing(get_task(name).make(protocol.simulator))) for name in names}
        environments = {name: simulator.spec for name, simulator in simulators.items()}
        for spec in environments.values():
            check_fit(policy.spec, spec)
        opened = open_run(folder, manifest, policy.spec, protocol, environments, command(again))
        with opened as run_folder:
            play(run_folder, policy, simulators, protocol, arguments)
            return report(run_folder, arguments)


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


def play(
    run_folder: RunFolder,
    policy: Policy,
    simulators: Mapping[str, Simulator],
    protocol: RolloutProtocol,
    arguments: RolloutArguments,
) -> None:
    """Runs what remains of the run, with a progress bar on stderr."""
    from tqdm import tqdm

    from sim_eval.evaluation.engine import Recorders, run_episode
    from sim_eval.evaluation.run_folder import VIDEOS
    from sim_eval.evaluation.trajectory import TrajectoryRecorder
    from sim_eval.reporting.video import VideoRecorder

    trajectories = TrajectoryRecorder(run_folder.folder)
    videos = VideoRecorder(run_folder.folder / VIDEOS, policy.spec.name, arguments.video, protocol.telling)
    recorder = trajectories if arguments.video == "none" else Recorders(trajectories, videos)
    planned = len(run_folder.manifest.keys)
    bar = tqdm(total=planned, initial=len(run_folder.results), unit="episode", file=sys.stderr, dynamic_ncols=True)
    try:
        with bar:
            for key in run_folder.remaining:
                bar.set_description(key.task)
                result = run_episode(simulators[key.task], trajectories.watch(policy), key, protocol, recorder)
                run_folder.append(result)
                if result.error:
                    bar.write(f"{key}: {result.error}", file=sys.stderr)
                successes = sum(result.success for result in run_folder.results)
                bar.set_postfix_str(f"success {successes}/{len(run_folder.results)}", refresh=False)
                bar.update()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted: {run_folder.kept()} of {planned} episodes kept in {run_folder.folder}; "
            f"the same command with --out {run_folder.folder} continues"
        ) from None


def report(run_folder: RunFolder, arguments: RolloutArguments) -> int:
    """Prints what came of a finished run; returns the exit code.

    Raises:
        SimEvalError: no episode came to its end, so there is no score.
    """
    import json

    from sim_eval.evaluation.run_folder import VIDEOS
    from sim_eval.reporting.summary import COLUMNS, part_name, phase_grid, summaries, summary_cells
    from sim_eval.reporting.tables import terminal

    results = run_folder.results
    videos = run_folder.folder / VIDEOS
    shown = videos if videos.is_dir() else None
    if arguments.json:
        values = {"out": run_folder.folder, "videos": shown, "tasks": [asdict(each) for each in summaries(results)]}
        print(json.dumps(values, default=str))
    else:
        rows = [(part_name((each.task, each.goal)), each) for each in summaries(results)]
        cells = [(name, *summary_cells(each), f"{each.episodes_per_minute:.1f}") for name, each in rows]
        print(terminal(("task", *COLUMNS, "episodes/min"), cells))
        phases = phase_grid(("furthest phase",), [((name,), each) for name, each in rows])
        print(f"\n{terminal(*phases)}\n")
        print(f"run folder: {run_folder.folder}\nvideos: {shown or 'none'}")
    if all(result.error for result in results):
        raise SimEvalError(f"every episode ended with an error; the first: {results[0].error}")
    return 0


if __name__ == "__main__":
    run(main, RolloutArguments, PROGRAM)
