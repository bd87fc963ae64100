"""Baselines: policies that do nothing useful, as a lower bound for every table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sim_eval.core.types import ActionChunk
from sim_eval.policies.policy import PolicyRequest, PolicySpec

CHUNK = 8  # actions per call


class ZeroPolicy:
    """Commands zero in every dimension."""

    spec = PolicySpec(name="zero")

    def predict(self, requests: Sequence[PolicyRequest]) -> list[ActionChunk]:
        return [ActionChunk(request.action.clip(np.zeros((CHUNK, request.action.dim)))) for request in requests]


class RandomPolicy:
    """Commands uniform actions within the bounds, seeded by the episode's key and the number of the call."""

    spec = PolicySpec(name="random")

    def predict(self, requests: Sequence[PolicyRequest]) -> list[ActionChunk]:
        return [
            ActionChunk(
                request.key.rng(f"policy/{request.policy_call}").uniform(
                    request.action.low, request.action.high, (CHUNK, request.action.dim)
                )
            )
            for request in requests
        ]
