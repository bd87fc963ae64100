"""Records demonstrations: one episode in memory, one crash-safe file at its end; and what is there already."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
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
    """Attached to an episode, it writes what happened into a folder, one file an episode.

    Args:
        folder: where the files go.
        render_config: how the simulator shows its task.
        keep_failures: also writes episodes that did not succeed.
        versions: package name -> version; default: the installed ones.
        cameras: which are recorded; default: all.

    Attributes:
        written: the files of this recorder, in order.
        skipped: the episodes that were not kept, in order.
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
        self._versions = installed_versions() if versions is None else versions
        self._key: EpisodeKey | None = None

    def start(self, simulator: Simulator, key: EpisodeKey, instruction: str) -> None:
        """Begins an episode, after the reset; an unfinished one before it is forgotten."""
        self._key, self._instruction = key, instruction
        self._provenance = simulator.provenance()
        self._observations: list[Observation] = []
        self._states: list[FloatArray] = []
        self._labels: list[FloatArray] = []
        self._executed: list[FloatArray] = []
        self._statuses: list[Status] = []

    def before_act(self, simulator: Simulator, label: FloatArray, executed: FloatArray) -> None:
        """Sees what the demonstrator saw.

        Args:
            label: float64 [action dim], what it wanted.
            executed: float64 [action dim], what will move the robot.
        """
        self._observations.append(observe_task(simulator, self._instruction, self._cameras))
        self._states.append(simulator.snapshot().state.copy())
        self._labels.append(np.array(label, dtype=np.float64))
        self._executed.append(np.array(executed, dtype=np.float64))

    def after_act(self, simulator: Simulator, status: Status) -> None:
        """Notes what the step led to."""
        self._statuses.append(status)

    def finish(self, simulator: Simulator, success: bool) -> None:
        """Writes the episode, unless it failed and failures are not kept.

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
            success=np.array([status.success for status in self._statuses], dtype=np.bool_),
            phases=np.array([status.phase for status in self._statuses], dtype=np.int64),
            provenance=self._provenance,
            versions=self._versions,
            render_config=self._render_config,
        )
        write_episode(path, episode)
        self.written.append(path)


def is_kept(success: bool, steps: int, keep_failures: bool) -> bool:
    """Whether an episode of so many control steps becomes a file."""
    return steps > 0 and (success or keep_failures)


def installed_versions() -> dict[str, str]:
    """Versions of the packages that decide what a recording contains, as far as they are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue  # run from a clone, or with another simulator
    return found


def existing(folder: Path, tasks: Collection[str], split: str) -> dict[EpisodeKey, EpisodeHeader]:
    """The episodes of some tasks, of one split, that need not be collected again.

    An unreadable file counts as absent, so that collecting its episode replaces it. Temporary files that a killed
    process left behind are removed once no running process can be writing them.

    Raises:
        SimEvalError: a key occurs twice, or a task's files differ in robot, cameras, proprio or action.
    """
    for leftover in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        if time.time() - leftover.stat().st_mtime > STALE_SECONDS:
            leftover.unlink(missing_ok=True)
    headers: dict[str, dict[Path, EpisodeHeader]] = {task: {} for task in tasks}
    for path in tqdm(episode_files(folder), "reading what is there", delay=1, leave=False):
        try:
            header = read_header(path)
        except SimEvalError:
            continue
        if header.key.split == split and header.key.task in headers:
            headers[header.key.task][path] = header
    for found in headers.values():
        if problems := set_problems(found):
            raise SimEvalError(problems[0])
    return {header.key: header for found in headers.values() for header in found.values()}
