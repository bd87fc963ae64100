import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from sim_eval.core.errors import SimEvalError
from sim_eval.core.files import sealed
from sim_eval.core.types import CameraView, EpisodeKey, RenderConfig
from sim_eval.datasets.checks import check_episode
from sim_eval.datasets.episode_file import (
    MARK,
    Episode,
    _arrays,
    _fill,
    episode_files,
    file_name,
    open_episode,
    read_episode,
    read_header,
    write_episode,
)

Make = Callable[..., Episode]


def test_the_name_tells_the_key() -> None:
    assert file_name(EpisodeKey("robosuite/LiftWide", "train", 12)) == "robosuite-LiftWide_train_00012.hdf5"


def test_round_trip_is_bit_exact(tmp_path: Path, make_episode: Make) -> None:
    # A model file above 64 KB: attributes that are arrays break there, strings must not.
    wanted = make_episode(3, provenance={"env_args": '{"a": "é"}', "model_file": "<mujoco>" + "x" * 300_000})
    write_episode(tmp_path / "e.hdf5", wanted)
    got = read_episode(tmp_path / "e.hdf5")
    for name in ("key", "instruction", "workspace", "robot", "action", "provenance", "versions", "spec"):
        assert getattr(got, name) == getattr(wanted, name), name
    for name in ("actions", "executed_actions", "states", "success", "phases"):
        mine, theirs = getattr(got, name), getattr(wanted, name)
        assert mine.dtype == theirs.dtype, name
        assert mine.tobytes() == theirs.tobytes(), name
    for mine, theirs in zip(got.observations, wanted.observations, strict=True):
        assert (mine.instruction, mine.workspace) == (theirs.instruction, theirs.workspace)
        assert {k: v.tobytes() for k, v in mine.proprio.items()} == {k: v.tobytes() for k, v in theirs.proprio.items()}
        assert list(mine.views) == list(theirs.views)
        for name, view in mine.views.items():
            for part in ("rgb", "depth", "intrinsics", "camera_to_world"):
                left, right = getattr(view, part), getattr(theirs.views[name], part)
                assert left.dtype == right.dtype
                assert np.array_equal(left, right), part


def test_the_same_episode_makes_the_same_bytes(tmp_path: Path, make_episode: Make) -> None:
    for name in ("a.hdf5", "b.hdf5"):
        write_episode(tmp_path / name, make_episode(1))
    assert (tmp_path / "a.hdf5").read_bytes() == (tmp_path / "b.hdf5").read_bytes()


def test_a_robomimic_reader_finds_what_it_expects(tmp_path: Path, make_episode: Make) -> None:
    write_episode(tmp_path / "e.hdf5", make_episode(0, steps=4))
    import hdf5plugin  # noqa: F401  # as such a reader does

    with h5py.File(tmp_path / "e.hdf5", "r") as file:
        assert file.userblock_size == 512
        assert file["data"].attrs["total"] == 4
        assert json.loads(file["data"].attrs["env_args"])["env_name"] == "Lift"
        demo = file["data/demo_0"]
        assert demo.attrs["num_samples"] == 4
        assert demo.attrs["model_file"] == "<mujoco/>"
        assert json.loads(demo.attrs["ep_meta"])["lang"] == "lift the cube"
        camera = json.loads(demo.attrs["camera_info"])["agentview"]
        assert (camera["image_convention"], camera["depth_unit"]) == ("upright", "metre")
        assert demo["rewards"][:].tolist() == [0, 0, 0, 1]
        assert demo["dones"][:].tolist() == [0, 0, 0, 1]
        shapes = {name: (data.shape, str(data.dtype)) for name, data in demo["obs"].items()}
        assert shapes["agentview_image"] == ((4, 12, 16, 3), "uint8")
        assert shapes["agentview_depth"] == ((4, 12, 16, 1), "float32")
        assert shapes["robot0_eye_in_hand_intrinsics"] == ((4, 3, 3), "float64")
        assert shapes["robot0_eye_in_hand_camera_to_world"] == ((4, 4, 4), "float64")
        assert shapes["robot0_eef_pos"] == ((4, 3), "float64")
        for step, seen in enumerate(make_episode(0, steps=4).observations):
            assert np.array_equal(demo["obs/agentview_image"][step], seen.views["agentview"].rgb)
            assert np.array_equal(demo["obs/agentview_depth"][step, ..., 0], seen.views["agentview"].depth)


