"""The whole examination: the checks for a policy, its tasks and demonstrations, in their order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TypeAlias

import numpy as np

from sim_eval.configs import DoctorConfig
from sim_eval.console import named_tasks
from sim_eval.core.normalization import NormalizationStats, normalization_stats
from sim_eval.core.types import EpisodeKey, RenderConfig, Simulator, Task, observe_task
from sim_eval.datasets.episode_file import Episode, read_episode
from sim_eval.diagnosis.answers import checkpoint, data_fit_findings, fit_findings, imitation_findings, task_finding
from sim_eval.diagnosis.checkpoint_metadata import record_findings, was_trained_on
from sim_eval.diagnosis.demonstrations import (
    Catalogue,
    catalogue,
    catalogue_findings,
    first_pictures,
    replay,
    replay_findings,
)
from sim_eval.diagnosis.field_statistics import against_data, against_environment, sound_statistics
from sim_eval.diagnosis.findings import Finding, examine
from sim_eval.diagnosis.geometry import Moment, scene_findings
from sim_eval.diagnosis.machine import machine_findings
from sim_eval.diagnosis.pace import policy_pace, simulator_pace, worker_findings
from sim_eval.envs.tasks import choose_render, get_task
from sim_eval.evaluation.engine import RolloutProtocol
from sim_eval.evaluation.jobs import PolicySource
from sim_eval.evaluation.rollouts import DEFAULT_TASK
from sim_eval.policies.policy import AS_SAVED, Policy, PolicyRequest, differences
from sim_eval.policies.registry import checkpoint_folder
from sim_eval.policies.scripted.scripted_policy import ScriptedPolicy, find_demonstrator

Group: TypeAlias = tuple[str, list[Finding]]

# The self-test observes so many episodes at so many moments each, with so many control steps between them.
EPISODES, MOMENTS, STEPS_BETWEEN = 2, 3, 8


@dataclass(frozen=True)
class Subject:
    """The policy, tasks and demonstrations to examine.

    Attributes:
        policy: as the evaluation would run it; None: there is none.
        folder: of the policy's checkpoint; None: it has none.
        data: demonstrations; without headers: there are none.
        tasks: in which policy and demonstrations are tried.
        render: how tasks are rendered.
        replayed: number of demonstrations of each task that are replayed.
        device: torch's, as the user named it.
    """

    policy: Policy | None
    folder: Path | None
    data: Catalogue
    tasks: tuple[Task, ...]
    render: RenderConfig
    replayed: int
    device: str

    @classmethod
    def of(cls, config: DoctorConfig) -> Subject:
        """Loads policy and demonstrations.

        Raises:
            SimEvalError: policy, device, a task or demonstrations cannot be found or read.
        """
        data = catalogue(config.data)
        tasks = named_tasks(config.task) or list(data.tasks)  # wrong names are refused before the policy is loaded
        policy = None
        if config.policy:
            policy = PolicySource(config.policy, config.device, AS_SAVED, config.threads).load()
        tasks = tasks or list(policy.spec.tasks if policy else ()) or [DEFAULT_TASK]
        cameras = (policy.spec.cameras if policy else None) or (data.spec.cameras if data.spec else {})
        mode = choose_render(config.render or (policy.spec.render if policy else None), tasks)
        return cls(
            policy=policy,
            folder=checkpoint_folder(config.policy) if config.policy else None,
            data=data,
            tasks=tuple(get_task(name) for name in tasks),
            render=RenderConfig.for_cameras(mode, cameras, config.hide_goal),
            replayed=config.episodes,
            device=config.device,
        )

    @cached_property
    def stats(self) -> NormalizationStats | None:
        """The normalisation of a trained policy."""
        trained = checkpoint(self.policy) if self.policy else None
        return trained.processor.stats if trained else None


def examination(subject: Subject) -> Iterator[Group]:
    """Groups of findings, each as soon as it is complete."""
    yield "machine", list(machine_findings(subject.device))
    if subject.data.headers or subject.data.problems:
        yield "demonstrations", examine("files", lambda: catalogue_findings(subject.data))
    if subject.policy and subject.stats:
        yield f"policy {subject.policy.spec.name}", list(checkpoint_findings(subject, subject.policy, subject.stats))
    for task in subject.tasks:
        yield task.name, task_findings(subject, task)


def checkpoint_findings(subject: Subject, policy: Policy, stats: NormalizationStats) -> Iterator[Finding]:
    """Checks of a trained policy without a simulator."""
    spec, folder, headers = policy.spec, subject.folder, subject.data.headers
    if folder is not None:
        yield from examine("record", lambda: record_findings(folder, spec, stats))
    if spec.action is not None:
        yield from examine("statistics", partial(sound_statistics, stats, spec.action))
    if headers:
        (header, *_) = headers.values()
        yield from examine("fit to the data", lambda: fit_findings(spec, header.spec, "the data"))

        def compared() -> Iterator[Finding]:
            data = normalization_stats([read_episode(path, pictures=False) for path in headers], stats.mode)
            fields = [name for name in ("action", *spec.proprio) if name in data.fields]
            yield from against_data(stats, data, fields, was_trained_on(folder, list(headers.values())))

        yield from examine("statistics of the data", compared)


def task_findings(subject: Subject, task: Task) -> list[Finding]:
    """Checks of policy and demonstrations in a task's environment."""

    def checks() -> Iterator[Finding]:
        with closing(task.make(subject.render)) as simulator:
            yield from environment_findings(subject, simulator)

    return examine("environment", checks)


