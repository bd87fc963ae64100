"""Examine a set-up before it is scored: ``python -m sim_eval.doctor --policy deep_llama --data data/lift``.

Machine, cameras, demonstrations, policy and speed, each finding with its remedy. The exit code is 1 when there is a
fault, 0 when there is none (warnings or not), and 2 for input that cannot be read.
"""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from sim_eval.console import at_least, named_tasks, run
from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import RenderConfig

if TYPE_CHECKING:
    from sim_eval.diagnosis.examination import Subject
    from sim_eval.diagnosis.findings import Finding

PROGRAM = "python -m sim_eval.doctor"
DEFAULT_TASK = "robosuite/LiftWide"


@dataclass(frozen=True)
class DoctorArguments:
    """Examine machine, cameras, demonstrations and policy before anything is scored.

    Attributes:
        policy: deep_llama or another shipped checkpoint, a checkpoint folder, scripted, zero or random.
        task: tasks and suites of tasks, separated by commas; without it those of the data, else the policy's, else
            robosuite/LiftWide.
        data: folders of demonstrations, best those that the policy was trained on.
        episodes: demonstrations of each task that are replayed.
        render: fast or faithful, as the evaluation will show the task; without it what the policy was trained on, or
            the task's own.
        hide_goal: leave out marks of the goal, if the evaluation will.
        device: auto, cpu, cuda or another of torch's devices.
        threads: torch's CPU threads, as the evaluation will have them.
        json: write the findings to this file as well.
    """

    policy: Annotated[str | None, tyro.conf.arg(metavar="NAME|DIR")] = None
    task: Annotated[str, tyro.conf.arg(metavar="T[,T...]")] = ""
    data: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="DIR [DIR ...]")] = ()
    episodes: int = 3
    render: Literal["fast", "faithful"] | None = None
    hide_goal: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    device: str = "auto"
    threads: int = 1
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None


def main(arguments: DoctorArguments) -> int:
    """Runs the command; returns the exit code."""
    at_least("episodes", arguments.episodes, 1)
    at_least("threads", arguments.threads, 1)
    if arguments.json and not os.access(arguments.json.parent, os.W_OK):
        raise SimEvalError(f"--json {arguments.json} cannot be written: choose a file in a folder that is there")
    from sim_eval.core.files import write_json
    from sim_eval.diagnosis.examination import examination
    from sim_eval.diagnosis.findings import shown, summary

    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    groups: dict[str, list[Finding]] = {}
    for title, findings in examination(admit(arguments)):
        groups[title] = findings
        print(shown(title, findings, colour), end="\n\n", flush=True)
    found = [finding for findings in groups.values() for finding in findings]
    healthy = all(finding.level != "fault" for finding in found)
    if arguments.json:
        listed = {title: [asdict(finding) for finding in findings] for title, findings in groups.items()}
        write_json(arguments.json, {"healthy": healthy, "groups": listed})
    print(summary(found))
    return 0 if healthy else 1


def admit(arguments: DoctorArguments) -> Subject:
    """What the arguments name, loaded.

    Raises:
        SimEvalError: policy, device, a task or demonstrations cannot be found or read.
    """
    from sim_eval.diagnosis.demonstrations import catalogue
    from sim_eval.diagnosis.examination import Subject
    from sim_eval.envs.tasks import choose_render, get_task
    from sim_eval.policies.registry import checkpoint_folder, load_policy

    data = catalogue(arguments.data)
    tasks = [get_task(name) for name in named_tasks(arguments.task) or data.tasks]  # before the long load
    policy = load_policy(arguments.policy, arguments.device) if arguments.policy else None
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(arguments.threads)
    learnt = policy.spec.tasks if policy else ()
    sizes = [size for spec in (policy.spec if policy else None, data.spec) if spec for size in spec.cameras.values()]
    size = sizes[0] if sizes else (RenderConfig.height, RenderConfig.width)
    tasks = tasks or [get_task(name) for name in learnt or (DEFAULT_TASK,)]
    trained_on = policy.spec.render if policy else None
    render = choose_render(arguments.render or trained_on, [task.name for task in tasks])
    return Subject(
        policy=policy,
        folder=checkpoint_folder(arguments.policy) if arguments.policy else None,
        data=data,
        tasks=tuple(tasks),
        render=RenderConfig(render, *size, arguments.hide_goal),
        replayed=arguments.episodes,
        device=arguments.device,
    )


if __name__ == "__main__":
    run(main, DoctorArguments, PROGRAM)
