"""Normalisation of vectors: the statistics, computing them from episodes, and applying them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

import numpy as np

from sim_eval.core.errors import SimEvalError
from sim_eval.core.programs import command
from sim_eval.core.types import FloatArray

NormalizationMode: TypeAlias = Literal["mean_std", "quantile"]


@dataclass(frozen=True)
class FieldStats:
    """Statistics of one vector field, each a tuple of its length."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    q01: tuple[float, ...]
    q99: tuple[float, ...]


@dataclass(frozen=True)
class NormalizationStats:
    """How vectors are normalised; a checkpoint stores it.

    Attributes:
        mode: ``mean_std`` maps to zero mean and unit deviation, ``quantile`` maps [q01, q99] to [-1, 1].
        fields: statistics by field name.
        floor: a dimension whose scale is smaller is only centred, so that its noise is not amplified.
    """

    mode: NormalizationMode
    fields: Mapping[str, FieldStats] = field(default_factory=dict)
    floor: float = 1e-3

    def _offset_scale(self, name: str) -> tuple[FloatArray, FloatArray]:
        if name not in self.fields:
            raise SimEvalError(f"no normalisation statistics for '{name}'; known: {', '.join(self.fields) or 'none'}")
        stats = self.fields[name]
        if self.mode == "mean_std":
            offset, scale = np.array(stats.mean), np.array(stats.std)
        else:
            low, high = np.array(stats.q01), np.array(stats.q99)
            offset, scale = (low + high) / 2, (high - low) / 2
        return offset, np.where(scale < self.floor, 1.0, scale)

    def normalize(self, name: str, values: FloatArray) -> FloatArray:
        """Normalises values [..., n] of a field.

        Raises:
            SimEvalError: the field has no statistics.
        """
        offset, scale = self._offset_scale(name)
        normalized: FloatArray = (values - offset) / scale
        return normalized

    def denormalize(self, name: str, values: FloatArray) -> FloatArray:
        """The inverse of :meth:`normalize`."""
        offset, scale = self._offset_scale(name)
        denormalized: FloatArray = values * scale + offset
        return denormalized


class Motion(Protocol):
    """The parts of an episode that are normalised: actions [T, A] and each proprio field [T, n]."""

    @property
    def actions(self) -> FloatArray: ...
    @property
    def proprio(self) -> Mapping[str, FloatArray]: ...


def normalization_stats(episodes: Sequence[Motion], mode: NormalizationMode) -> NormalizationStats:
    """Computes the statistics of ``action`` (the labels) and of each shared proprio field; every step counts once.

    Raises:
        SimEvalError: there are no episodes.
    """
    if not episodes:
        raise SimEvalError(f"normalisation needs at least one episode: collect some with {command('collect')}")
    fields = {"action": np.concatenate([episode.actions for episode in episodes])}
    proprio = [episode.proprio for episode in episodes]
    shared = [name for name in proprio[0] if all(name in values for values in proprio)]
    fields |= {name: np.concatenate([values[name] for values in proprio]) for name in shared}
    return NormalizationStats(mode, {name: _field_stats(values) for name, values in fields.items()})


def _field_stats(values: FloatArray) -> FieldStats:
    """Statistics of each of the n dimensions of values [N, n]."""
    low, high = np.quantile(values, (0.01, 0.99), axis=0)
    return FieldStats(*(tuple(part.tolist()) for part in (values.mean(axis=0), values.std(axis=0), low, high)))
