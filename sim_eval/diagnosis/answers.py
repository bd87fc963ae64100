"""What a policy answers: does it fit the environment, and does it do on demonstrations what was demonstrated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from sim_eval.core.normalization import NormalizationMode
from sim_eval.core.types import EnvironmentSpec
from sim_eval.diagnosis.findings import Finding, graded
from sim_eval.envs.tasks import in_short
from sim_eval.policies.policy import Policy, PolicyRequest, PolicySpec, differences

if TYPE_CHECKING:
    from sim_eval.datasets.episode_file import Episode
    from sim_eval.policies.spatialvla.checkpoint import SpatialVLAPolicy

OTHER_MODE: dict[NormalizationMode, NormalizationMode] = {"mean_std": "quantile", "quantile": "mean_std"}
ASKED = 8  # times an episode
# Part of the error that the other mode must leave, to be taken for the one of the training.
OTHER_MODE_BETTER = 0.8


def fit_findings(policy: PolicySpec, environment: EnvironmentSpec, where: str) -> Iterator[Finding]:
    """A policy's needs and actions against what is offered ``where``; one finding a difference."""
    found = differences(policy, environment)
    for sentence in found:
        told = sentence.replace("the environment", where)
        yield Finding(f"fit to {where}", "fault", told, f"use a policy made for {where}, or mend its processor.json")
    if not found:
        cameras = ", ".join(policy.cameras) or "none"
        yield Finding(f"fit to {where}", "ok", f"robot, cameras ({cameras}), proprio and actions are what it needs")


def data_fit_findings(data: EnvironmentSpec, environment: EnvironmentSpec) -> Iterator[Finding]:
    """What demonstrations hold against what the environment offers; one finding a difference."""
    found = differences(PolicySpec("data", data.robot, data.cameras, data.proprio, data.action), environment)
    for sentence in found:
        told = sentence.replace("the policy", "the data").replace("is needed", "is in the data")
        remedy = "collect demonstrations in this environment, or convert their names and control rate"
        yield Finding("fit of the data", "fault", told, remedy)
    if not found:
        told = f"cameras {', '.join(data.cameras)}, actions at {data.action.control_hz:g} Hz: as the environment's"
        yield Finding("fit of the data", "ok", told)


def task_finding(policy: PolicySpec, task: str) -> Iterator[Finding]:
    if policy.tasks and task not in policy.tasks:
        told = f"the policy was trained on {in_short(policy.tasks)}"
        yield Finding("task", "warning", told, "do not take its score for that of a trained policy")


def imitation_findings(policy: Policy, episodes: Sequence[Episode], steps: int) -> Iterator[Finding]:
    """The first ``steps`` actions that the policy answers on demonstrations against those demonstrated.

    A checkpoint is also asked under the other normalisation mode: if that does better, it is the one of the training.
    """
    error, constant = imitation_error(policy, episodes, steps), constant_error(episodes)
    told = f"its first {steps} actions are {error:.3f} off the demonstrated ones, always the same action {constant:.3f}"
    swapped = other_mode(policy)
    if swapped is not None:
        other = imitation_error(swapped, episodes, steps)
        mode = swapped.processor.stats.mode
        if other < OTHER_MODE_BETTER * error and other < constant:
            yield Finding(
                "imitation", "fault", f"{told}, {other:.3f} with mode {mode}", f"set mode {mode} in processor.json"
            )
            return
    yield graded(
        "imitation",
        "ok" if error < constant else "warning",
        told,
        "it has not learnt this data: train it longer, or give --data what it was trained on",
    )


def imitation_error(policy: Policy, episodes: Sequence[Episode], steps: int) -> float:
    """Mean absolute error of actions, in the environment's units."""
    errors = []
    for episode in episodes:
        asked = np.unique(np.linspace(0, len(episode.actions) - steps, ASKED).clip(0).astype(int)).tolist()
        requests = [PolicyRequest(episode.observations[step], episode.key, step, episode.action) for step in asked]
        for step, chunk in zip(asked, policy.predict(requests), strict=True):
            labels = episode.actions[step : step + steps]
            count = min(len(labels), len(chunk.actions))
            errors.append(np.abs(episode.action.clip(chunk.actions[:count]) - labels[:count]).mean())
    return float(np.mean(errors))


def constant_error(episodes: Sequence[Episode]) -> float:
    """The error of the best action that never changes: each dimension's median."""
    actions = np.concatenate([episode.actions for episode in episodes])
    return float(np.abs(actions - np.median(actions, axis=0)).mean())


def checkpoint(policy: Policy) -> SpatialVLAPolicy | None:
    """The policy, if it is a trained network of ours with statistics that can be looked at."""
    from sim_eval.policies.spatialvla.checkpoint import SpatialVLAPolicy

    return policy if isinstance(policy, SpatialVLAPolicy) else None


def other_mode(policy: Policy) -> SpatialVLAPolicy | None:
    """The same network under the other normalisation mode; None: it is not a checkpoint."""
    from sim_eval.policies.spatialvla.checkpoint import SpatialVLAPolicy
    from sim_eval.policies.spatialvla.processing_spatialvla import SpatialVLAProcessor

    if (own := checkpoint(policy)) is None:
        return None
    old = own.processor
    stats = replace(old.stats, mode=OTHER_MODE[old.stats.mode])
    processor = SpatialVLAProcessor(old.config, old.spec, stats, old.tokenizer, old.prompt)
    return SpatialVLAPolicy(own.model, processor, own.device)
