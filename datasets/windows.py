"""Episodes as training windows, and the order in which training sees them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sim_eval.datasets.checks import episode_problems, set_problems
from sim_eval.datasets.episode_file import Episode, episode_files, read_episode, read_header
from sim_eval.envs.contract import EnvironmentSpec, SimEvalError, TrainingWindow


class EpisodeWindows(Sequence[TrainingWindow]):
    """Every step of every episode as a training window, all of it decoded in memory.

    150 episodes of 60 steps with two 128 x 128 cameras take 2 GB.

    Args:
        sources: episode files, or folders of them.
        horizon: actions in a window.

    Attributes:
        episodes: as read, sorted by key.
        spec: the robot, cameras, proprio and action that all of them share.

    Raises:
        SimEvalError: there is no episode, a file is unsound, a key occurs twice, or files may not be mixed.
    """

    def __init__(self, sources: Path | Sequence[Path], horizon: int) -> None:
        if horizon < 1:
            raise SimEvalError(f"horizon must be 1 or more, not {horizon}")
        files = [file for source in ([sources] if isinstance(sources, Path) else sources) for file in _files(source)]
        if not files:
            raise SimEvalError("no demonstrations were named: give a folder that sim_eval.collect filled")
        headers = {file: read_header(file) for file in dict.fromkeys(files)}
        if problems := set_problems(headers):
            raise SimEvalError(problems[0])
        self.horizon = horizon
        self.spec: EnvironmentSpec = headers[files[0]].spec
        # By key, so that neither the folder's name nor the order of arguments changes what training sees.
        ordered = sorted(headers, key=lambda file: headers[file].key)
        self.episodes = tuple(_load(file) for file in tqdm(ordered, "reading demonstrations", delay=1, leave=False))
        self._starts = [(episode, step) for episode in self.episodes for step in range(len(episode.actions))]

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> TrainingWindow:  # type: ignore[override]  # no slices
        episode, step = self._starts[index]
        labels = episode.actions[step : step + self.horizon]
        actions = np.zeros((self.horizon, self.spec.action.dim))
        actions[: len(labels)] = labels
        return TrainingWindow(episode.observations[step], actions, np.arange(self.horizon) < len(labels))


def batch_indices(count: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Which of ``count`` windows make up batch ``step``: a function of its arguments and of nothing else.

    The batches, laid end to end, are one permutation of all windows after another.
    """
    positions = range(step * batch_size, (step + 1) * batch_size)
    return [int(_permutation(count, seed, position // count)[position % count]) for position in positions]


def batches(
    windows: Sequence[TrainingWindow], batch_size: int, seed: int, start_step: int = 0
) -> Iterator[list[TrainingWindow]]:
    """Batches for ever, from ``start_step`` on; a resumed run sees what an unbroken one would have seen.

    Raises:
        SimEvalError: batch_size, seed or start_step is out of range, or there are no windows.
    """
    if batch_size < 1 or seed < 0 or start_step < 0 or not len(windows):
        raise SimEvalError(
            "batches need at least one window, batch_size >= 1, seed >= 0 and start_step >= 0, "
            f"not {len(windows)}, {batch_size}, {seed} and {start_step}"
        )
    return _batches(windows, batch_size, seed, start_step)


def _batches(
    windows: Sequence[TrainingWindow], batch_size: int, seed: int, step: int
) -> Iterator[list[TrainingWindow]]:
    while True:
        yield [windows[index] for index in batch_indices(len(windows), batch_size, seed, step)]
        step += 1


@lru_cache(maxsize=2)
def _permutation(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(count)


def _files(source: Path) -> list[Path]:
    if not source.is_dir():
        return [source]
    if files := episode_files(source):
        return files
    raise SimEvalError(
        f"no demonstrations in {source}: collect some with python -m sim_eval.collect --task robosuite/LiftWide "
        f"--policy scripted --episodes 150 --out {source}"
    )


def _load(file: Path) -> Episode:
    episode = read_episode(file)
    if problems := episode_problems(episode):
        raise SimEvalError(f"{file}: {problems[0]}; delete it and collect it again")
    return episode