def environment_findings(subject: Subject, simulator: Simulator) -> Iterator[Finding]:
    policy, stats, data = subject.policy, subject.stats, subject.data.of(simulator.task.name)
    moments: list[Moment] = []

    def look() -> Iterator[Finding]:
        moments.extend(look_around(simulator))
        yield from scene_findings(moments)

    yield from examine("cameras", look)
    fits = policy is not None and not differences(policy.spec, simulator.spec)
    if policy is not None:
        spec = policy.spec
        yield from task_finding(spec, simulator.task.name)
        yield from examine("fit", lambda: fit_findings(spec, simulator.spec, "the environment"))
        if stats is not None and moments:
            known = [name for name in spec.proprio if name in simulator.spec.proprio]
            proprio = [moment.observation.proprio for moment in moments]
            yield from examine("statistics here", partial(against_environment, stats, proprio, known))
    if data:
        yield from demonstration_findings(subject, simulator)
    key = EpisodeKey(simulator.task.name, "val", 0)
    if policy is not None and fits:
        yield from examine("policy latency", partial(policy_pace, policy, simulator, key))
    yield from examine("simulator", lambda: simulator_pace(simulator, key))
    yield from examine("suggested --workers", worker_findings)


def demonstration_findings(subject: Subject, simulator: Simulator) -> Iterator[Finding]:
    """Checks of a task's demonstrations in its environment, and of the policy's actions on them."""
    task, policy = simulator.task.name, subject.policy
    header = next(iter(subject.data.of(task).values()))
    yield from examine("fit of the data", lambda: data_fit_findings(header.spec, simulator.spec))
    episodes: list[Episode] = []

    def read() -> Iterator[Finding]:
        episodes.extend(read_episode(path) for path in subject.data.chosen(task, subject.replayed))
        if not episodes:
            yield Finding("replays", "warning", "no demonstration is a success", "collect some that are")

    yield from examine("demonstrations", read)
    if not episodes:
        return
    protocol = RolloutProtocol(render=subject.render)
    yield from examine("first pictures", lambda: first_pictures(simulator, episodes))
    replays = (replay(simulator, episode, protocol) for episode in episodes)
    yield from examine("replays", lambda: replay_findings(list(replays)))
    if policy is not None and subject.stats and not differences(policy.spec, header.spec):
        yield from examine("imitation", partial(imitation_findings, policy, episodes, protocol.n_action_steps))


def look_around(simulator: Simulator) -> Iterator[Moment]:
    """Moments from the beginning of some validation episodes, acted by the task's demonstrator if it has one."""
    task, action = simulator.task, simulator.spec.action
    demonstrator = ScriptedPolicy() if find_demonstrator(task.name) else None
    for index in range(EPISODES):
        key = EpisodeKey(task.name, "val", index)
        instruction = task.instruction(key)
        simulator.reset(key)
        for moment in range(MOMENTS):
            for step in range(STEPS_BETWEEN if moment else 0):
                command = np.zeros(action.dim)
                if demonstrator is not None:
                    observation = observe_task(simulator, instruction, ())
                    request = PolicyRequest(observation, key, step, action, simulator.privileged())
                    command = demonstrator.predict([request])[0].actions[0]
                simulator.act(action.clip(command))
            yield Moment(observe_task(simulator, instruction), simulator.privileged())
