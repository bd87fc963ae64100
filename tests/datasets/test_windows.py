import os
import shutil
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chi2

from sim_eval.core.errors import SimEvalError
from sim_eval.core.normalization import normalization_stats
from sim_eval.core.types import TrainingWindow, WorkspaceBox
from sim_eval.datasets.episode_file import Episode, episode_files, file_name, write_episode
from sim_eval.datasets.windows import EpisodeWindows, TaskBalancedBatchSampler, batch_indices

Make = Callable[..., Episode]


def _write(folder: Path, *episodes: Episode) -> Path:
    for episode in episodes:
        write_episode(folder / file_name(episode.key), episode)
    return folder


def _of_task(episode: Episode, task: str) -> Episode:
    return replace(episode, key=replace(episode.key, task=task))


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


@pytest.mark.parametrize(
    ("temperature", "shares"),
    [(1.0, [900 / 1009, 100 / 1009, 9 / 1009]), (2.0, [30 / 43, 10 / 43, 3 / 43]), (np.inf, [1 / 3, 1 / 3, 1 / 3])],
)
def test_each_task_gets_its_share_and_its_windows_are_drawn_alike(temperature: float, shares: list[float]) -> None:
    groups = np.split(np.arange(1009), [900, 1000])
    flow_samples = np.concatenate([batch_indices(groups, 32, 3, step, temperature) for step in range(2000)])
    for group, share in zip(groups, shares, strict=True):
        times = np.bincount(flow_samples, minlength=1009)[group]
        expected = len(flow_samples) * share
        assert abs(times.sum() - expected) < 4.5 * np.sqrt(expected * (1 - share))  # a chance of 1 in 100,000
        each = expected / len(group)
        assert chi2.sf(((times - each) ** 2 / each).sum(), len(group)) > 1e-5


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    groups = [np.arange(5), np.arange(5, 40)]
    stream = [tuple(batch_indices(groups, 8, seed, step, 2.0)) for seed in range(3) for step in range(20)]
    assert len(set(stream)) == 60
    assert stream == [tuple(batch_indices(groups, 8, seed, step, 2.0)) for seed in range(3) for step in range(20)]


@pytest.mark.parametrize("balance", [0.0, 0.2, 0.5, 1.0])
def test_batches_are_those_of_version_0_1(balance: float) -> None:
    # Its shares were n ** (1 - balance), so trainings of today see what trainings of then saw.
    groups = np.split(np.arange(1009), [900, 1000])
    counts = np.array([900, 100, 9])
    temperature = 1 / (1 - balance) if balance < 1 else np.inf
    for step in range(200):
        rng = np.random.default_rng([7, step])
        shares = counts ** (1 - balance)
        tasks = rng.choice(3, size=32, p=shares / shares.sum())
        positions = rng.integers(counts[tasks])
        expected = [groups[task][position] for task, position in zip(tasks, positions, strict=True)]
        assert batch_indices(groups, 32, 7, step, temperature) == expected


def test_a_resumed_run_sees_the_same_batches(tmp_path: Path, make_episode: Make) -> None:
    folder = _write(tmp_path, make_episode(0), make_episode(1), _of_task(make_episode(2), "robosuite/Lift"))
    sampler = TaskBalancedBatchSampler(EpisodeWindows(folder, 2), 3, 1)
    whole = list(islice(sampler, 12))
    assert list(islice(sampler, 12)) == whole  # iterated again, it begins again
    assert list(islice(TaskBalancedBatchSampler(EpisodeWindows(folder, 2), 3, 1, start_step=5), 7)) == whole[5:]
    temperatures = ({"sampling_temperature": 0.9}, {"sampling_temperature": float("nan")})
    for wrong in ({"batch_size": 0}, {"seed": -1}, {"start_step": -1}, *temperatures):
        with pytest.raises(SimEvalError, match=r"batch_size >= 1.*sampling_temperature >= 1"):
            TaskBalancedBatchSampler(EpisodeWindows(folder, 2), **{"batch_size": 3, "seed": 1, **wrong})  # type: ignore[arg-type]


