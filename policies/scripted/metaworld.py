"""Meta-World's own scripted policies as demonstrators for its 50 tasks."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from sim_eval.core.errors import SimEvalError, extra
from sim_eval.core.types import ActionChunk, FloatArray

if TYPE_CHECKING:
    from metaworld.policies.policy import Policy

    from sim_eval.policies.scripted.scripted_policy import Demonstrator

SIMULATOR = "metaworld/"
# Pushes of the hand, not of the gripper. These demonstrators move at full speed and wait for nothing: with noise at
# every step they fail, with short bursts most of their episodes succeed.
DISTURBANCE, DISTURBED_SHARE = np.array([0.7, 0.7, 0.7, 0.0]), 0.15


def act(policy: Policy, state: Mapping[str, FloatArray], instruction: str) -> ActionChunk:
    """One action, clipped: Meta-World's policies exceed the bounds and rely on clipping."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the policies warn at each step that they are clipped
        action = np.asarray(policy.get_action(state["observation"]), np.float64)
    return ActionChunk(np.clip(action, -1, 1)[None], DISTURBANCE, DISTURBED_SHARE)


def find_demonstrator(task: str) -> Demonstrator | None:
    """The demonstrator of a task; None: it is not a task of Meta-World.

    Raises:
        SimEvalError: Meta-World is not installed, or has no such policy.
    """
    if not task.startswith(SIMULATOR):
        return None
    with extra("metaworld"):
        from metaworld.policies import ENV_POLICY_MAP
    name = task.removeprefix(SIMULATOR)
    if name not in ENV_POLICY_MAP:
        raise SimEvalError(f"Meta-World has no scripted policy for '{name}'")
    return partial(act, ENV_POLICY_MAP[name]())  # type: ignore[abstract]
