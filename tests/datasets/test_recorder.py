import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import (
    EnvironmentSpec,
    EpisodeKey,
    FloatArray,
    Observation,
    RenderConfig,
    Snapshot,
    Status,
    Task,
)
from sim_eval.datasets.checks import check_episode
from sim_eval.datasets.episode_file import Episode, file_name, read_episode, read_header, write_episode
from sim_eval.datasets.recorder import DemonstrationRecorder, existing

Make = Callable[..., Episode]
TASK = "robosuite/LiftWide"
RENDER = RenderConfig("fast", 12, 16)  # as make_episode


class Playback:
    """A simulator whose world is a recorded episode."""

    def __init__(self, episode: Episode) -> None:
        self.episode = episode
        self.step = 0

    @property
    def task(self) -> Task:
        return Task(TASK, ((self.episode.instruction,),), 200, self.episode.workspace, ("reach", "lift"), _no_factory)

    @property
    def spec(self) -> EnvironmentSpec:
        return self.episode.spec

    def reset(self, key: EpisodeKey) -> None:
        self.step = 0

    def act(self, action: FloatArray) -> Status:
        self.step += 1
        return Status(bool(self.episode.success[self.step - 1]), int(self.episode.phases[self.step - 1]))

    def observe(self, cameras: Sequence[str] | None = None) -> Observation:
        return self.episode.observations[self.step]

    def snapshot(self) -> Snapshot:
        return Snapshot(self.episode.states[self.step])

    def privileged(self) -> Mapping[str, FloatArray]:
        return {}

    def provenance(self) -> Mapping[str, str]:
        return self.episode.provenance

    def close(self) -> None: ...


def _no_factory(task: Task, options: RenderConfig) -> Playback:
    raise NotImplementedError


def _record(recorder: DemonstrationRecorder, episode: Episode) -> None:
    simulator = Playback(episode)
    simulator.reset(episode.key)
    recorder.start(simulator, episode.key, episode.instruction)
    action = np.empty(3)  # one buffer for all steps, as an engine may have
    for label, executed in zip(episode.actions, episode.executed_actions, strict=True):
        action[:] = label
        recorder.before_act(simulator, action, executed)
        recorder.after_act(simulator, simulator.act(executed))
    recorder.finish(simulator, bool(episode.success.any()))


def test_what_is_recorded_is_what_happened(tmp_path: Path, make_episode: Make) -> None:
    wanted = make_episode(4)
    recorder = DemonstrationRecorder(tmp_path / "new", RENDER, versions=wanted.versions)
    _record(recorder, wanted)
    assert recorder.written == [tmp_path / "new" / file_name(wanted.key)]
    assert check_episode(recorder.written[0]) == []
    write_episode(tmp_path / "wanted.hdf5", wanted)
    assert recorder.written[0].read_bytes() == (tmp_path / "wanted.hdf5").read_bytes()


def test_failures_are_kept_only_when_asked(tmp_path: Path, make_episode: Make) -> None:
    failed = make_episode(1, success=np.zeros(5, dtype=np.bool_))
    recorder = DemonstrationRecorder(tmp_path, RENDER)
    _record(recorder, failed)
    _record(recorder, make_episode(2))
    assert (recorder.skipped, len(recorder.written)) == ([failed.key], 1)
    keeper = DemonstrationRecorder(tmp_path, RENDER, keep_failures=True)
    _record(keeper, failed)
    found = {key.index: header.success for key, header in existing(tmp_path, [TASK], "train")[TASK].items()}
    assert found == {1: False, 2: True}


def test_a_step_that_broke_the_simulator_is_left_out(tmp_path: Path, make_episode: Make) -> None:
    episode = make_episode(1)
    simulator = Playback(episode)
    simulator.reset(episode.key)
    recorder = DemonstrationRecorder(tmp_path, RENDER, keep_failures=True)
    recorder.start(simulator, episode.key, episode.instruction)
    for step in range(3):
        recorder.before_act(simulator, episode.actions[step], episode.executed_actions[step])
        if step < 2:
            recorder.after_act(simulator, simulator.act(episode.executed_actions[step]))
    recorder.finish(simulator, False)
    assert check_episode(recorder.written[0]) == []
    assert len(read_episode(recorder.written[0]).actions) == 2


