from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np

from sim_eval.core.types import CameraView
from sim_eval.datasets.checks import check_episode, check_folder, episode_problems
from sim_eval.datasets.episode_file import Episode, file_name, write_episode

Make = Callable[..., Episode]


def _with_view(episode: Episode, **parts: object) -> Episode:
    """The episode with parts of one camera's picture replaced at step 2."""
    seen = episode.observations[2]
    view: CameraView = replace(seen.views["agentview"], **parts)  # type: ignore[arg-type]
    changed = replace(seen, views={**seen.views, "agentview": view})
    return replace(episode, observations=[*episode.observations[:2], changed, *episode.observations[3:]])


def test_a_sound_episode_has_no_problems(make_episode: Make) -> None:
    assert episode_problems(make_episode()) == []


def test_each_flaw_is_named(make_episode: Make) -> None:
    good = make_episode()
    view = good.observations[2].views["agentview"]
    mirrored = view.camera_to_world @ np.diag([-1.0, 1, 1, 1])
    ray_hit_nothing = np.where(np.eye(12, 16) > 0, np.float32(np.inf), view.depth)
    flaws = {
        "actions leave the action bounds": replace(good, actions=good.actions * 3),
        "executed_actions is not finite": replace(good, executed_actions=good.actions * np.inf),
        "actions must be float64": replace(good, actions=good.actions.astype(np.float32)),
        "actions must be [5, 3]": replace(good, actions=good.actions[:, :2]),
        "states has 4 steps": replace(good, states=good.states[:4]),
        "depth must be finite": _with_view(good, depth=ray_hit_nothing),
        "depth must be float32": _with_view(good, depth=view.depth.astype(np.float64)),
        "rgb must be uint8": _with_view(good, rgb=view.rgb.transpose(1, 0, 2)),
        "not a rotation": _with_view(good, camera_to_world=mirrored),
        "not a pinhole": _with_view(good, intrinsics=view.intrinsics.T),
    }
    for what, episode in flaws.items():
        assert any(what in problem for problem in episode_problems(episode)), what


def test_a_file_edited_afterwards_or_misnamed_is_found(tmp_path: Path, make_episode: Make) -> None:
    path = tmp_path / file_name(make_episode().key)
    write_episode(path, make_episode())
    assert check_episode(path) == []
    with h5py.File(path, "r+") as file:
        file["data/demo_0/states"][1, 4] += 1e-9
    assert "truncated or damaged" in check_episode(path)[0]
    write_episode(tmp_path / "other.hdf5", make_episode())
    assert check_episode(tmp_path / "other.hdf5") == [f"its name should be {path.name}"]


def test_a_folder_is_summed_up(tmp_path: Path, make_episode: Make) -> None:
    failed = make_episode(1, steps=3, success=np.zeros(3, dtype=np.bool_))
    for episode in (make_episode(0), failed):
        write_episode(tmp_path / file_name(episode.key), episode)
    report = check_folder(tmp_path)
    assert (report.episodes, report.steps, report.successes, report.problems) == (2, 8, 1, ())
    write_episode(tmp_path / "copy.hdf5", replace(make_episode(0), robot="Sawyer"))
    (tmp_path / "junk.hdf5").write_text("junk")
    problems = "\n".join(check_folder(tmp_path).problems)
    for what in ("copy.hdf5: its name", "junk.hdf5", "is in both", "robot is"):
        assert what in problems
