"""Episodes as training windows, and the order in which training sees them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import EnvironmentSpec, TrainingWindow
from sim_eval.datasets.checks import set_problems
from sim_eval.datasets.episode_file import episode_files
from sim_eval.datasets.packing import PackedEpisode, open_packed


class EpisodeWindows(Sequence[TrainingWindow]):
    """The steps of episodes as training windows; their pictures are packed on the disk and decoded on access.

    10,000 windows of two 128 x 128 cameras take 0.9 GB of disk; a batch of 32 is decoded in 4 ms.

    Args:
        sources: episode files, or folders of them.
        chunk_size: actions in a window.
        every: windows begin at every so many steps of an episode; in each of a task's episodes at another first step.
        demonstrations: so many episodes of each task, the first by key; None: all.
        cache, workers: see :func:`sim_eval.datasets.packing.open_packed`.

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
        cache: Path | None = None,
        workers: int = 1,
    ) -> None:
        for name, number in (
            ("chunk_size", chunk_size),
            ("frame_stride", frame_stride),
            ("demonstrations", demonstrations),
        ):
            if number is not None and number < 1:
                raise SimEvalError(f"{name} must be 1 or more, not {number}")
        files = [file for source in ([sources] if isinstance(sources, Path) else sources) for file in _files(source)]
        if not files:
            raise SimEvalError("no demonstrations were named: give a folder that sim_eval.collect filled")
        packed = open_packed(list(dict.fromkeys(files)), cache, workers)
        if problems := set_problems({file: episode.header for file, episode in packed.items()}):
            raise SimEvalError(problems[0])
        self.chunk_size = chunk_size
        self.spec: EnvironmentSpec = packed[files[0]].header.spec
        # By key, so that neither the folder's name nor the order of arguments changes what training sees.
        ordered = sorted(packed.values(), key=lambda episode: episode.key)
        of_task = [list(group) for _, group in itertools.groupby(ordered, key=lambda episode: episode.key.task)]
        kept = [list(enumerate(group[:demonstrations])) for group in of_task]
        self.episodes: tuple[PackedEpisode, ...] = tuple(episode for group in kept for _, episode in group)
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


def batch_indices(
    groups: Sequence[NDArray[np.int64]], batch_size: int, seed: int, step: int, balance: float
) -> list[int]:
    """Which windows make up batch ``step``: a function of its arguments and of nothing else.

    Args:
        groups: the windows of each task.
        balance: 1 draws every task equally often, 0 every window; in between, a task's share is proportional to its
            number of windows to the power 1 - balance (temperature sampling, as multilingual models use it).
    """
    counts = np.array([len(group) for group in groups])
    shares = counts ** (1 - balance)
    rng = np.random.default_rng([seed, step])
    tasks = rng.choice(len(groups), size=batch_size, p=shares / shares.sum())
    return [int(groups[task][position]) for task, position in zip(tasks, rng.integers(counts[tasks]), strict=True)]


def batches(
    windows: EpisodeWindows, batch_size: int, seed: int, start_step: int = 0, balance: float = 0.5
) -> Iterator[list[TrainingWindow]]:
    """The windows of :func:`numbered_batches`."""
    return (
        [windows[index] for index in batch]
        for batch in numbered_batches(windows, batch_size, seed, start_step, balance)
    )


def numbered_batches(
    windows: EpisodeWindows, batch_size: int, seed: int, start_step: int = 0, balance: float = 0.5
) -> Iterator[list[int]]:
    """Windows' numbers in batches, for ever; a resumed run sees what an unbroken one would have seen.

    Args:
        balance: between tasks, see :func:`batch_indices`.

    Raises:
        SimEvalError: batch_size, seed, start_step or balance is out of range.
    """
    if batch_size < 1 or seed < 0 or start_step < 0 or not 0 <= balance <= 1:
        raise SimEvalError(
            "batches need batch_size >= 1, seed >= 0, start_step >= 0 and a balance between 0 and 1, "
            f"not {batch_size}, {seed}, {start_step} and {balance}"
        )
    tasks = np.array(windows.tasks)
    groups = [np.flatnonzero(tasks == task) for task in sorted(set(windows.tasks))]
    return (batch_indices(groups, batch_size, seed, step, balance) for step in itertools.count(start_step))


def _files(source: Path) -> list[Path]:
    if not source.is_dir():
        return [source]
    if files := episode_files(source):
        return files
    raise SimEvalError(
        f"no demonstrations in {source}: collect some with python -m sim_eval.collect --task robosuite/LiftWide "
        f"--policy scripted --episodes 150 --out {source}"
    )