def test_a_header_says_what_the_episode_is(tmp_path: Path, make_episode: Make) -> None:
    episode = make_episode(7, success=np.array([False, True, False, False, False]))
    write_episode(tmp_path / "e.hdf5", episode)
    header = read_header(tmp_path / "e.hdf5")
    assert (header.key, header.instruction, header.length) == (episode.key, "lift the cube", 5)
    assert header.success
    assert header.first_success == 2
    depths = np.array([seen.views["agentview"].depth for seen in episode.observations])
    assert header.depth_range["agentview"] == (depths.min(), depths.max())
    assert header.spec == episode.spec
    assert header.spec.cameras == {"agentview": (12, 16), "robot0_eye_in_hand": (12, 16)}


# 0.95 loses the end only, 0.001 leaves a few bytes of the signature.
@pytest.mark.parametrize("part", [0.0, 0.001, 0.3, 0.95])
def test_a_truncated_file_is_refused_in_one_line(tmp_path: Path, make_episode: Make, part: float) -> None:
    path = tmp_path / "e.hdf5"
    write_episode(path, make_episode())
    os.truncate(path, int(part * path.stat().st_size))
    for read in (read_episode, read_header):
        with pytest.raises(SimEvalError, match=r"e\.hdf5.*delete it and collect it again") as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_any_flipped_bit_is_refused(tmp_path: Path, make_episode: Make) -> None:
    # Without the checksum, such flips gave other numbers, other words, and once an endless loop inside HDF5.
    path = tmp_path / "e.hdf5"
    write_episode(path, make_episode(0, steps=2))
    sound = path.read_bytes()
    for offset in [0, 80, 400, 511, *np.random.default_rng(0).integers(512, len(sound), 100).tolist()]:
        path.write_bytes(sound[:offset] + bytes([sound[offset] ^ 8]) + sound[offset + 1 :])
        for read in (read_episode, check_episode):
            with pytest.raises(SimEvalError, match="delete it and collect it again"):
                read(path)
    path.write_bytes(sound)
    pictures = open_episode(path).pictures.table.reshape(-1, 3)[:, :2]
    for offset in np.random.default_rng(1).integers(512, len(sound), 300).tolist():
        path.write_bytes(sound[:offset] + bytes([sound[offset] ^ 8]) + sound[offset + 1 :])
        if any(begin <= offset < begin + size for begin, size in pictures.tolist()):
            read_header(path)  # reads none of them
        else:
            with pytest.raises(SimEvalError, match="delete it and collect it again"):
                read_header(path)


def test_foreign_and_missing_files_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "foreign.hdf5", "w") as file:
        file.create_group("data/demo_0").attrs["num_samples"] = 3
    (tmp_path / "text.hdf5").write_text("hello")
    for name in ("foreign.hdf5", "text.hdf5", "missing.hdf5"):
        with pytest.raises(SimEvalError, match=name):
            read_header(tmp_path / name)


def test_what_would_lose_digits_or_steps_is_not_written(tmp_path: Path, make_episode: Make) -> None:
    good = make_episode()
    seen = good.observations[0]
    view = seen.views["agentview"]
    wide = CameraView(view.rgb, view.depth.astype(np.float64), view.intrinsics, view.camera_to_world)
    blind = replace(seen, views={})
    bad = [
        replace(good, observations=[replace(seen, views={"agentview": wide})] * 5),
        replace(good, observations=[*good.observations[:4], blind]),
        replace(good, states=good.states[:-1]),
        replace(good, provenance={}),
        replace(good, actions=good.actions[:0]),
    ]
    for episode in bad:
        with pytest.raises(SimEvalError, match="robosuite/LiftWide/train/00000 cannot be stored"):
            write_episode(tmp_path / "e.hdf5", episode)
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_place_is_one_clear_line(tmp_path: Path, make_episode: Make) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SimEvalError, match="choose another folder"):
        write_episode(tmp_path / "file" / "e.hdf5", make_episode())


FULL_DISK = """
import resource, sys
from pathlib import Path
from sim_eval.datasets.episode_file import read_episode, write_episode
from sim_eval.core.errors import SimEvalError
source, target = map(Path, sys.argv[1:])
episode = read_episode(source)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    write_episode(target, episode)
except SimEvalError as error:
    sys.exit(str(error))
"""


