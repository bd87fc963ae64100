"""Statistics of labels and proprioception, against numbers that can be checked by hand."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from sim_eval.core.decoding import decode, encode
from sim_eval.core.errors import SimEvalError
from sim_eval.core.normalization import NormalizationMode, NormalizationStats, normalization_stats
from sim_eval.core.types import Observation
from sim_eval.datasets.episode_file import Episode

Make = Callable[..., Episode]


def two(make_episode: Make) -> list[Episode]:
    """Two episodes, of 300 steps and of 100, whose numbers are written down here: the label's first dimension counts
    from 0 to 399, its second one is always 7, and its third one is 1 in the second episode only."""
    first, second = make_episode(0, steps=300), make_episode(1, steps=100)
    count = np.arange(400.0)
    labels = np.stack([count, np.full(400, 7.0), count >= 300], axis=1)
    return [replace(first, actions=labels[:300]), replace(second, actions=labels[300:])]


def test_every_step_counts_once_however_long_its_episode_is(make_episode: Make) -> None:
    stats = normalization_stats(two(make_episode), "quantile").fields["action"]
    assert stats.mean == pytest.approx((199.5, 7.0, 0.25))
    # Of 0, 1, ..., n - 1 the variance is (n^2 - 1) / 12, and of zeros and ones p (1 - p).
    assert stats.std == pytest.approx((math.sqrt((400**2 - 1) / 12), 0.0, math.sqrt(0.25 * 0.75)))
    assert (stats.q01[0], stats.q99[0]) == pytest.approx((3.99, 395.01))
    assert (stats.q01[1:], stats.q99[1:]) == ((7.0, 0.0), (7.0, 1.0))


def test_each_field_has_its_own_statistics(make_episode: Make) -> None:
    episodes = [make_episode(0, steps=40), make_episode(1, steps=7)]
    moved = [replace(each, observations=[shifted(seen) for seen in each.observations]) for each in episodes]
    before, after = (normalization_stats(each, "mean_std").fields for each in (episodes, moved))
    assert set(before) == {"action", "eef_pos", "gripper_qpos"}
    assert (after["action"], after["gripper_qpos"]) == (before["action"], before["gripper_qpos"])
    assert after["eef_pos"].mean == pytest.approx(tuple(value + 5 for value in before["eef_pos"].mean))
    assert after["eef_pos"].std == pytest.approx(before["eef_pos"].std)


def shifted(seen: Observation) -> Observation:
    return replace(seen, proprio={**seen.proprio, "eef_pos": seen.proprio["eef_pos"] + 5})


@pytest.mark.parametrize("mode", get_args(NormalizationMode))
def test_labels_are_normalised_as_promised_and_come_back(make_episode: Make, mode: NormalizationMode) -> None:
    episodes = two(make_episode)
    labels = np.concatenate([episode.actions for episode in episodes])
    stats = normalization_stats(episodes, mode)
    normalized = stats.normalize("action", labels)
    if mode == "mean_std":
        assert np.allclose(normalized[:, [0, 2]].mean(axis=0), 0)
        assert np.allclose(normalized[:, [0, 2]].std(axis=0), 1)
    else:
        assert np.mean(np.abs(normalized[:, 0]) <= 1) == pytest.approx(0.98, abs=0.001)
        assert set(normalized[:, 2]) == {-1.0, 1.0}
    assert not normalized[:, 1].any(), "what never varies is centred, and its noise is not blown up"
    assert stats.normalize("action", np.array([0.0, 7.001, 0.0]))[1] == pytest.approx(0.001)
    np.testing.assert_allclose(stats.denormalize("action", normalized), labels, atol=1e-12)
    with pytest.raises(SimEvalError, match=r"'elbow'; known: action, eef_pos, gripper_qpos"):
        stats.normalize("elbow", labels)


def test_statistics_survive_json_bit_by_bit(make_episode: Make) -> None:
    stats = normalization_stats([make_episode(0, steps=9)], "quantile")
    assert decode(NormalizationStats, json.loads(json.dumps(encode(stats)))) == stats


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mode": "min_max"}, "'mode': input should be 'mean_std' or 'quantile', not 'min_max'"),
        ({"fields": {"action": {"mean": [0.0]}}}, r"missing field 'fields.action.std' \(and 2 more\)"),
        ({"fields": 3}, "'fields'"),
        ({"mean": 1}, "unknown field 'mean': the fields are mode, fields, floor"),
    ],
)
def test_damaged_statistics_are_one_line(change: dict[str, object], words: str) -> None:
    with pytest.raises(SimEvalError, match=words) as told:
        decode(NormalizationStats, {"mode": "mean_std", "fields": {}, **change})
    assert "\n" not in str(told.value)


def test_no_episodes_is_refused() -> None:
    with pytest.raises(SimEvalError, match="at least one episode"):
        normalization_stats([], "quantile")