def test_batches_follow_the_temperature(tmp_path: Path, make_episode: Make) -> None:
    rare = _of_task(replace(make_episode(0, steps=4), instruction="stack them"), "robosuite/Stack")
    windows = EpisodeWindows(_write(tmp_path, *(make_episode(index, steps=9) for index in range(4)), rare), 2)
    assert windows.tasks == ("robosuite/LiftWide",) * 36 + ("robosuite/Stack",) * 4
    for index in (0, 35, 36, 39):
        sentence = "stack them" if windows.tasks[index] == "robosuite/Stack" else "lift the cube"
        assert windows[index].observation.instruction == sentence
    for temperature, share in ((1.0, 0.1), (2.0, 0.25), (np.inf, 0.5)):
        sampler = TaskBalancedBatchSampler(windows, 20, 0, sampling_temperature=temperature)
        drawn = [windows.tasks[index] for batch in islice(sampler, 50) for index in batch]
        assert Counter(drawn)["robosuite/Stack"] / len(drawn) == pytest.approx(share, abs=0.06)


def _collate(windows: list[TrainingWindow]) -> list[tuple[bytes, bytes]]:
    """Actions and a picture; decoding happens in the loader's worker."""
    return [(each.actions.tobytes(), each.observation.views["agentview"].rgb.tobytes()) for each in windows]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_torchs_data_loader_takes_windows_and_sampler(tmp_path: Path, make_episode: Make, method: str) -> None:
    from torch.utils.data import DataLoader

    windows = EpisodeWindows(_write(tmp_path, make_episode(0), make_episode(1)), 2)
    sampler = TaskBalancedBatchSampler(windows, 3, seed=1)
    expected = [_collate([windows[index] for index in batch]) for batch in islice(sampler, 4)]
    loader = DataLoader(
        windows,  # type: ignore[arg-type]
        batch_sampler=sampler,
        collate_fn=_collate,
        num_workers=1,
        multiprocessing_context=method,
    )
    assert list(islice(loader, 4)) == expected


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


def test_episodes_from_before_gripper_opening_go_with_later_ones(tmp_path: Path, make_episode: Make) -> None:
    later = make_episode(0)
    seen = [replace(each, proprio={**each.proprio, "gripper_opening": np.ones(1)}) for each in later.observations]
    windows = EpisodeWindows(_write(tmp_path, replace(later, observations=seen), make_episode(1)), 2)
    assert list(windows.spec.proprio) == ["eef_pos", "gripper_qpos"]
    assert set(normalization_stats(windows.episodes, "mean_std").fields) == {"action", "eef_pos", "gripper_qpos"}


def test_tasks_may_be_mixed(tmp_path: Path, make_episode: Make) -> None:
    box = WorkspaceBox((0.0,) * 3, (1.0,) * 3)
    other = replace(_of_task(make_episode(0), "robosuite/Lift"), workspace=box)
    assert len(EpisodeWindows(_write(tmp_path, make_episode(0), other), 2)) == 10


def test_not_all_pictures_are_held_decoded(tmp_path: Path, make_episode: Make) -> None:
    black = make_episode(0, steps=8, height=128, width=128)
    views = {name: replace(view, rgb=view.rgb * 0) for name, view in black.observations[0].views.items()}
    views = {name: replace(view, depth=np.ones_like(view.depth)) for name, view in views.items()}
    dark = replace(black, observations=[replace(black.observations[0], views=views)] * 8)
    _write(tmp_path, *(replace(dark, key=replace(dark.key, index=index)) for index in range(12)))
    decoded = 12 * 8 * 2 * 128 * 128 * 7
    tracemalloc.start()
    try:
        windows = EpisodeWindows(tmp_path, 2)
        normalization_stats(windows.episodes, "mean_std")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(windows) == 96
    assert peak < decoded / 3


def test_bad_sources_are_one_clear_line(tmp_path: Path, make_episode: Make) -> None:
    with pytest.raises(SimEvalError, match=r"python -m sim_eval\.collect"):
        EpisodeWindows(tmp_path, 2)
    with pytest.raises(SimEvalError, match="nowhere"):
        EpisodeWindows(tmp_path / "nowhere", 2)
    _write(tmp_path, make_episode(0), make_episode(1))
    with pytest.raises(SimEvalError, match="chunk_size"):
        EpisodeWindows(tmp_path, 0)
    shutil.copytree(tmp_path, tmp_path / "again")
    with pytest.raises(SimEvalError, match="is in both"):
        EpisodeWindows([tmp_path, tmp_path / "again"], 2)
    os.truncate(episode_files(tmp_path)[1], 4000)
    with pytest.raises(SimEvalError, match=r"_00001\.hdf5 is not a sound episode"):
        EpisodeWindows(tmp_path, 2)