def test_an_episode_that_broke_off_after_a_success_is_a_failure_in_its_file(tmp_path: Path, make_episode: Make) -> None:
    episode = make_episode(1, success=np.array([False, True, True, True, True]))
    simulator = Playback(episode)
    recorder = DemonstrationRecorder(tmp_path, RENDER, keep_failures=True)
    recorder.start(simulator, episode.key, episode.instruction)
    for step in range(4):
        recorder.before_act(simulator, episode.actions[step], episode.executed_actions[step])
        recorder.after_act(simulator, simulator.act(episode.executed_actions[step]))
    recorder.finish(simulator, False)  # as the engine does when the simulator or the policy raised
    assert not read_header(recorder.written[0]).success
    with h5py.File(recorder.written[0]) as file:
        assert file["data/demo_0/rewards"][:].tolist() == [0, 0, 0, 0]
        assert file["data/demo_0/dones"][:].tolist() == [0, 0, 0, 1]


def test_an_abandoned_episode_does_not_leak_into_the_next(tmp_path: Path, make_episode: Make) -> None:
    recorder, abandoned = DemonstrationRecorder(tmp_path, RENDER), Playback(make_episode(1))
    recorder.start(abandoned, abandoned.episode.key, abandoned.episode.instruction)
    recorder.before_act(abandoned, np.ones(3), np.ones(3))
    _record(recorder, make_episode(2))
    assert len(read_episode(recorder.written[0]).actions) == 5
    with pytest.raises(SimEvalError, match="start one first"):
        recorder.finish(abandoned, True)


def test_resume_counts_sound_files_of_its_task_and_split_only(tmp_path: Path, make_episode: Make) -> None:
    for index in (0, 1, 5):
        write_episode(tmp_path / file_name(make_episode(index).key), make_episode(index))
    for key in (EpisodeKey("robosuite/Lift", "train", 2), EpisodeKey(TASK, "val", 3)):
        write_episode(tmp_path / file_name(key), make_episode(0, key=key))
    os.truncate(tmp_path / file_name(make_episode(1).key), 5000)
    for name, age in ((".old.hdf5.1.tmp", 3600), (".running.hdf5.2.tmp", 0)):
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    both = [*(EpisodeKey(TASK, "train", index) for index in (0, 5)), EpisodeKey("robosuite/Lift", "train", 2)]
    assert {task: set(found) for task, found in existing(tmp_path, [TASK], "train").items()} == {TASK: set(both[:2])}
    assert existing(tmp_path, [TASK, "robosuite/Lift"], "train").keys() == {TASK, "robosuite/Lift"}
    assert set(existing(tmp_path, [TASK, "robosuite/Lift"], "train")["robosuite/Lift"]) == {both[2]}
    assert [path.name for path in tmp_path.glob(".*")] == [".running.hdf5.2.tmp"]
    assert existing(tmp_path / "not there yet", [TASK], "train") == {TASK: {}}


def test_resume_names_a_duplicate_and_another_robot(tmp_path: Path, make_episode: Make) -> None:
    path = tmp_path / file_name(make_episode(0).key)
    write_episode(path, make_episode(0))
    shutil.copy(path, tmp_path / "copy.hdf5")
    with pytest.raises(SimEvalError, match=r"train/00000 is in both .*copy\.hdf5 and .*_00000\.hdf5"):
        existing(tmp_path, [TASK], "train")
    write_episode(tmp_path / "copy.hdf5", replace(make_episode(1), robot="Sawyer"))
    with pytest.raises(SimEvalError, match="robot is "):
        existing(tmp_path, [TASK], "train")
