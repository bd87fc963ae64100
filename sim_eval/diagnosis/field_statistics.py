"""Checks of normalisation statistics: by themselves, against the data's, and against the environment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, replace
from itertools import combinations

import numpy as np

from sim_eval.core.normalization import FieldStats, NormalizationStats
from sim_eval.core.types import ActionSpec, FloatArray
from sim_eval.diagnosis.findings import Finding, graded, level_above

ACTION = "action"
# Distance in standard deviations from the very data of the training, to which they are equal to the last digits.
SAME_LIMITS = 0.01, 0.1
# How far other data may reach beyond the policy's quantiles, in the policy's standard deviations. One task's
# demonstrations reach 0.3 beyond those of a policy of four tasks.
LIKE_LIMITS = 1.0, 3.0
EXPLAINED = 0.25  # share of the distance that may remain when an exchange is undone which is named as its cause
LEAST_EXPLAINED = 0.5  # standard deviations; smaller distances need no explanation
# How far from the middle a normalised number may lie. In the doctor's observations it is at most 3.7 for the shipped
# policies, and 4.7 for one trained on two episodes.
FAR_WARNING, FAR_FAULT = 7.0, 15.0


def sound_statistics(stats: NormalizationStats, action: ActionSpec) -> Iterator[Finding]:
    """Checks of statistics without any data."""
    wrong = []
    for name, field in stats.fields.items():
        mean, std, low, high = np.array(astuple(field))
        if (std < 0).any() or (low > high).any() or not np.isfinite([mean, std, low, high]).all():
            wrong.append(f"{name}: a deviation below 0, quantiles out of order or not finite")
        elif (std > np.maximum(high - low, 10 * stats.floor) * 5).any():
            wrong.append(f"{name}: a deviation several times the range of the quantiles")
    if ACTION in stats.fields:
        parts = np.array([stats.fields[ACTION].mean, stats.fields[ACTION].q01, stats.fields[ACTION].q99])
        if parts.shape[1] == action.dim and not np.array_equal(action.clip(parts), parts):
            wrong.append("action: mean or quantiles lie outside the action's bounds")
    yield graded(
        "statistics themselves",
        "fault" if wrong else "ok",
        "; ".join(wrong) or f"{stats.mode} of {', '.join(stats.fields)}",
        "restore processor.json or train the checkpoint again",
    )


def distance(field: FieldStats, data: FieldStats, floor: float) -> float:
    """How far a policy's statistics lie from the data's, in standard deviations: the worst dimension and part."""
    return float(_distances(field, data, floor).diagonal().max())


def _distances(field: FieldStats, data: FieldStats, floor: float) -> FloatArray:
    """[n, n]: of each dimension of the policy's statistics from each of the data's."""
    mine, theirs = np.array(astuple(field)), np.array(astuple(data))
    # The larger deviation counts, for the data may be a part only, but one that is far too large must not hide itself.
    largest = 3 * np.maximum(theirs[1], floor)
    scale = np.maximum(np.minimum(np.abs(mine[1])[:, None], largest), largest / 3)
    apart: FloatArray = (np.abs(mine[:, :, None] - theirs[:, None, :]) / scale).max(axis=0)
    return apart


def outlying(field: FieldStats, data: FieldStats, floor: float) -> float:
    """How far most of the data lies outside the policy's quantiles, in the policy's standard deviations."""
    mean, std, low, high = np.array(astuple(field))
    bulk = np.array([data.mean, data.q01, data.q99])
    beyond = np.maximum(bulk - np.maximum(high, mean), np.minimum(low, mean) - bulk)
    return float((beyond / np.maximum(np.abs(std), floor)).max().clip(0))


def explanation(name: str, stats: NormalizationStats, data: NormalizationStats) -> str | None:
    """The exchange that explains why the policy's statistics of a field differ from the data's; None: there is none."""
    mine, theirs, floor = stats.fields[name], data.fields[name], stats.floor
    before = distance(mine, theirs, floor)
    if before < LEAST_EXPLAINED:
        return None
    trials = {name: distance(field, theirs, floor) for name, field in _exchanges(mine, theirs, floor).items()}
    trials |= {
        f"they are those of {other}": distance(mine, field, floor)
        for other, field in data.fields.items()
        if other != name and len(field.mean) == len(mine.mean)
    }
    best = min(trials, key=lambda name: trials[name])
    return best if trials[best] < EXPLAINED * before else None


def _exchanges(field: FieldStats, data: FieldStats, floor: float) -> dict[str, FieldStats]:
    """Possible exchange inside a field's statistics -> the statistics when it is undone."""
    from scipy.optimize import linear_sum_assignment

    parts = vars(field)
    exchanges = {
        f"{first} and {second} are exchanged": replace(field, **{first: parts[second], second: parts[first]})
        for first, second in combinations(parts, 2)
    }
    exchanges["mean and std stand where q01 and q99 belong"] = FieldStats(field.q01, field.q99, field.mean, field.std)
    columns = linear_sum_assignment(_distances(field, data, floor).T)[1]
    moved = [f"{source} at {place}" for place, source in enumerate(columns) if place != source]
    if moved:
        exchanges[f"dimensions are permuted ({', '.join(moved)})"] = FieldStats(
            *(tuple(part[column] for column in columns) for part in parts.values())
        )
    return exchanges


def against_data(
    stats: NormalizationStats, data: NormalizationStats, fields: Sequence[str], trained_on: bool
) -> Iterator[Finding]:
    """The policy's statistics of the fields against the demonstrations'.

    Args:
        trained_on: the policy was trained on this data, so the two must be equal.
    """
    for name in fields:
        field, theirs = stats.fields[name], data.fields[name]
        if trained_on:
            apart, limits, kind = distance(field, theirs, stats.floor), SAME_LIMITS, "from those of its training data"
        else:
            apart, limits, kind = outlying(field, theirs, stats.floor), LIKE_LIMITS, "from where this data lies"
        why = explanation(name, stats, data)
        yield graded(
            f"statistics of {name}",
            "fault" if why else level_above(apart, *limits),
            (f"{why}: " if why else "") + f"at most {apart:.2g} standard deviations {kind}",
            "put the statistics of the training data into processor.json, or give --data that data",
        )


def against_environment(
    stats: NormalizationStats, proprio: Sequence[Mapping[str, FloatArray]], fields: Sequence[str]
) -> Iterator[Finding]:
    """The range of the environment's normalised proprioception: the network has never seen values far outside."""
    for name in fields:
        values = np.abs(np.array([stats.normalize(name, seen[name]) for seen in proprio]))
        far = values.max(axis=0)
        worst = int(far.argmax())
        yield graded(
            f"{name} here",
            level_above(float(far[worst]), FAR_WARNING, FAR_FAULT),
            f"normalised, at most {far[worst]:.1f} from 0 (dimension {worst})",
            "these are statistics of another field, unit, frame or robot: train on data of this environment",
        )
