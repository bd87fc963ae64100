"""Videos of episodes that two runs ended differently: one run left, the other right, captions with the outcome."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sim_eval.core.errors import SimEvalError
from sim_eval.core.files import atomic
from sim_eval.core.types import EpisodeKey, RenderConfig, Simulator, Task
from sim_eval.envs.tasks import get_task
from sim_eval.evaluation.engine import EpisodeResult, run_episode
from sim_eval.evaluation.run_folder import VIDEOS, Run
from sim_eval.evaluation.trajectory import read_trajectory, trajectory_path
from sim_eval.evaluation.verification import RecordedPolicy
from sim_eval.policies.policy import PolicySpec
from sim_eval.reporting.runs import policy_label
from sim_eval.reporting.video import (
    GREEN,
    INK,
    LINE,
    MARGIN,
    RED,
    Picture,
    VideoRecorder,
    shorten,
    text_font,
    write_video,
)

BAND = LINE + MARGIN  # pixels of the caption above each side


@dataclass(frozen=True)
class Side:
    """One half of a picture.

    Attributes:
        letter: names the run in the comparison.
        run: the run of the episode.
    """

    letter: str
    run: Run

    def result(self, key: EpisodeKey) -> EpisodeResult:
        return next(each for each in self.run.episodes if each.key == key)

    def caption(self, key: EpisodeKey) -> str:
        """The run and the outcome of the episode, in one line."""
        result = self.result(key)
        if result.error is not None:
            outcome = f"error: {result.error}"
        elif result.first_success is None:
            outcome = f"failure after {result.steps} steps, furthest phase: {result.phase}"
        else:
            outcome = f"success at step {result.first_success}" + ("" if result.success_end else ", lost at the end")
        return f"{self.letter}  {outcome}  -  {policy_label(self.run)}"


class SideBySide:
    """Writes ``<task>_<split>_<index>_<A>-<outcome>_<B>-<outcome>.mp4``; close it in the end.

    A side comes from the run's own video or, where it kept none, from its recorded actions played back in the
    simulator. The side that ends first stays at its last picture.

    Args:
        folder: for the videos.
        scratch: for videos of episodes that are played back; the caller removes it.
    """

    def __init__(self, folder: Path, scratch: Path) -> None:
        self._folder = folder
        self._scratch = scratch
        self._simulators: dict[tuple[Task, RenderConfig], Simulator] = {}
        self._stack = ExitStack()

    def close(self) -> None:
        self._stack.close()

    def write(self, key: EpisodeKey, sides: tuple[Side, Side]) -> Path:
        """The video of one episode.

        Raises:
            SimEvalError: a run kept neither video nor trajectory of it, or playing it back ends differently.
        """
        ends = [f"{side.letter}-{_outcome(side.result(key))}" for side in sides]
        path = self._folder / f"{'_'.join([key.stem, *ends])}.mp4"
        halves = []
        for side in sides:
            rate, frames = read_video(self._video(key, side))
            halves.append(captioned(frames, side.caption(key), side.result(key).success))
        with atomic(path) as partial:
            write_video(partial, beside(*halves), rate)  # one task, one control rate
        return path

    def _video(self, key: EpisodeKey, side: Side) -> Path:
        name = f"{key.stem}_{_outcome(side.result(key))}.mp4"
        kept = side.run.folder / VIDEOS / name
        if kept.exists():
            return kept
        self._play(key, side)
        return self._scratch / side.letter / name

    def _play(self, key: EpisodeKey, side: Side) -> None:
        run = side.run
        policy = RecordedPolicy(read_trajectory(trajectory_path(run.folder, key)), PolicySpec(run.spec.name))
        simulator = self._simulator(get_task(key.task), run.protocol.render)
        recorder = VideoRecorder(self._scratch / side.letter, run.spec.name, "all")
        played = run_episode(simulator, policy, key, run.protocol, recorder)
        if played.success != side.result(key).success:
            raise SimEvalError(
                f"{key} of {run.folder} ends as a {_outcome(played)} when played back, but is recorded as a "
                f"{_outcome(side.result(key))}: this machine or its libraries differ from the run's"
            )

    def _simulator(self, task: Task, options: RenderConfig) -> Simulator:
        if (task, options) not in self._simulators:
            self._simulators[task, options] = self._stack.enter_context(closing(task.make(options)))
        return self._simulators[task, options]


def _outcome(result: EpisodeResult) -> str:
    return "success" if result.success else "failure"


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
        raise SimEvalError(f"{path} is damaged: delete it, and the episode is played back instead") from error
    width, height = about["size"]
    return float(about["fps"]), (np.frombuffer(data, np.uint8).reshape(height, width, 3) for data in reader)


def captioned(frames: Iterator[Picture], caption: str, success: bool) -> Iterator[Picture]:
    """Pictures [H, W, 3] below a line of text on green or red."""
    from PIL import Image, ImageDraw

    band: Picture | None = None
    for frame in frames:
        if band is None:
            canvas = Image.new("RGB", (frame.shape[1], BAND), GREEN if success else RED)
            line = shorten(caption, frame.shape[1] - 2 * MARGIN)
            ImageDraw.Draw(canvas).text((MARGIN, BAND // 2), line, INK, text_font(), anchor="lm")
            band = np.asarray(canvas)
        yield np.vstack([band, frame])


def beside(left: Iterator[Picture], right: Iterator[Picture]) -> Iterator[Picture]:
    """Both in one picture until both have ended; black fills the space below the lower one."""
    pictures = [next(left), next(right)]
    height = max(len(picture) for picture in pictures)
    while True:
        yield np.hstack([np.pad(picture, ((0, height - len(picture)), (0, 0), (0, 0))) for picture in pictures])
        fresh = [next(side, None) for side in (left, right)]
        if all(new is None for new in fresh):
            return
        pictures = [old if new is None else new for old, new in zip(pictures, fresh, strict=True)]
