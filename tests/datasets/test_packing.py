import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import CameraView
from sim_eval.datasets import packing
from sim_eval.datasets.episode_file import Episode, read_header, write_episode
from sim_eval.datasets.packing import PackedEpisode, open_packed, pack

Make = Callable[..., Episode]

PARTS = ("rgb", "depth", "intrinsics", "camera_to_world")


def _same(mine: CameraView, theirs: CameraView) -> bool:
    pairs = [(getattr(mine, part), getattr(theirs, part)) for part in PARTS]
    return all((a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()) for a, b in pairs)


def _of(folder: Path, *episodes: Episode, **options: object) -> list[PackedEpisode]:
    files = [folder / f"{number}.hdf5" for number in range(len(episodes))]
    for file, episode in zip(files, episodes, strict=True):
        write_episode(file, episode)
    return list(open_packed(files, **options).values())  # type: ignore[arg-type]


def _made(folder: Path) -> dict[str, int]:
    """Packed file -> when it was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_a_packed_episode_is_the_same_bit_for_bit(tmp_path: Path, make_episode: Make) -> None:
    episode = make_episode(0)
    (small,) = _of(tmp_path, episode)
    for step, theirs in enumerate(episode.observations):
        mine = small.observation(step)
        assert list(mine.views) == list(theirs.views)
        assert all(_same(mine.views[name], view) for name, view in theirs.views.items())
        assert {k: v.tobytes() for k, v in mine.proprio.items()} == {k: v.tobytes() for k, v in theirs.proprio.items()}
        assert (mine.instruction, mine.workspace) == (theirs.instruction, theirs.workspace)
    assert small.actions.tobytes() == episode.actions.tobytes()
    assert small.header.render_config == episode.render_config
    assert small.header == read_header(tmp_path / "0.hdf5")


def test_odd_bits_layouts_and_sizes_survive(tmp_path: Path, make_episode: Make) -> None:
    plain = make_episode(0, steps=4, height=7, width=5)
    views = [seen.views["agentview"] for seen in plain.observations]
    bits = np.array([1e-45, 1e-38, 3e38, 1.0, np.nextafter(np.float32(1), np.float32(2))], dtype=np.float32)
    odd = [
        replace(views[0], depth=np.tile(bits, (7, 1))),
        replace(views[1], rgb=views[1].rgb[::-1, ::-1], depth=views[1].depth[::-1]),  # not contiguous
        replace(views[2], rgb=np.asfortranarray(views[2].rgb), depth=np.asfortranarray(views[2].depth)),
        replace(views[3], rgb=np.zeros_like(views[3].rgb), depth=np.ones_like(views[3].depth)),
    ]
    seen = [replace(seen, views={"camera": view}) for seen, view in zip(plain.observations, odd, strict=True)]
    (small,) = _of(tmp_path, replace(plain, observations=seen))
    assert all(_same(small.observation(step).views["camera"], view) for step, view in enumerate(odd))


def test_looking_gives_a_picture_of_ones_own(tmp_path: Path, make_episode: Make) -> None:
    seen = _of(tmp_path, make_episode(0))[0].observation(1)
    before = seen.views["agentview"].rgb.copy()
    seen.views["agentview"].rgb[:] = 0
    assert np.array_equal(seen.views["agentview"].rgb, before)
    assert "agentview" in seen.views
    assert "birdview" not in seen.views


def test_what_was_packed_is_not_packed_again_and_what_changed_is(
    tmp_path: Path, make_episode: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    episodes = [make_episode(0), make_episode(1)]
    _of(tmp_path, *episodes)
    files, before = [tmp_path / "0.hdf5", tmp_path / "1.hdf5"], _made(tmp_path / ".packed")
    with monkeypatch.context() as patched:
        patched.setattr(packing, "read_episode", None)  # nobody reads a whole episode again
        open_packed(files)
    assert _made(tmp_path / ".packed") == before
    changed = make_episode(1, actions=-episodes[1].actions)
    write_episode(files[1], changed)
    assert np.array_equal(open_packed(files)[files[1]].actions, changed.actions)
    after = _made(tmp_path / ".packed")
    assert before.items() < after.items()
    assert len(after) == 3


def test_a_file_that_was_spoiled_after_it_was_packed_is_refused(tmp_path: Path, make_episode: Make) -> None:
    _of(tmp_path, make_episode(0))
    path = tmp_path / "0.hdf5"
    content = bytearray(path.read_bytes())
    content[-100] ^= 8
    path.write_bytes(content)
    with pytest.raises(SimEvalError, match="is not a sound episode"):
        open_packed([path])


def test_several_processes_pack_the_same(tmp_path: Path, make_episode: Make) -> None:
    episodes = [make_episode(index) for index in range(3)]
    alone = _of(tmp_path, *episodes, cache=tmp_path / "alone")
    together = _of(tmp_path, *episodes, cache=tmp_path / "together", workers=2)
    for mine, theirs in zip(alone, together, strict=True):
        assert mine.path.read_bytes()[512:] == theirs.path.read_bytes()[512:]
    assert not (tmp_path / ".packed").exists()


def test_a_worker_says_what_is_wrong_with_a_file(tmp_path: Path, make_episode: Make) -> None:
    for index in range(3):
        write_episode(tmp_path / f"{index}.hdf5", make_episode(index))
    os.truncate(tmp_path / "1.hdf5", 3000)
    with pytest.raises(SimEvalError, match=r"1\.hdf5 is not a sound episode"):
        open_packed([tmp_path / f"{index}.hdf5" for index in range(3)], workers=2)


def test_a_damaged_or_lost_cache_is_one_clear_line(tmp_path: Path, make_episode: Make) -> None:
    (small,) = _of(tmp_path, make_episode(0))
    views = small.observation(4).views
    with h5py.File(small.path) as file:
        places = file["data/demo_0/pictures"].id.get_offset()
    assert places == small.places[0]
    os.truncate(small.path, small.places[-1] - 10)
    with pytest.raises(SimEvalError, match="delete it and start again"):
        views["robot0_eye_in_hand"]
    with pytest.raises(SimEvalError, match="delete it and start again"):
        open_packed([tmp_path / "0.hdf5"])
    small.path.unlink()
    with pytest.raises(SimEvalError, match="FileNotFoundError"):
        views["agentview"]
    (tmp_path / "file").write_text("")
    with pytest.raises(SimEvalError, match="--cache"):
        open_packed([tmp_path / "0.hdf5"], cache=tmp_path / "file" / "below")


def test_plain_pictures_shrink(tmp_path: Path, make_episode: Make) -> None:
    # A gradient over a flat wall, as a simulator without texture gives it: what the size of the cache rests on.
    rows, columns = np.mgrid[:128, :128]
    rgb = np.repeat((rows // 8 + columns // 16).astype(np.uint8)[..., np.newaxis], 3, axis=-1)
    depth = (0.5 + 0.01 * rows).astype(np.float32)
    (seen,) = make_episode(0, steps=1).observations
    plain = replace(
        seen, views={"camera": CameraView(rgb, depth, np.array([[9, 0, 4], [0, 9, 4], [0, 0, 1.0]]), np.eye(4))}
    )
    write_episode(tmp_path / "0.hdf5", make_episode(0, steps=1, observations=[plain]))
    pack(tmp_path / "0.hdf5", tmp_path / "packed.hdf5")
    with h5py.File(tmp_path / "packed.hdf5") as file:
        assert len(file["data/demo_0/pictures"]) < (rgb.nbytes + depth.nbytes) / 3