def test_data_that_would_poison_training_is_refused(tmp_path: Path, make_episode: Make) -> None:
    good = make_episode(0)
    actions = good.actions.copy()
    actions[3, 1] = np.nan
    seen = good.observations[2]
    view = seen.views["agentview"]
    depth = view.depth.copy()
    depth[4, 5] = np.inf

    def changed(**parts: object) -> Episode:
        views = {**seen.views, "agentview": replace(view, **parts)}  # type: ignore[arg-type]
        return replace(good, observations=[*good.observations[:2], replace(seen, views=views), *good.observations[3:]])

    bad = {
        "actions is not finite": replace(good, actions=actions),
        "actions leave the action bounds": replace(good, actions=good.actions * 3),
        "'agentview': depth must be finite": changed(depth=depth),
        "'agentview' at step 2: camera_to_world is not": changed(camera_to_world=np.full((4, 4), np.nan)),
        "'agentview' at step 2: intrinsics are not": changed(intrinsics=view.intrinsics.T),
        "proprio 'eef_pos' is not finite": replace(
            good, observations=[replace(each, proprio={"eef_pos": np.full(3, np.nan)}) for each in good.observations]
        ),
    }
    for number, (problem, episode) in enumerate(bad.items()):
        with pytest.raises(SimEvalError, match=rf"_00000\.hdf5: .*{problem}.*collect it again"):
            EpisodeWindows(_write(tmp_path / str(number), episode), 2)


def test_windows_at_every_third_step_have_all_phases_and_whole_chunks(tmp_path: Path, make_episode: Make) -> None:
    lengths = (7, 5, 6, 4)
    folder = _write(tmp_path, *(make_episode(index, steps=steps) for index, steps in enumerate(lengths)))
    whole = EpisodeWindows(folder, 3)
    few = EpisodeWindows(folder, 3, frame_stride=3)
    # The first step is 0, 1, 2 and 0 again.
    steps = [(0, 0), (0, 3), (0, 6), (1, 1), (1, 4), (2, 2), (2, 5), (3, 0), (3, 3)]
    assert len(few) == len(few.tasks) == len(steps)
    for number, (episode, step) in enumerate(steps):
        mine, theirs = few[number], whole[sum(lengths[:episode]) + step]
        assert mine.actions.tobytes() == theirs.actions.tobytes()
        assert mine.valid.tobytes() == theirs.valid.tobytes()
        assert np.array_equal(mine.observation.views["agentview"].rgb, theirs.observation.views["agentview"].rgb)
    assert len(few.episodes) == 4
    assert normalization_stats(few.episodes, "quantile") == normalization_stats(whole.episodes, "quantile")


def test_so_many_demonstrations_are_the_first_of_each_task(tmp_path: Path, make_episode: Make) -> None:
    lift = [_of_task(make_episode(index, steps=3), "robosuite/Lift") for index in (9, 2, 4)]
    folder = _write(tmp_path, *lift, *(make_episode(index, steps=4) for index in (1, 0)))
    windows = EpisodeWindows(folder, 2, demonstrations=2, frame_stride=2)
    found = [(episode.key.task, episode.key.index) for episode in windows.episodes]
    assert found == [("robosuite/Lift", 2), ("robosuite/Lift", 4), ("robosuite/LiftWide", 0), ("robosuite/LiftWide", 1)]
    # Each task begins to count its episodes anew.
    assert windows.tasks == ("robosuite/Lift",) * 3 + ("robosuite/LiftWide",) * 4
    for wrong in ({"frame_stride": 0}, {"demonstrations": 0}):
        with pytest.raises(SimEvalError, match=f"{next(iter(wrong))} must be 1 or more, not 0"):
            EpisodeWindows(folder, 2, **wrong)  # type: ignore[arg-type]
