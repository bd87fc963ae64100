"""Collect demonstrations: ``python -m sim_eval.collect --task robosuite/LiftWide --episodes 150 --out data/lift_wide``.

One HDF5 file an episode, in robomimic's layout with depth and cameras. The same command again goes on where it
stopped.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from sim_eval.console import at_least, make_folder, run
from sim_eval.envs.contract import SimEvalError, SimulatorOptions

if TYPE_CHECKING:
    from sim_eval.envs.contract import EnvironmentSpec, Simulator
    from sim_eval.policies.policy import Policy

# With fewer successes than one in so many tries, the demonstrator is not one.
TRIES_BEFORE_GIVING_UP = 20


@dataclass(frozen=True)
class CollectArguments:
    """Collect demonstrations with a policy.

    Attributes:
        task: what to demonstrate, for example robosuite/LiftWide.
        out: folder for the episode files; one that already holds some of them is continued.
        policy: who demonstrates: scripted, a shipped checkpoint's name, or a checkpoint folder.
        episodes: how many episodes the folder shall hold in the end.
        split: train or val; test episodes are never collected.
        keep_failures: keep failed episodes too.
        disturb: push the demonstrator off its path but record clean labels (DART), so that a learner sees recoveries.
        rehearse: run each episode without recording first, and again only if it succeeds; faster where simulation is
            cheap beside rendering and the demonstrator fails now and then.
        render: fast, or faithful for the simulator's own look.
        size: height and width of every camera in pixels.
        cameras: which of the environment's cameras are recorded, separated by commas; default: all.
        device: for a learned policy: auto, cpu, cuda.
    """

    task: str
    out: Path
    policy: str = "scripted"
    episodes: int = 100
    split: Literal["train", "val"] = "train"
    keep_failures: bool = False
    disturb: bool = True
    rehearse: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    render: Literal["fast", "faithful"] = "fast"
    size: int = 128
    cameras: Annotated[str, tyro.conf.arg(metavar="C[,C...]")] = ""
    device: str = "auto"


def main(arguments: CollectArguments) -> int:
    """Runs the command; returns the exit code."""
    at_least("episodes", arguments.episodes, 1)
    at_least("size", arguments.size, 16)
    from sim_eval.envs.tasks import get_task
    from sim_eval.policies.policy import check_fit, load_policy

    task = get_task(arguments.task)
    policy = load_policy(arguments.policy, arguments.device)
    make_folder(arguments.out)
    simulator = task.make(SimulatorOptions(arguments.render, arguments.size, arguments.size))
    try:
        check_fit(policy.spec, simulator.spec)
        return collect(simulator, policy, arguments)
    finally:
        simulator.close()


def chosen_cameras(names: str, spec: EnvironmentSpec) -> dict[str, tuple[int, int]]:
    """Camera name -> (height, width) of those that are named, separated by commas; none named: all.

    Raises:
        SimEvalError: the environment has no camera of a name.
    """
    if not names:
        return dict(spec.cameras)
    wanted = [name.strip() for name in names.split(",")]
    if unknown := [name for name in wanted if name not in spec.cameras]:
        raise SimEvalError(f"--cameras: no camera '{unknown[0]}' here, there are {', '.join(spec.cameras)}")
    return {name: spec.cameras[name] for name in wanted}


def collect(simulator: Simulator, policy: Policy, arguments: CollectArguments) -> int:
    """Fills the folder up to the wanted number of episodes."""
    from tqdm import tqdm

    from sim_eval.datasets.recorder import DemonstrationRecorder, existing
    from sim_eval.envs.contract import EpisodeKey
    from sim_eval.evaluation.engine import RolloutProtocol, run_episode

    task, split, wanted = arguments.task, arguments.split, arguments.episodes
    there = existing(arguments.out, task, split)
    cameras = chosen_cameras(arguments.cameras, simulator.spec)
    for header in there.values():
        if header.spec.cameras != cameras:
            raise SimEvalError(
                f"{arguments.out} holds pictures of {dict(header.spec.cameras)}, this command makes {cameras}: choose "
                "another --out or the same --size and --cameras"
            )
    recorder = DemonstrationRecorder(arguments.out, arguments.keep_failures, cameras=tuple(cameras))
    protocol = RolloutProtocol(simulator=SimulatorOptions(arguments.render, arguments.size, arguments.size))
    tries = successes = errors = index = steps = 0
    progress = tqdm(
        total=wanted, initial=min(len(there), wanted), unit="episode", desc=f"{task} {split}", dynamic_ncols=True
    )
    try:
        while len(there) + len(recorder.written) < wanted:
            if index not in there:
                key = EpisodeKey(task, split, index)
                first = None if arguments.rehearse else recorder
                result = run_episode(simulator, policy, key, protocol, first, arguments.disturb)
                if arguments.rehearse and (result.success or arguments.keep_failures):
                    result = run_episode(simulator, policy, key, protocol, recorder, arguments.disturb)
                tries, successes, steps = tries + 1, successes + result.success, steps + result.steps
                if result.error:
                    errors += 1
                    progress.write(f"{key}: {result.error}")
                hopeless = tries >= TRIES_BEFORE_GIVING_UP and successes * TRIES_BEFORE_GIVING_UP < tries
                if hopeless and not arguments.keep_failures:
                    raise SimEvalError(
                        f"policy '{arguments.policy}' succeeded in {successes} of {tries} episodes of {task}: "
                        f"it cannot demonstrate it ({errors} ended with an error); try --policy scripted"
                    )
                progress.update(len(there) + len(recorder.written) - progress.n)
                progress.set_postfix(success=f"{successes}/{tries}")
            index += 1
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted: {len(existing(arguments.out, task, split))} of {wanted} episodes kept in {arguments.out}; "
            "the same command continues"
        ) from None
    finally:
        seconds = progress.format_dict["elapsed"]
        progress.close()
    total = len(there) + len(recorder.written)
    size = sum(path.stat().st_size for path in recorder.written) / 1e6
    print(
        f"{arguments.out}: {total} episodes of {task}, {split} ({len(there)} from before)\n"
        f"this time: {successes} successes in {tries} tries, {len(recorder.written)} written ({size:.0f} MB), "
        f"{steps} control steps, {seconds:.0f} s"
    )
    return 0


if __name__ == "__main__":
    run(main, CollectArguments, "python -m sim_eval.collect")
