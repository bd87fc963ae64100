"""What training reads of an episode file: bit for bit what was recorded, from any process, and never damaged."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import h5py
import numpy as np
import pytest

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import CameraView
from sim_eval.datasets.episode_file import Episode, StoredEpisode, open_episode, read_header, write_episode

Make = Callable[..., Episode]

PARTS = ("rgb", "depth", "intrinsics", "camera_to_world")


def _same(mine: CameraView, theirs: CameraView) -> bool:
    pairs = [(getattr(mine, part), getattr(theirs, part)) for part in PARTS]
    return all((a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()) for a, b in pairs)


def _stored(path: Path, episode: Episode) -> StoredEpisode:
    write_episode(path, episode)
    return open_episode(path)


def _decoded(episode: StoredEpisode) -> list[bytes]:
    """All pictures of an episode; a function that another process can call."""
    views = [view for step in range(len(episode.actions)) for view in episode.observation(step).views.values()]
    return [picture.tobytes() for view in views for picture in (view.rgb, view.depth)]


def test_a_stored_episode_is_the_same_bit_for_bit(tmp_path: Path, make_episode: Make) -> None:
    episode = make_episode(0)
    stored = _stored(tmp_path / "0.hdf5", episode)
    for step, theirs in enumerate(episode.observations):
        mine = stored.observation(step)
        assert list(mine.views) == list(theirs.views)
        assert all(_same(mine.views[name], view) for name, view in theirs.views.items())
        assert {k: v.tobytes() for k, v in mine.proprio.items()} == {k: v.tobytes() for k, v in theirs.proprio.items()}
        assert (mine.instruction, mine.workspace) == (theirs.instruction, theirs.workspace)
    assert stored.actions.tobytes() == episode.actions.tobytes()
    assert stored.header.render_config == episode.render_config
    assert stored.header == read_header(tmp_path / "0.hdf5")


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
    stored = _stored(tmp_path / "0.hdf5", replace(plain, observations=seen))
    assert all(_same(stored.observation(step).views["camera"], view) for step, view in enumerate(odd))


def test_an_episode_may_have_no_camera(tmp_path: Path, make_episode: Make) -> None:
    episode = make_episode(0)
    blind = replace(episode, observations=[replace(seen, views={}) for seen in episode.observations])
    stored = _stored(tmp_path / "0.hdf5", blind)
    assert (dict(stored.observation(3).views), stored.header.length) == ({}, 5)


def test_each_look_up_returns_pictures_of_its_own(tmp_path: Path, make_episode: Make) -> None:
    seen = _stored(tmp_path / "0.hdf5", make_episode(0)).observation(1)
    before = seen.views["agentview"].rgb.copy()
    seen.views["agentview"].rgb[:] = 0
    assert np.array_equal(seen.views["agentview"].rgb, before)
    assert "agentview" in seen.views
    assert "birdview" not in seen.views


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_decode_the_same(tmp_path: Path, make_episode: Make, method: str) -> None:
    stored = _stored(tmp_path / "0.hdf5", make_episode(0, steps=3, height=64, width=64))
    here = _decoded(stored)  # the codec was in use before the fork
    with ProcessPoolExecutor(2, get_context(method)) as pool:
        assert [future.result(timeout=120) for future in [pool.submit(_decoded, stored)] * 2] == [here, here]


def test_threads_decode_the_same(tmp_path: Path, make_episode: Make) -> None:
    stored = _stored(tmp_path / "0.hdf5", make_episode(0, steps=8, height=64, width=64))
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: tuple(_decoded(stored)), range(16))) == {tuple(_decoded(stored))}


def test_an_opened_episode_holds_no_picture(tmp_path: Path, make_episode: Make) -> None:
    stored = _stored(tmp_path / "0.hdf5", make_episode(0, steps=4, height=128, width=128))
    assert len(pickle.dumps(stored)) < 128 * 128 * 3


def test_opening_reads_no_picture(tmp_path: Path, make_episode: Make) -> None:
    # Opening and continuing a collection must not read, let alone hash, the bulk of the data.
    path = tmp_path / "0.hdf5"
    write_episode(path, make_episode(0, steps=6, height=128, width=128))
    program = (
        "import sys; from pathlib import Path; from sim_eval.datasets.episode_file import open_episode\n"
        "read = lambda: int(Path('/proc/self/io').read_text().split()[1])\n"
        "path = Path(sys.argv[1]); open_episode(path); before = read(); open_episode(path); print(read() - before)"
    )
    answer = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    assert int(answer.stdout) < path.stat().st_size / 10


def test_a_damaged_picture_is_noticed_when_it_is_read_and_no_other_is_lost(tmp_path: Path, make_episode: Make) -> None:
    path = tmp_path / "0.hdf5"
    stored = _stored(path, make_episode(0))
    position, size, _ = stored.pictures.table[3, 1, 1].tolist()  # depth of the second camera
    content = bytearray(path.read_bytes())
    content[position + size // 2] ^= 8
    path.write_bytes(content)
    again = open_episode(path)
    with pytest.raises(SimEvalError, match=r"0\.hdf5: 'robot0_eye_in_hand' at step 3 is damaged .*collect it again"):
        again.observation(3).views["robot0_eye_in_hand"]
    assert _same(again.observation(3).views["agentview"], make_episode(0).observations[3].views["agentview"])


def test_a_file_that_was_cut_or_removed_is_one_clear_line(tmp_path: Path, make_episode: Make) -> None:
    path = tmp_path / "0.hdf5"
    stored = _stored(path, make_episode(0))
    views = stored.observation(4).views
    os.truncate(path, int(stored.pictures.table[4, 1, 1, 0]) + 10)
    with pytest.raises(SimEvalError, match=r"0\.hdf5: .* is damaged \(its checksum differs\)"):
        views["robot0_eye_in_hand"]
    with pytest.raises(SimEvalError, match="delete it and collect it again"):
        open_episode(path)
    path.unlink()
    with pytest.raises(SimEvalError, match="No such file"):
        views["agentview"]


def test_a_forged_table_is_refused(tmp_path: Path, make_episode: Make) -> None:
    path = tmp_path / "0.hdf5"
    write_episode(path, make_episode(0))
    sound = path.read_bytes()
    block, body = sound[:512].rstrip(b"\0"), sound[512:]
    head, position, count = block.rsplit(b" ", 2)
    for where in (f"{position.decode()} 999999999999", f"999999999999 {count.decode()}", "0 3", "512 0", "600 1"):
        path.write_bytes((head + b" " + where.encode()).ljust(512, b"\0") + body)
        with pytest.raises(SimEvalError, match="is not a sound episode"):
            open_episode(path)


def test_plain_pictures_shrink(tmp_path: Path, make_episode: Make) -> None:
    # A gradient over a flat wall, as a simulator without texture renders it: what the size on the disk rests on.
    rows, columns = np.mgrid[:128, :128]
    rgb = np.repeat((rows // 8 + columns // 16).astype(np.uint8)[..., np.newaxis], 3, axis=-1)
    depth = (0.5 + 0.01 * rows).astype(np.float32)
    (seen,) = make_episode(0, steps=1).observations
    plain = replace(
        seen, views={"camera": CameraView(rgb, depth, np.array([[9, 0, 4], [0, 9, 4], [0, 0, 1.0]]), np.eye(4))}
    )
    stored = _stored(tmp_path / "0.hdf5", make_episode(0, steps=1, observations=[plain]))
    assert stored.pictures.table[..., 1].sum() < (rgb.nbytes + depth.nbytes) / 3


def test_other_programs_read_the_pictures(tmp_path: Path, make_episode: Make) -> None:
    # h5py and the public filter alone, in a process that imports nothing of ours.
    episode = make_episode(2, steps=3)
    write_episode(tmp_path / "0.hdf5", episode)
    program = (
        "import sys, h5py, hdf5plugin, hashlib\n"
        "obs = h5py.File(sys.argv[1])['data/demo_0/obs']\n"
        "for name in ('agentview_image', 'agentview_depth'): print(hashlib.sha256(obs[name][()].tobytes()).hexdigest())"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "0.hdf5"], capture_output=True, text=True, check=True
    )
    import hashlib

    views = [seen.views["agentview"] for seen in episode.observations]
    pictures = (np.stack([view.rgb for view in views]), np.stack([view.depth for view in views]))
    assert answer.stdout.split() == [hashlib.sha256(picture.tobytes()).hexdigest() for picture in pictures]


def test_the_table_says_where_h5py_finds_the_chunks(tmp_path: Path, make_episode: Make) -> None:
    stored = _stored(tmp_path / "0.hdf5", make_episode(1, steps=2))
    content = (tmp_path / "0.hdf5").read_bytes()
    with h5py.File(tmp_path / "0.hdf5") as file:
        for camera, name in enumerate(stored.intrinsics):
            for part, kind in enumerate(("image", "depth")):
                _, chunk = file[f"data/demo_0/obs/{name}_{kind}"].id.read_direct_chunk((1, 0, 0, 0))
                position, size, _ = stored.pictures.table[1, camera, part].tolist()
                assert content[position : position + size] == chunk
