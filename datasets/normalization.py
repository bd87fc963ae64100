"""Normalisation statistics from episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from sim_eval.envs.contract import FieldStats, FloatArray, NormalizationMode, NormalizationStats, SimEvalError


class Motion(Protocol):
    """What of an episode is normalised: actions [T, A] and each proprio field [T, n]."""

    @property
    def actions(self) -> FloatArray: ...
    @property
    def proprio(self) -> Mapping[str, FloatArray]: ...


def normalization_stats(episodes: Sequence[Motion], mode: NormalizationMode) -> NormalizationStats:
    """Statistics of ``action`` (the labels) and of each proprio field, every step counted once.

    Raises:
        SimEvalError: there are no episodes.
    """
    if not episodes:
        raise SimEvalError("normalisation needs at least one episode: collect some with python -m sim_eval.collect")
    fields = {"action": np.concatenate([episode.actions for episode in episodes])}
    proprio = [episode.proprio for episode in episodes]
    fields |= {name: np.concatenate([values[name] for values in proprio]) for name in proprio[0]}
    return NormalizationStats(mode, {name: _field_stats(values) for name, values in fields.items()})


def _field_stats(values: FloatArray) -> FieldStats:
    """Of values [N, n], for each of the n dimensions."""
    low, high = np.quantile(values, (0.01, 0.99), axis=0)
    return FieldStats(*(tuple(part.tolist()) for part in (values.mean(axis=0), values.std(axis=0), low, high)))
