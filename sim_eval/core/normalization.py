"""Normalisation of vectors: its statistics, how they are computed from episodes, and how they are applied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Literal, Protocol, TypeAlias, cast

import numpy as np

from sim_eval.core.errors import SimEvalError
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
    """How vectors are normalised, stored with a checkpoint together with the mode.

    ``mean_std`` maps to zero mean and unit deviation; ``quantile`` maps [q01, q99] to [-1, 1]. A dimension that hardly
    varies (range below ``floor``) is only centred, so that noise in it is not blown up.
    """

    mode: NormalizationMode
    fields: Mapping[str, FieldStats] = field(default_factory=lambda: MappingProxyType({}))
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
        """Values [..., n] of the field, normalised."""
        offset, scale = self._offset_scale(name)
        normalized: FloatArray = (values - offset) / scale
        return normalized

    def denormalize(self, name: str, values: FloatArray) -> FloatArray:
        """The inverse of :meth:`normalize`."""
        offset, scale = self._offset_scale(name)
        denormalized: FloatArray = values * scale + offset
        return denormalized

    def to_dict(self) -> dict[str, object]:
        return {"mode": self.mode, "floor": self.floor, "fields": {k: asdict(v) for k, v in self.fields.items()}}

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> NormalizationStats:
        """Reads what :meth:`to_dict` wrote.

        Raises:
            SimEvalError: a field is missing or the mode is unknown.
        """
        try:
            mode = data["mode"]
            if mode not in ("mean_std", "quantile"):
                raise SimEvalError(f"unknown normalisation mode '{mode}': mean_std or quantile")
            raw = cast(Mapping[str, Mapping[str, Sequence[float]]], data["fields"])
            fields = {
                name: FieldStats(*(tuple(float(x) for x in entry[part]) for part in ("mean", "std", "q01", "q99")))
                for name, entry in raw.items()
            }
            return cls(mode, fields, float(cast(float, data["floor"])))
        except (KeyError, TypeError, ValueError) as error:
            raise SimEvalError(f"normalisation statistics are damaged: {error!r}") from error


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
