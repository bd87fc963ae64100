"""Checks of a policy: whether it fits the environment, and whether it imitates demonstrations."""

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
CALLS = 8  # of the policy an episode
# The other normalisation mode is taken for that of the training if its error is at most this share.
OTHER_MODE_BETTER = 0.8


def fit_findings(policy: PolicySpec, environment: EnvironmentSpec, where: str) -> Iterator[Finding]:
    """A policy's inputs and actions against an environment, which ``where`` names; one finding a difference."""
    reasons = differences(policy, environment)
    for reason in reasons:
        measured = reason.replace("the environment", where)
        yield Finding(f"fit to {where}", "fault", measured, f"use a policy for {where}, or correct its processor.json")
    if not reasons:
        cameras = ", ".join(policy.cameras) or "none"
        yield Finding(f"fit to {where}", "ok", f"robot, cameras ({cameras}), proprio and actions are what it needs")


def data_fit_findings(data: EnvironmentSpec, environment: EnvironmentSpec) -> Iterator[Finding]:
    """Demonstrations against the environment; one finding a difference."""
    reasons = differences(PolicySpec("data", data.robot, data.cameras, data.proprio, data.action), environment)
    for reason in reasons:
        measured = reason.replace("the policy", "the data").replace("is needed", "is in the data")
        remedy = "collect demonstrations in this environment, or convert their names and control rate"
        yield Finding("fit of the data", "fault", measured, remedy)
    if not reasons:
        measured = f"cameras {', '.join(data.cameras)}, actions at {data.action.control_hz:g} Hz: as the environment's"
        yield Finding("fit of the data", "ok", measured)


def task_finding(policy: PolicySpec, task: str) -> Iterator[Finding]:
    if policy.tasks and task not in policy.tasks:
        measured = f"the policy was trained on {in_short(policy.tasks)}"
        yield Finding("task", "warning", measured, "do not take its score for that of a trained policy")


def imitation_findings(policy: Policy, episodes: Sequence[Episode], steps: int) -> Iterator[Finding]:
    """The policy's first ``steps`` actions on demonstrations against the demonstrated ones.

    A checkpoint is also called with the other normalisation mode: if that does better, it is the mode of the training.
    """
    error, constant = imitation_error(policy, episodes, steps), constant_error(episodes)
    measured = (
        f"its first {steps} actions are {error:.3f} off the demonstrated ones, always the same action {constant:.3f}"
    )
    swapped = other_mode(policy)
    if swapped is not None:
        other = imitation_error(swapped, episodes, steps)
        mode = swapped.processor.stats.mode
        if other < OTHER_MODE_BETTER * error and other < constant:
            yield Finding(
                "imitation", "fault", f"{measured}, {other:.3f} with mode {mode}", f"set mode {mode} in processor.json"
            )
            return
    yield graded(
        "imitation",
        "ok" if error < constant else "warning",
        measured,
        "it has not learnt this data: train it longer, or give --data what it was trained on",
    )


def imitation_error(policy: Policy, episodes: Sequence[Episode], steps: int) -> float:
    """Mean absolute error of actions, in the environment's units."""
    errors = []
    for episode in episodes:
        steps_called = np.unique(np.linspace(0, len(episode.actions) - steps, CALLS).clip(0).astype(int)).tolist()
        requests = [
            PolicyRequest(episode.observations[step], episode.key, step, episode.action) for step in steps_called
        ]
        for step, chunk in zip(steps_called, policy.predict(requests), strict=True):
            labels = episode.actions[step : step + steps]
            count = min(len(labels), len(chunk.actions))
            errors.append(np.abs(episode.action.clip(chunk.actions[:count]) - labels[:count]).mean())
    return float(np.mean(errors))


def constant_error(episodes: Sequence[Episode]) -> float:
    """The error of the best constant action: each dimension's median."""
    actions = np.concatenate([episode.actions for episode in episodes])
    return float(np.abs(actions - np.median(actions, axis=0)).mean())


def checkpoint(policy: Policy) -> SpatialVLAPolicy | None:
    """The policy, if it is a checkpoint of ours, which has statistics; otherwise None."""
    from sim_eval.policies.spatialvla.checkpoint import SpatialVLAPolicy

    return policy if isinstance(policy, SpatialVLAPolicy) else None


def other_mode(policy: Policy) -> SpatialVLAPolicy | None:
    """The same network with the other normalisation mode; None: the policy is not a checkpoint."""
    from sim_eval.policies.spatialvla.checkpoint import SpatialVLAPolicy
    from sim_eval.policies.spatialvla.processing_spatialvla import SpatialVLAProcessor

    if (own := checkpoint(policy)) is None:
        return None
    old = own.processor
    stats = replace(old.stats, mode=OTHER_MODE[old.stats.mode])
    processor = SpatialVLAProcessor(old.config, old.spec, stats, old.tokenizer, old.prompt)
    return SpatialVLAPolicy(own.model, processor, own.device)
