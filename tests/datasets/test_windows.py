import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from sim_eval.datasets.episode_file import Episode, episode_files, episode_name, write_episode
from sim_eval.datasets.windows import EpisodeWindows, batch_indices, batches
from sim_eval.envs.contract import SimEvalError, WorkspaceBox

Make = Callable[..., Episode]


def _write(folder: Path, *episodes: Episode) -> Path:
    for episode in episodes:
        write_episode(folder / episode_name(episode.key), episode)
    return folder


@pytest.mark.parametrize("horizon", [1, 4, 9])
def test_windows_are_what_counting_by_hand_gives(tmp_path: Path, make_episode: Make, horizon: int) -> None:
    episodes = [make_episode(0, steps=6), make_episode(1, steps=2), make_episode(2, steps=5)]
    windows = EpisodeWindows(_write(tmp_path, *episodes), horizon)
    assert len(windows) == 13
    position = 0
    for episode in episodes:
        for step in range(len(episode.actions)):
            window = windows[position]
            assert window.actions.shape == (horizon, 3)
            assert window.actions.dtype == np.float64
            for ahead in range(horizon):
                inside = step + ahead < len(episode.actions)
                assert window.valid[ahead] == inside
                # The labels, not what the disturbed robot did.
                expected = episode.actions[step + ahead] if inside else np.zeros(3)
                assert np.array_equal(window.actions[ahead], expected)
            seen = episode.observations[step]
            for name, view in seen.views.items():
                assert np.array_equal(window.observation.views[name].rgb, view.rgb)
                assert np.array_equal(window.observation.views[name].depth, view.depth)
                assert np.array_equal(window.observation.views[name].camera_to_world, view.camera_to_world)
            assert np.array_equal(window.observation.proprio["eef_pos"], seen.proprio["eef_pos"])
            position += 1
    with pytest.raises(IndexError):
        windows[13]


def test_a_window_may_be_changed_without_changing_the_episode(tmp_path: Path, make_episode: Make) -> None:
    windows = EpisodeWindows(_write(tmp_path, make_episode(0)), 3)
    windows[0].actions[:] = 7
    assert np.array_equal(windows[0].actions, windows.episodes[0].actions[:3])


def test_the_order_of_sources_does_not_matter(tmp_path: Path, make_episode: Make) -> None:
    folders = [_write(tmp_path / name, make_episode(index)) for name, index in (("a", 2), ("b", 0), ("c", 1))]
    files = [file for folder in reversed(folders) for file in episode_files(folder)]
    for sources in (folders, files, [*folders, *files]):
        assert [episode.key.index for episode in EpisodeWindows(sources, 2).episodes] == [0, 1, 2]


def test_every_epoch_is_another_permutation() -> None:
    stream = [index for step in range(30) for index in batch_indices(10, 4, seed=5, step=step)]
    epochs = [stream[start : start + 10] for start in range(0, 120, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 12
    assert batch_indices(10, 4, 5, 0) != batch_indices(10, 4, 6, 0)
    assert sorted(batch_indices(3, 9, 0, 4)) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_a_resumed_run_sees_the_same_batches(tmp_path: Path, make_episode: Make) -> None:
    folder = _write(tmp_path, make_episode(0), make_episode(1))
    whole = [[w.actions.tobytes() for w in b] for b in islice(batches(EpisodeWindows(folder, 2), 3, 1), 12)]
    resumed = islice(batches(EpisodeWindows(folder, 2), 3, 1, start_step=5), 7)
    assert [[w.actions.tobytes() for w in b] for b in resumed] == whole[5:]
    with pytest.raises(SimEvalError, match="batch_size"):
        batches(EpisodeWindows(folder, 2), 0, 1)


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path, make_episode: Make) -> None:
    other = make_episode(1)
    action = replace(other.action, control_hz=10.0)
    bare = [replace(seen, proprio={"eef_pos": seen.proprio["eef_pos"]}) for seen in other.observations]
    odd = {
        "robot": replace(other, robot="Sawyer"),
        "cameras": make_episode(1, height=8),
        "action": replace(other, action=action),
        "proprio": replace(other, observations=bare),
    }
    for field, episode in odd.items():
        folder = _write(tmp_path / field, make_episode(0), episode)
        with pytest.raises(SimEvalError, match=rf"_00001\.hdf5: {field} is .*do not mix"):
            EpisodeWindows(folder, 2)


def test_tasks_may_be_mixed(tmp_path: Path, make_episode: Make) -> None:
    other = replace(make_episode(0), key=replace(make_episode(0).key, task="robosuite/Lift"))
    box = WorkspaceBox((0.0,) * 3, (1.0,) * 3)
    assert len(EpisodeWindows(_write(tmp_path, make_episode(0), replace(other, workspace=box)), 2)) == 10


def test_bad_sources_are_one_clear_line(tmp_path: Path, make_episode: Make) -> None:
    with pytest.raises(SimEvalError, match=r"python -m sim_eval\.collect"):
        EpisodeWindows(tmp_path, 2)
    with pytest.raises(SimEvalError, match="nowhere"):
        EpisodeWindows(tmp_path / "nowhere", 2)
    _write(tmp_path, make_episode(0), make_episode(1))
    with pytest.raises(SimEvalError, match="horizon"):
        EpisodeWindows(tmp_path, 0)
    shutil.copytree(tmp_path, tmp_path / "again")
    with pytest.raises(SimEvalError, match="is in both"):
        EpisodeWindows([tmp_path, tmp_path / "again"], 2)
    os.truncate(episode_files(tmp_path)[1], 4000)
    with pytest.raises(SimEvalError, match=r"_00001\.hdf5 is not a sound episode"):
        EpisodeWindows(tmp_path, 2)


def test_data_that_would_poison_training_is_refused(tmp_path: Path, make_episode: Make) -> None:
    actions = make_episode(0).actions.copy()
    actions[3, 1] = np.nan
    with pytest.raises(SimEvalError, match=r"_00000\.hdf5: actions is not finite"):
        EpisodeWindows(_write(tmp_path, make_episode(0, actions=actions)), 2)
