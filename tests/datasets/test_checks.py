from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import CameraView
from sim_eval.datasets.checks import check_episode, set_problems
from sim_eval.datasets.episode_file import Episode, file_name, read_header, write_episode

Make = Callable[..., Episode]


def _with_view(episode: Episode, **parts: object) -> Episode:
    """The episode with parts of one camera's picture replaced at step 2."""
    seen = episode.observations[2]
    view: CameraView = replace(seen.views["agentview"], **parts)  # type: ignore[arg-type]
    changed = replace(seen, views={**seen.views, "agentview": view})
    return replace(episode, observations=[*episode.observations[:2], changed, *episode.observations[3:]])


def _problems(folder: Path, episode: Episode) -> list[str]:
    path = folder / file_name(episode.key)
    write_episode(path, episode)
    return check_episode(path)


def test_a_sound_episode_has_no_problems(tmp_path: Path, make_episode: Make) -> None:
    assert _problems(tmp_path, make_episode()) == []


def test_each_flaw_is_named(tmp_path: Path, make_episode: Make) -> None:
    good = make_episode()
    view = good.observations[2].views["agentview"]
    mirrored = view.camera_to_world @ np.diag([-1.0, 1, 1, 1])
    ray_hit_nothing = np.where(np.eye(12, 16) > 0, np.float32(np.inf), view.depth)
    states = good.states.copy()
    states[1, 2] = np.nan
    flaws = {
        "actions leave the action bounds": replace(good, actions=good.actions * 3),
        "actions is not finite": replace(good, actions=good.actions * np.nan),
        "executed_actions is not finite": replace(good, executed_actions=good.actions * np.inf),
        "states is not finite": replace(good, states=states),
        "depth must be finite": _with_view(good, depth=ray_hit_nothing),
        "above 0 m": _with_view(good, depth=np.zeros_like(view.depth)),
        "at step 2: camera_to_world is not a rotation": _with_view(good, camera_to_world=mirrored),
        "at step 2: intrinsics are not a pinhole": _with_view(good, intrinsics=view.intrinsics.T),
    }
    for flaw, episode in flaws.items():
        assert any(flaw in problem for problem in _problems(tmp_path, episode)), flaw
    unstorable = {
        r"actions must be \[5, 3\]": replace(good, actions=good.actions[:, :2]),
        "differ in length": replace(good, states=good.states[:4]),
        "float64": _with_view(good, depth=view.depth.astype(np.float64)),
        "same shape": _with_view(good, rgb=view.rgb.transpose(1, 0, 2)),
    }
    for flaw, episode in unstorable.items():
        with pytest.raises(SimEvalError, match=f"cannot be stored .*{flaw}"):
            write_episode(tmp_path / "e.hdf5", episode)


def test_a_file_edited_afterwards_or_misnamed_is_found(tmp_path: Path, make_episode: Make) -> None:
    path = tmp_path / file_name(make_episode().key)
    write_episode(path, make_episode())
    assert check_episode(path) == []
    with h5py.File(path, "r+") as file:
        file["data/demo_0/states"][1, 4] += 1e-9
    with pytest.raises(SimEvalError, match="truncated or damaged"):
        check_episode(path)
    write_episode(tmp_path / "other.hdf5", make_episode())
    assert check_episode(tmp_path / "other.hdf5") == [f"its name should be {path.name}"]


def test_files_that_do_not_belong_together_are_named(make_episode: Make, tmp_path: Path) -> None:
    for name, episode in (("a.hdf5", make_episode(0)), ("b.hdf5", replace(make_episode(0), robot="Sawyer"))):
        write_episode(tmp_path / name, episode)
    problems = set_problems({tmp_path / name: read_header(tmp_path / name) for name in ("a.hdf5", "b.hdf5")})
    assert ["is in both" in problems[0], "robot is Sawyer" in problems[1]] == [True, True]