def test_a_full_disk_leaves_nothing_behind_and_keeps_the_old_file(tmp_path: Path, make_episode: Make) -> None:
    source, target = tmp_path / "source.hdf5", tmp_path / "out" / "e.hdf5"
    write_episode(source, make_episode(1, steps=20))
    write_episode(target, make_episode(2))
    before = target.read_bytes()
    run = subprocess.run([sys.executable, "-c", FULL_DISK, source, target], capture_output=True, text=True)
    assert run.returncode == 1
    assert "cannot write" in run.stderr
    assert run.stderr.strip().count("\n") == 0
    assert [path.name for path in target.parent.iterdir()] == ["e.hdf5"]
    assert target.read_bytes() == before


WRITE_FOR_EVER = """
import itertools, sys
from dataclasses import replace
from pathlib import Path
from sim_eval.datasets.episode_file import file_name, read_episode, write_episode
from sim_eval.core.types import EpisodeKey
source, folder = map(Path, sys.argv[1:])
episode = read_episode(source)
for index in itertools.count():
    key = EpisodeKey("robosuite/LiftWide", "train", index)
    write_episode(folder / file_name(key), replace(episode, key=key))
"""


def test_sigkill_in_mid_write_costs_only_the_running_episode(tmp_path: Path, make_episode: Make) -> None:
    source, folder = tmp_path / "source.hdf5", tmp_path / "out"
    write_episode(source, make_episode(0, steps=30, height=64, width=64))
    folder.mkdir()
    process = subprocess.Popen([sys.executable, "-c", WRITE_FOR_EVER, source, folder])
    try:
        deadline = time.monotonic() + 30
        # A temporary file on disk means that a write is under way.
        while len(episode_files(folder)) < 3 or not list(folder.glob(".*.tmp")):
            assert time.monotonic() < deadline, "the writer never got going"
            assert process.poll() is None, "the writer died"
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    files = episode_files(folder)
    assert len(files) >= 3
    assert [read_header(path).key.index for path in files] == list(range(len(files)))
    assert [check_episode(path) for path in files] == [[]] * len(files)


def test_how_the_task_was_rendered_is_written_down(tmp_path: Path, make_episode: Make) -> None:
    render_config = RenderConfig("faithful", 12, 16, hide_goal=True)
    path = tmp_path / "episode.hdf5"
    write_episode(path, make_episode(render_config=render_config))
    assert read_episode(path).render_config == read_header(path).render_config == render_config


def test_a_sealed_file_whose_pictures_have_another_size_than_it_says_is_refused(
    tmp_path: Path, make_episode: Make
) -> None:
    write_episode(path := tmp_path / "episode.hdf5", make_episode(0))
    stored = open_episode(path)
    camera, (height, width) = next(iter(stored.pictures.cameras.items()))
    for size in ((height + 1, width), (height, 2 * width), (10**6, 10**7), (-1, width)):
        forged = replace(stored.pictures, cameras={**stored.pictures.cameras, camera: size})
        with pytest.raises(SimEvalError, match="is damaged"):
            forged.read(0, camera)


@pytest.mark.parametrize(
    ("name", "forged"),
    [
        ("actions", np.zeros((9, 3))),
        ("obs/robot0_eef_pos", np.zeros((2, 3))),
        ("obs/agentview_intrinsics", np.zeros(5)),
        ("obs/agentview_camera_to_world", np.zeros((5, 3, 4))),
        ("rewards", np.array(["x"], dtype="S1")),
    ],
)
def test_a_sealed_file_whose_arrays_do_not_fit_together_is_refused(
    tmp_path: Path, make_episode: Make, name: str, forged: np.ndarray
) -> None:
    def fill(file: h5py.File) -> h5py.Dataset:
        table = _fill(file, episode, _arrays(episode))
        del file["data/demo_0"][name]
        file["data/demo_0"][name] = forged
        return table

    episode = make_episode(0)
    (path := tmp_path / "episode.hdf5").write_bytes(sealed(MARK, fill))
    with pytest.raises(SimEvalError, match=r"is not a sound episode .*collect it again") as caught:
        open_episode(path)
    assert "\n" not in str(caught.value)


def test_a_sealed_file_with_a_bottomless_description_is_refused(tmp_path: Path, make_episode: Make) -> None:
    def fill(file: h5py.File) -> h5py.Dataset:
        table = _fill(file, episode, _arrays(episode))
        demo = file["data/demo_0"]
        demo.attrs["ep_meta"] = "[" * 30_000 + "]" * 30_000
        return table

    episode = make_episode(0)
    (path := tmp_path / "episode.hdf5").write_bytes(sealed(MARK, fill))
    with pytest.raises(SimEvalError, match="is not a sound episode"):
        read_header(path)
