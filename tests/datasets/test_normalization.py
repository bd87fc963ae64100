from collections.abc import Callable

import numpy as np
import pytest

from sim_eval.core.errors import SimEvalError
from sim_eval.core.normalization import NormalizationStats, normalization_stats
from sim_eval.datasets.episode_file import Episode

Make = Callable[..., Episode]


def test_statistics_are_numpys_over_every_step(make_episode: Make) -> None:
    episodes = [make_episode(0, steps=40), make_episode(1, steps=7)]
    stats = normalization_stats(episodes, "quantile")
    positions = np.array([seen.proprio["eef_pos"] for episode in episodes for seen in episode.observations])
    labels = np.concatenate([episode.actions for episode in episodes])
    assert set(stats.fields) == {"action", "eef_pos", "gripper_qpos"}
    for name, values in (("action", labels), ("eef_pos", positions)):
        assert stats.fields[name].mean == tuple(np.mean(values, axis=0))
        assert stats.fields[name].std == tuple(np.std(values, axis=0))
        assert stats.fields[name].q01 == tuple(np.quantile(values, 0.01, axis=0))
        assert stats.fields[name].q99 == tuple(np.quantile(values, 0.99, axis=0))
    assert NormalizationStats.from_dict(stats.to_dict()) == stats


def test_normalised_labels_have_the_promised_scale(make_episode: Make) -> None:
    episodes = [make_episode(0, steps=200)]
    whitened = normalization_stats(episodes, "mean_std").normalize("action", episodes[0].actions)
    assert np.allclose(whitened.mean(axis=0), 0)
    assert np.allclose(whitened.std(axis=0), 1)
    boxed = normalization_stats(episodes, "quantile").normalize("action", episodes[0].actions)
    assert np.mean(np.abs(boxed) <= 1) == pytest.approx(0.98, abs=0.01)


def test_no_episodes_is_refused() -> None:
    with pytest.raises(SimEvalError, match="at least one episode"):
        normalization_stats([], "quantile")
