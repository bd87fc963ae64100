"""Make videos of a finished run: ``python -m sim_eval.video runs/a --which failures``.

Plays the recorded actions back, as ``verify`` does, and renders the scene again: at any size, alone or in a grid.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from sim_eval.configs import VideoSize
from sim_eval.console import make_folder, run
from sim_eval.core.errors import SimEvalError
from sim_eval.core.programs import command
from sim_eval.policies.spatialvla.configuration_spatialvla import Count

if TYPE_CHECKING:
    from sim_eval.reporting.playback import Playback, Recorded

PROGRAM = command("video")
GRID = "grid.mp4"
SINGLE_SIZE, TILE_SIZE = 512, 288
LARGEST = 8192  # pixels of a side of a grid, which H.264 encoders and players take


@dataclass(frozen=True)
class VideoArguments:
    """Make videos of the recorded episodes of runs, one for each or one of several in a grid.

    Attributes:
        runs: run folders of sim_eval.rollout.
        episode: only these episodes of each run, counted from 0 in the order of manifest.json.
        which: all, only failures, or only successes.
        sample: only so many episodes, evenly spread.
        grid: one video, grid.mp4, of so many rows and columns of episodes, for example 2x3.
        size: height in pixels of the large picture; by default 512, in a grid 288.
        look: how that picture is rendered: faithful (the simulator's own look) or fast.
        out: folder for the videos, with a folder for each run if there are several; by default videos/ in each run, or
            in the first for a grid.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    episode: Annotated[tuple[int, ...], tyro.conf.arg(metavar="K [K ...]")] = ()
    which: Literal["all", "failures", "successes"] = "all"
    sample: Count | None = None
    grid: Annotated[str, tyro.conf.arg(metavar="ROWSxCOLUMNS")] = ""
    size: VideoSize | None = None
    look: Literal["fast", "faithful"] = "faithful"
    out: Path | None = None


def main(arguments: VideoArguments) -> int:
    """Runs the command; returns the exit code: 1 when an episode could not be played back."""
    size = arguments.size or (TILE_SIZE if arguments.grid else SINGLE_SIZE)
    rows, columns = grid_shape(arguments.grid, size)
    if not arguments.runs:
        raise SimEvalError("name one or more run folders, for example runs/NAME")
    if arguments.out:
        make_folder(arguments.out)
    from contextlib import closing

    from sim_eval.evaluation.run_folder import VIDEOS
    from sim_eval.reporting.playback import Playback

    episodes = chosen(arguments, min(filter(None, (rows * columns, arguments.sample)), default=None))
    with closing(Playback(size, arguments.look)) as playback:
        if not arguments.grid:
            return write_each(playback, episodes, video_folders(arguments.runs, arguments.out))
        path = (arguments.out or arguments.runs[0] / VIDEOS) / GRID
        playback.write_grid(episodes, columns, path)
        print(path)
    return 0


def grid_shape(text: str, size: int) -> tuple[int, int]:
    """Rows and columns of ``2x3``; zeros for an empty text.

    Args:
        size: height of a tile's picture in pixels.

    Raises:
        SimEvalError: it says something else, or the video would be too large for a player.
    """
    rows, _, columns = (text or "0x0").partition("x")
    if not (rows.isdecimal() and columns.isdecimal()) or (text and not int(rows) * int(columns)):
        raise SimEvalError(f"--grid {text}: give rows and columns, for example 2x3")
    if max(int(rows), int(columns) * 4 / 3) * size > LARGEST:
        raise SimEvalError(
            f"--grid {text}: with --size {size} it exceeds {LARGEST} pixels: choose fewer or a smaller size"
        )
    return int(rows), int(columns)


def video_folders(runs: Sequence[Path], out: Path | None) -> dict[Path, Path]:
    """Run folder -> where the videos of its episodes go.

    Raises:
        SimEvalError: two runs would go into one folder.
    """
    from sim_eval.evaluation.run_folder import VIDEOS

    if out is None or len(runs) == 1:
        return {run: out or run / VIDEOS for run in runs}
    folders = {run: out / run.resolve().name for run in runs}
    if len(set(folders.values())) < len(folders):
        raise SimEvalError("two run folders have one name, and --out would mix their videos: leave --out out")
    return folders


def chosen(arguments: VideoArguments, count: int | None) -> list[Recorded]:
    """The episodes of all runs that the options choose; at most ``count``, evenly spread.

    Raises:
        SimEvalError: there are none.
    """
    import numpy as np

    from sim_eval.evaluation.run_folder import read_run
    from sim_eval.evaluation.verification import choose_episodes
    from sim_eval.reporting.playback import Recorded

    wanted = {"all": (True, False), "failures": (False,), "successes": (True,)}[arguments.which]
    episodes = [
        Recorded(run, result.key, run.spec.name)
        for run in map(read_run, arguments.runs)
        for result in choose_episodes(run, arguments.episode)
        if result.success in wanted
    ]
    if not episodes:
        raise SimEvalError(f"no chosen episode is one of the {arguments.which}: choose others by --which or --episode")
    places = np.linspace(0, len(episodes) - 1, min(count or len(episodes), len(episodes))).round().astype(int)
    return [episodes[place] for place in places]


def write_each(playback: Playback, episodes: Sequence[Recorded], folders: Mapping[Path, Path]) -> int:
    """A video of each episode in its run's folder; why one cannot be made goes to stderr. Returns the exit code."""
    from tqdm import tqdm

    lost = 0
    for episode in tqdm(episodes, unit="video", file=sys.stderr, dynamic_ncols=True):
        try:
            print(playback.write(episode, folders[episode.run.folder]), flush=True)
        except SimEvalError as error:
            tqdm.write(f"no video: {error}", file=sys.stderr)
            lost += 1
    return int(lost > 0)


if __name__ == "__main__":
    run(main, VideoArguments, PROGRAM)
