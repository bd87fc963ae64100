"""Records demonstrations: an episode is kept in memory and written at its end. Also finds the existing episodes."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from tqdm import tqdm

from sim_eval.core.errors import SimEvalError
from sim_eval.core.files import TEMPORARY_SUFFIX
from sim_eval.core.types import (
    EpisodeKey,
    FloatArray,
    Observation,
    Recorder,
    RenderConfig,
    Simulator,
    Status,
    observe_task,
)
from sim_eval.core.versions import installed
from sim_eval.datasets.checks import set_problems
from sim_eval.datasets.episode_file import (
    Episode,
    EpisodeHeader,
    episode_files,
    file_name,
    read_header,
    write_episode,
)

PACKAGES = ("sim_eval", "robosuite", "metaworld", "rpent-libero", "mujoco", "numpy", "h5py")
STALE_SECONDS = 600.0


class DemonstrationRecorder(Recorder):
    """Writes each episode that it watches into a folder, as a file of its own.

    Args:
        folder: where the files go.
        render_config: how the simulator renders.
        keep_failures: also write episodes that did not succeed.
        versions: package name -> version; default: the installed ones.
        cameras: the cameras to record; default: all.

    Attributes:
        written: the files that were written, in order.
        skipped: the episodes that were not written, in order.
    """

    def __init__(
        self,
        folder: Path,
        render_config: RenderConfig,
        keep_failures: bool = False,
        versions: Mapping[str, str] | None = None,
        cameras: Sequence[str] | None = None,
    ) -> None:
        self.written: list[Path] = []
        self.skipped: list[EpisodeKey] = []
        self._folder = folder
        self._render_config, self._keep_failures, self._cameras = render_config, keep_failures, cameras
        self._versions = installed(PACKAGES) if versions is None else versions
        self._key: EpisodeKey | None = None

    def start(self, simulator: Simulator, key: EpisodeKey, instruction: str) -> None:
        """Begins an episode after the reset. An unfinished episode before it is dropped."""
        self._key, self._instruction = key, instruction
        self._provenance = simulator.provenance()
        self._observations: list[Observation] = []
        self._states: list[FloatArray] = []
        self._labels: list[FloatArray] = []
        self._executed: list[FloatArray] = []
        self._statuses: list[Status] = []

    def before_act(self, simulator: Simulator, label: FloatArray, executed: FloatArray) -> None:
        """Records the observation and the simulator's state.

        Args:
            label: float64 [action dim], the demonstrator's action.
            executed: float64 [action dim], the action that will move the robot.
        """
        self._observations.append(observe_task(simulator, self._instruction, self._cameras))
        self._states.append(simulator.snapshot().state.copy())
        self._labels.append(np.array(label, dtype=np.float64))
        self._executed.append(np.array(executed, dtype=np.float64))

    def after_act(self, simulator: Simulator, status: Status) -> None:
        """Records success and phase after the step."""
        self._statuses.append(status)

    def finish(self, simulator: Simulator, success: bool) -> None:
        """Writes the episode, unless it failed and failures are not kept.

        Args:
            success: False where the episode broke off, even if a step had succeeded; the file then holds no success.

        Raises:
            SimEvalError: the file cannot be written, or no episode was started.
        """
        key, self._key = self._key, None
        if key is None:
            raise SimEvalError("the recorder has no episode to finish: start one first")
        done = len(self._statuses)  # a step that broke the simulator is not part of the episode
        if not is_kept(success, done, self._keep_failures):
            self.skipped.append(key)
            return
        path = self._folder / file_name(key)
        episode = Episode(
            key=key,
            instruction=self._instruction,
            workspace=simulator.task.workspace,
            robot=simulator.spec.robot,
            action=simulator.spec.action,
            observations=self._observations[:done],
            actions=np.array(self._labels[:done]),
            executed_actions=np.array(self._executed[:done]),
            states=np.array(self._states[:done]),
            success=np.array([success and status.success for status in self._statuses], dtype=np.bool_),
            phases=np.array([status.phase for status in self._statuses], dtype=np.int64),
            provenance=self._provenance,
            versions=self._versions,
            render_config=self._render_config,
        )
        write_episode(path, episode)
        self.written.append(path)


def is_kept(success: bool, steps: int, keep_failures: bool) -> bool:
    """Whether an episode of so many control steps is written."""
    return steps > 0 and (success or keep_failures)


def existing(folder: Path, tasks: Collection[str], split: str) -> dict[str, dict[EpisodeKey, EpisodeHeader]]:
    """The episodes of some tasks and one split that a folder already holds, by task.

    An unreadable file counts as missing, so its episode is collected again and replaces it. Temporary files of a killed
    process are removed once no running process can still be writing them.

    Raises:
        SimEvalError: a key occurs twice, or a task's files differ in robot, cameras, proprio or action.
    """
    for leftover in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        with suppress(FileNotFoundError):  # another collector has just finished it
            if time.time() - leftover.stat().st_mtime > STALE_SECONDS:
                leftover.unlink()
    headers: dict[str, dict[Path, EpisodeHeader]] = {task: {} for task in tasks}
    for path in tqdm(episode_files(folder), "reading existing episodes", delay=1, leave=False):
        try:
            header = read_header(path)
        except SimEvalError:
            continue
        if header.key.split == split and header.key.task in headers:
            headers[header.key.task][path] = header
    for found in headers.values():
        if problems := set_problems(found):
            raise SimEvalError(problems[0])
    return {task: {header.key: header for header in found.values()} for task, found in headers.items()}
