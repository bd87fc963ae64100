"""Rollouts on the val split, by which a training keeps its best weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import EpisodeKey
from sim_eval.evaluation.engine import RolloutProtocol, run_episode
from sim_eval.evaluation.jobs import OneSimulator
from sim_eval.policies.policy import Policy

PROTOCOL = RolloutProtocol()


def validation_keys(tasks: Sequence[str], episodes: int, total: int | None) -> list[EpisodeKey]:
    """The episodes of a round of validation, the same in every round, so that rounds can be compared.

    Args:
        episodes: of each task.
        total: of all tasks together at most, spread evenly over them; some may get none.
    """
    count = len(tasks)
    wanted = episodes * count if total is None else min(total, episodes * count)
    shares = [wanted * (number + 1) // count - wanted * number // count for number in range(count)]
    return [EpisodeKey(task, "val", index) for task, share in zip(tasks, shares, strict=True) for index in range(share)]


def validate(
    policy: Policy, keys: Sequence[EpisodeKey], simulators: OneSimulator, stop: Callable[[], bool]
) -> dict[str, tuple[int, int]] | None:
    """Task name -> successes and episodes, in the order of the keys.

    Args:
        stop: asked before each episode.

    Returns:
        None if it was stopped.

    Raises:
        SimEvalError: an episode broke off.
    """
    success: dict[str, tuple[int, int]] = {}
    for task, group in itertools.groupby(keys, key=lambda key: key.task):
        simulator = simulators.of(task)
        results = []
        for key in group:
            if stop():
                return None
            results.append(run_episode(simulator, policy, key, PROTOCOL))
        if broken := [result.error for result in results if result.error]:
            raise SimEvalError(f"validation on {task} broke off: {broken[0]}")
        success[task] = sum(result.success for result in results), len(results)
    return success
