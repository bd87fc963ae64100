"""A video of an episode: recorded while it runs, rendered after its end."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from itertools import chain, repeat
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from sim_eval.configs import VideoChoice
from sim_eval.core.errors import SimEvalError
from sim_eval.core.files import atomic
from sim_eval.core.types import (
    ActionChunk,
    EpisodeKey,
    Observation,
    Recorder,
    RenderMode,
    Rerenderable,
    Simulator,
    Status,
)
from sim_eval.policies.policy import PolicySpec
from sim_eval.reporting.video_layout import EpisodeLayout, Layout, Picture, Story, third_person_size

HIGHEST_RATE = 30.0  # frames a second; of faster control every n-th step is shown
HOLD_SECONDS = 1.0  # for which the last frame stays


class VideoRecorder(Recorder):
    """Writes ``<task>_<split>_<index>_<success|failure>.mp4`` of chosen episodes, H.264 in real time.

    While an episode runs, only the poses in its scene are kept; what the policy sees is not touched. A simulator that
    cannot be rendered again (:class:`Rerenderable`) is observed at each step instead, and its first camera is enlarged.

    Args:
        folder: for the videos.
        policy: whose cameras are shown; all cameras for a policy without any.
        choice: which episodes; a number: the first so many indices from ``first`` on, of each task.
        size: height of the large picture in pixels.
        look: its rendering mode.
        still_working: is called for each frame.
        layout: draws the frames.
        label: names the policy in the video; by default its name.
    """

    def __init__(
        self,
        folder: Path,
        policy: PolicySpec,
        choice: VideoChoice = "all",
        first: int = 0,
        size: int = 512,
        look: RenderMode = "faithful",
        still_working: Callable[[], object] = lambda: None,
        layout: type[Layout] = EpisodeLayout,
        label: str = "",
    ) -> None:
        self._folder, self._policy, self._label = folder, policy, label or policy.name
        self._choice, self._first = choice, first
        self._size, self._look, self._layout = size, look, layout
        self._still_working = still_working

    def start(self, simulator: Simulator, key: EpisodeKey, instruction: str) -> None:
        self._wanted = self._choice in ("all", "failures") or (
            isinstance(self._choice, int) and key.index - self._first < self._choice
        )
        if not self._wanted:
            return
        self._key, self._instruction = key, instruction
        self._stride = max(1, ceil(simulator.spec.action.control_hz / HIGHEST_RATE))
        self._asked: list[int] = []
        self._statuses: list[Status] = []
        self._kept: dict[int, Any] = {}  # control steps -> pose, or views
        self._keep(simulator)

    def asked(self, observation: Observation, chunk: ActionChunk) -> None:
        if self._wanted:
            self._asked.append(len(self._statuses))

    def after_act(self, simulator: Simulator, status: Status) -> None:
        if not self._wanted:
            return
        if len(self._statuses) % self._stride:  # between two frames; only the last step is kept always
            del self._kept[len(self._statuses)]
        self._statuses.append(status)
        self._keep(simulator)

    def finish(self, simulator: Simulator, success: bool) -> None:
        if not self._wanted or (success and self._choice == "failures"):
            return
        task, control_hz = simulator.task, simulator.spec.action.control_hz
        story = Story(
            self._key,
            self._label,
            self._instruction,
            task.workspace,
            task.phases,
            self._statuses,
            self._asked,
            success,
            task.max_episode_steps,
            control_hz,
        )
        outcome = "success" if success else "failure"
        path = self._folder / f"{self._key.stem}_{outcome}.mp4"
        with atomic(path) as partial, closing(self._frames(simulator, story)) as frames:
            write_video(partial, frames, control_hz / self._stride, self._layout.CRF)
        self._kept = {}

    def _keep(self, simulator: Simulator) -> None:
        """Keeps what the frame of this instant needs."""
        self._kept[len(self._statuses)] = (
            simulator.pose()
            if isinstance(simulator, Rerenderable)
            else simulator.observe(self._cameras(simulator) or None).views
        )

    def _cameras(self, simulator: Simulator) -> tuple[str, ...]:
        return tuple(self._policy.cameras or simulator.spec.cameras)

    def _frames(self, simulator: Simulator, story: Story) -> Generator[Picture, None, None]:
        if isinstance(simulator, Rerenderable):
            size = third_person_size(self._size)
            pictures = simulator.rerender(self._kept.values(), self._look, size, self._cameras(simulator))
        else:
            pictures = ((next(iter(views.values())).rgb, views) for views in self._kept.values())
        layout: Layout | None = None
        with closing(pictures):  # an interrupt, too, ends the rendering before anyone closes the simulator
            for step, (large, views) in zip(self._kept, pictures, strict=True):
                layout = layout or self._layout(story, views, self._size)
                self._still_working()
                frame = layout.frame(step, large, views)
                yield frame
        yield from repeat(frame, round(HOLD_SECONDS * story.control_hz / self._stride))


def write_video(path: Path, frames: Iterator[Picture], fps: float, crf: int = 20) -> None:
    """Writes uint8 frames [H, W, 3] of one even size as H.264 in yuv420p, with the index in front.

    Args:
        crf: ffmpeg's constant rate factor; the lower, the better the pictures and the larger the file.
    """
    import imageio_ffmpeg

    first = next(frames)
    writer = imageio_ffmpeg.write_frames(
        str(path),
        (first.shape[1], first.shape[0]),
        fps=fps,
        codec="libx264",
        pix_fmt_out="yuv420p",
        macro_block_size=2,
        ffmpeg_log_level="error",
        output_params=["-preset", "veryfast", "-crf", str(crf), "-movflags", "+faststart"],
    )
    with closing(writer):
        writer.send(None)
        for frame in chain([first], frames):
            writer.send(np.ascontiguousarray(frame))


def read_video(path: Path) -> tuple[float, Iterator[Picture]]:
    """A video's frame rate in Hz, and its frames, uint8 [H, W, 3].

    Raises:
        SimEvalError: it cannot be read.
    """
    import imageio_ffmpeg

    reader = imageio_ffmpeg.read_frames(str(path))
    try:
        about = next(reader)
    except (OSError, RuntimeError) as error:
        raise SimEvalError(f"{path} is damaged: delete it") from error
    width, height = about["size"]
    return float(about["fps"]), (np.frombuffer(data, np.uint8).reshape(height, width, 3) for data in reader)


def write_grid(path: Path, videos: Sequence[Path], columns: int) -> None:
    """Videos of one size in rows of so many, in real time; one that has ended stays at its last frame."""
    rates, clips = zip(*map(read_video, videos), strict=True)
    fps = max(rates)
    with atomic(path) as partial:
        write_video(partial, (tiled(pictures, columns) for pictures in in_step(clips, rates, fps)), fps)


def in_step(clips: Sequence[Iterator[Picture]], rates: Sequence[float], fps: float) -> Iterator[list[Picture]]:
    """The pictures of all clips at each instant, until the last clip has ended."""
    shown = [next(clip) for clip in clips]
    done, instant = [1] * len(clips), 0
    running = set(range(len(clips)))
    while running:
        yield list(shown)
        instant += 1
        for number in tuple(running):
            while number in running and done[number] <= instant * rates[number] / fps:
                picture = next(clips[number], None)
                if picture is None:
                    running.discard(number)
                else:
                    shown[number], done[number] = picture, done[number] + 1


def tiled(pictures: Sequence[Picture], columns: int) -> Picture:
    """Pictures [H, W, 3] in rows of so many; black where there are none left."""
    rows = ceil(len(pictures) / columns)
    blank = [np.zeros_like(pictures[0])] * (rows * columns - len(pictures))
    tiles = [*pictures, *blank]
    return np.vstack([np.hstack(tiles[columns * row : columns * (row + 1)]) for row in range(rows)])
