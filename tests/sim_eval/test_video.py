"""Videos that a browser plays, of the right length, saying what came of the episode."""

from __future__ import annotations

from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
from fake_simulator import PLANE, PlaneSimulator, constant

from sim_eval.core.types import CameraView, EpisodeKey, WorkspaceBox
from sim_eval.evaluation.engine import RolloutProtocol, run_episode
from sim_eval.reporting.video import PANEL, VideoRecorder, colour_depth, depth_range, shorten

KEY = EpisodeKey(PLANE.name, "test", 7)


def record(folder: Path, speed: float, choice: str = "all") -> int:
    """Runs an episode; how many steps it made."""
    recorder = VideoRecorder(folder, "constant", choice)
    return run_episode(PlaneSimulator(PLANE), constant(speed, 0.0), KEY, RolloutProtocol(), recorder).steps


@pytest.mark.parametrize(("speed", "outcome"), [(1.0, "success"), (0.0, "failure")])
def test_it_decodes_with_every_step_and_the_outcome_in_its_name(tmp_path: Path, speed: float, outcome: str):
    steps = record(tmp_path, speed)
    (path,) = tmp_path.iterdir()  # and no partial file
    assert path.name == f"fake-Plane_test_00007_{outcome}.mp4"
    with imageio.get_reader(path) as reader:
        meta = reader.get_meta_data()
        frames = list(reader.iter_data())
    assert len(frames) == steps + 1
    assert meta["codec"] == "h264"
    assert meta["pix_fmt"].startswith("yuv420p")
    assert meta["fps"] == 20.0
    width, height = meta["size"]
    assert width == 2 * PANEL
    assert height > PANEL * 2  # two cameras, one under the other
    assert width % 2 == height % 2 == 0
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # plays before it is wholly loaded


def test_pictures_text_and_outcome_are_where_they_should_be(tmp_path: Path):
    record(tmp_path / "good", 1.0)
    record(tmp_path / "bad", 0.0)
    good, bad = (imageio.mimread(next((tmp_path / name).iterdir()), memtest=False) for name in ("good", "bad"))
    last = good[-1].astype(int)
    rgb, depth = last[-100:-20, 20 : PANEL - 20], last[-100:-20, PANEL + 20 : -20]
    assert np.ptp(rgb, axis=-1).max() < 12  # the fake camera is grey
    assert rgb.mean() == pytest.approx(40 + len(good) - 1, abs=4)
    assert depth[:, :40].mean() > depth[:, -40:].mean() + 30  # near is bright
    assert (good[0].max(axis=-1)[:24] > 150).sum() > 50  # letters
    assert (good[3].astype(int) - good[4])[24 * 2 : 24 * 3].any()  # the step counts
    tag = (slice(62, 66), slice(-92, -86))
    assert good[0][tag].mean(axis=(0, 1)).argmax() == 1  # green
    assert bad[0][tag].mean(axis=(0, 1)).argmax() == 0  # red


def test_failures_only(tmp_path: Path):
    record(tmp_path, 1.0, "failures")
    assert not list(tmp_path.iterdir())
    record(tmp_path, 0.0, "failures")
    assert [path.suffix for path in tmp_path.iterdir()] == [".mp4"]


def test_depth_colours_are_fixed_by_the_workspace_and_take_any_depth():
    pose = np.eye(4)
    pose[2, 3] = -2.0
    view = CameraView(np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.float32), np.eye(3), pose)
    near, far = depth_range(view, WorkspaceBox((-1, -1, -0.5), (1, 1, 0.5)))
    assert 0 < near < 1.5 < 2.5 < far
    depth = np.array([[0.0, near, (near + far) / 2, far, 99.0, np.inf, np.nan]], np.float32)
    brightness = colour_depth(depth, near, far).astype(int).sum(axis=-1)[0]
    assert brightness[0] == brightness[1] > brightness[2] > brightness[3]
    assert np.all(brightness[3:] == brightness[3])
    inside = np.eye(4)  # a wrist camera within the workspace
    near, far = depth_range(CameraView(view.rgb, view.depth, np.eye(3), inside), WorkspaceBox((-1, -1, -1), (1, 1, 1)))
    assert 0 < near < far


def test_a_long_instruction_is_cut():
    assert shorten("short", 200) == "short"
    assert shorten("long " * 100, 200).endswith("…")
