"""Videos of recorded episodes: their actions are played back in the simulator, and the scene is rendered again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import EpisodeKey, RenderConfig, RenderMode, Simulator
from sim_eval.evaluation.engine import EpisodeResult, run_episode
from sim_eval.evaluation.jobs import OneSimulator
from sim_eval.evaluation.run_folder import Run
from sim_eval.evaluation.trajectory import read_trajectory, trajectory_path
from sim_eval.evaluation.verification import RecordedPolicy, foreign
from sim_eval.policies.policy import PolicySpec
from sim_eval.reporting.episode_video import VideoRecorder, write_grid
from sim_eval.reporting.video_layout import EpisodeLayout, Layout, TileLayout


@dataclass(frozen=True)
class Recorded:
    """A recorded episode.

    Attributes:
        run: to which it belongs.
        label: names the policy in the video.
    """

    run: Run
    key: EpisodeKey
    label: str

    @property
    def result(self) -> EpisodeResult:
        return next(each for each in self.run.episodes if each.key == self.key)


class ReplayRecorder(VideoRecorder):
    """Makes no video, and replaces none, of an episode that goes otherwise than recorded.

    Attributes:
        recorded: its result.
    """

    recorded: EpisodeResult

    def finish(self, simulator: Simulator, success: bool) -> None:
        if (success, len(self._statuses)) == (self.recorded.success, self.recorded.steps):
            super().finish(simulator, success)


class Playback:
    """Writes videos of recorded episodes; close it in the end.

    Args:
        size: height of the large picture in pixels.
        look: its rendering mode.
    """

    def __init__(self, size: int, look: RenderMode = "faithful") -> None:
        self._size, self._look = size, look
        self._render: RenderConfig | None = None
        self._simulators: OneSimulator | None = None

    def close(self) -> None:
        if self._simulators is not None:
            self._simulators.close()

    def write(self, episode: Recorded, folder: Path, layout: type[Layout] = EpisodeLayout) -> Path:
        """Writes ``<task>_<split>_<index>_<success|failure>.mp4`` into the folder.

        Raises:
            SimEvalError: the run kept no trajectory of it, or it goes differently when played back.
        """
        run, key, result = episode.run, episode.key, episode.result
        file = trajectory_path(run.folder, key)
        recorded = read_trajectory(file)
        if reason := foreign(run, result, recorded, file.name):
            raise SimEvalError(f"{run.folder}: {reason}: run it again into a new folder")
        recorder = ReplayRecorder(
            folder, run.spec, size=self._size, look=self._look, layout=layout, label=episode.label
        )
        recorder.recorded = result
        policy = RecordedPolicy(recorded, PolicySpec(run.spec.name))
        simulator = self._opened(run.protocol.render).of(key.task)
        if unknown := [name for name in run.spec.cameras if name not in simulator.spec.cameras]:
            raise SimEvalError(f"{run.folder}: {key.task} has no camera '{unknown[0]}', which the policy had")
        played = run_episode(simulator, policy, key, run.protocol, recorder)
        if (played.success, played.steps) != (result.success, result.steps):
            raise SimEvalError(
                f"{key} of {run.folder} ends as a {outcome(played)} after {played.steps} steps when played back, but "
                f"is recorded as a {outcome(result)} after {result.steps}: this machine or its libraries are others"
            )
        return folder / f"{key.stem}_{outcome(played)}.mp4"

    def write_grid(self, episodes: Sequence[Recorded], columns: int, path: Path) -> None:
        """Writes one video of several episodes, side by side in rows of so many.

        Raises:
            SimEvalError: see :meth:`write`.
        """
        with TemporaryDirectory() as scratch:
            tiles = [
                self.write(episode, Path(scratch) / str(number), TileLayout) for number, episode in enumerate(episodes)
            ]
            write_grid(path, tiles, columns)

    def _opened(self, render: RenderConfig) -> OneSimulator:
        if self._simulators is None or self._render != render:
            self.close()
            self._simulators, self._render = OneSimulator(render), render
        return self._simulators


def outcome(result: EpisodeResult) -> str:
    return "success" if result.success else "failure"
