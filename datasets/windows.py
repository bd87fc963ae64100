"""Demonstrations as training windows, and the order in which training sees them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sim_eval.core.errors import SimEvalError
from sim_eval.core.programs import command
from sim_eval.core.types import EnvironmentSpec, TrainingWindow
from sim_eval.datasets.checks import set_problems, stored_problems
from sim_eval.datasets.episode_file import StoredEpisode, episode_files, open_episode
from sim_eval.datasets.stored_pictures import REMEDY


class EpisodeWindows(Sequence[TrainingWindow]):
    """The steps of episodes as training windows: a map-style dataset for torch's DataLoader.

    Pictures stay on the disk and are decoded on access, by threads and by forked or spawned processes alike.

    Args:
        sources: episode files, or folders of them.
        chunk_size: number of actions in a window.
        frame_stride: each episode gives a window at every so many steps. The first step differs among the episodes of
            a task.
        demonstrations: how many episodes of each task are used, the first by key; None: all.

    Attributes:
        episodes: sorted by key.
        tasks: task name of each window.
        spec: the robot, cameras, proprio and action that all of them share.

    Raises:
        SimEvalError: there is no episode, a file is unsound, a key occurs twice, or files may not be mixed.
    """

    def __init__(
        self,
        sources: Path | Sequence[Path],
        chunk_size: int,
        *,
        frame_stride: int = 1,
        demonstrations: int | None = None,
    ) -> None:
        numbers = {"chunk_size": chunk_size, "frame_stride": frame_stride, "demonstrations": demonstrations}
        for name, number in numbers.items():
            if number is not None and number < 1:
                raise SimEvalError(f"{name} must be 1 or more, not {number}")
        files = [file for source in ([sources] if isinstance(sources, Path) else sources) for file in _files(source)]
        if not files:
            raise SimEvalError("no demonstrations were named: give a folder that sim_eval.collect filled")
        opened: dict[Path, StoredEpisode] = {}
        for file in tqdm(dict.fromkeys(files), "opening demonstrations", delay=1, leave=False):
            opened[file] = open_episode(file)
            if problems := stored_problems(opened[file]):
                raise SimEvalError(f"{file}: {problems[0]}; {REMEDY}")
        if problems := set_problems({file: episode.header for file, episode in opened.items()}):
            raise SimEvalError(problems[0])
        self.chunk_size = chunk_size
        first, others = opened[files[0]].header.spec, [episode.proprio for episode in opened.values()]
        shared = {name: size for name, size in first.proprio.items() if all(name in proprio for proprio in others)}
        self.spec: EnvironmentSpec = replace(first, proprio=shared)
        # By key, so that neither the folder's name nor the order of arguments changes what training sees.
        ordered = sorted(opened.values(), key=lambda episode: episode.key)
        of_task = [list(group) for _, group in itertools.groupby(ordered, key=lambda episode: episode.key.task)]
        kept = [list(enumerate(group[:demonstrations])) for group in of_task]
        self.episodes: tuple[StoredEpisode, ...] = tuple(episode for group in kept for _, episode in group)
        self._starts = [
            (episode, step)
            for group in kept
            for number, episode in group
            for step in range(number % frame_stride, len(episode.actions), frame_stride)
        ]
        self.tasks = tuple(episode.key.task for episode, _ in self._starts)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> TrainingWindow:  # type: ignore[override]  # no slices
        episode, step = self._starts[index]
        labels = episode.actions[step : step + self.chunk_size]
        actions = np.zeros((self.chunk_size, self.spec.action.dim))
        actions[: len(labels)] = labels
        return TrainingWindow(episode.observation(step), actions, np.arange(self.chunk_size) < len(labels))


class TaskBalancedBatchSampler:
    """Endless batches of window indices, balanced between tasks: a ``batch_sampler`` for torch's DataLoader.

    Batch ``k`` depends only on the arguments and on ``k``, so a resumed training sees the batches that an unbroken one
    would have seen.

    Args:
        windows: the training windows.
        batch_size: windows in a batch.
        seed: of the random numbers.
        start_step: the number of the first batch.
        sampling_temperature: T of 1 or more. The share of a task is proportional to its number of windows to the power
            1 / T: with 1 every window is drawn equally often, with infinity every task (temperature sampling, as
            multilingual models use it).

    Raises:
        SimEvalError: an argument is out of range.
    """

    def __init__(
        self,
        windows: EpisodeWindows,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        sampling_temperature: float = 2.0,
    ) -> None:
        if batch_size < 1 or seed < 0 or start_step < 0 or not sampling_temperature >= 1:
            raise SimEvalError(
                "batches need batch_size >= 1, seed >= 0, start_step >= 0 and sampling_temperature >= 1, "
                f"not {batch_size}, {seed}, {start_step} and {sampling_temperature}"
            )
        tasks = np.array(windows.tasks)
        self._groups = [np.flatnonzero(tasks == task) for task in sorted(set(windows.tasks))]
        self._batch_size, self._seed, self._start = batch_size, seed, start_step
        self._temperature = sampling_temperature

    def __iter__(self) -> Iterator[list[int]]:
        for step in itertools.count(self._start):
            yield batch_indices(self._groups, self._batch_size, self._seed, step, self._temperature)


def batch_indices(
    groups: Sequence[NDArray[np.int64]], batch_size: int, seed: int, step: int, sampling_temperature: float
) -> list[int]:
    """The window indices of batch ``step``: a function of the arguments only.

    Args:
        groups: the window indices of each task.
        sampling_temperature: see :class:`TaskBalancedBatchSampler`.
    """
    counts = np.array([len(group) for group in groups])
    shares = counts ** (1 / sampling_temperature)
    rng = np.random.default_rng([seed, step])
    tasks = rng.choice(len(groups), size=batch_size, p=shares / shares.sum())
    return [int(groups[task][position]) for task, position in zip(tasks, rng.integers(counts[tasks]), strict=True)]


def _files(source: Path) -> list[Path]:
    if not source.is_dir():
        return [source]
    if files := episode_files(source):
        return files
    raise SimEvalError(
        f"no demonstrations in {source}: collect some with {command('collect')} --task robosuite/LiftWide "
        f"--policy scripted --episodes 150 --out {source}"
    )
