"""Videos that a browser plays, of the right length, saying what came of the episode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
from fake_simulator import PLANE, PlaneSimulator, constant
from numpy.typing import NDArray

from sim_eval.core.types import CameraView, EpisodeKey, Observation, Recorder, Simulator, Status, WorkspaceBox
from sim_eval.evaluation.engine import Recorders, RolloutProtocol, run_episode
from sim_eval.reporting.video import PANEL, Layout, VideoRecorder, colour_depth, depth_range, shorten

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


class MovingPicture(PlaneSimulator):
    """The plane with a picture that says where and when: red grows to the right, green downwards, blue with time."""

    def observe(self, cameras: Sequence[str] | None = None) -> Observation:
        seen = super().observe(cameras)
        ramp = np.linspace(0, 255, 32).astype(np.uint8)
        rgb = np.stack([*np.meshgrid(ramp, ramp), np.full((32, 32), 8 * self._steps, np.uint8)], axis=-1)
        return replace(seen, views={name: replace(view, rgb=rgb) for name, view in seen.views.items()})


def test_every_frame_decodes_to_the_pictures_and_words_of_its_step(tmp_path: Path):
    """Each decoded frame is held against the frame that must be there, and against those that must not."""
    simulator, seen = MovingPicture(PLANE), []

    class Witness(Recorder):
        def start(self, simulator: Simulator, key: EpisodeKey, instruction: str) -> None:
            seen.append((simulator.observe().views, "none"))

        def after_act(self, simulator: Simulator, status: Status) -> None:
            seen.append((simulator.observe().views, ("none", *PLANE.phases)[status.phase]))

    recorders = Recorders(Witness(), VideoRecorder(tmp_path, "constant", "all"))
    run_episode(simulator, constant(1.0, 0.0), KEY, RolloutProtocol(), recorders)
    decoded = np.array(imageio.mimread(next(tmp_path.iterdir()), memtest=False)).astype(int)
    steps = len(seen) - 1
    assert len(decoded) == len(seen)
    assert {phase for _, phase in seen} == {"none", "near", "goal"}
    first = seen[0][0]
    ranges = {name: depth_range(view, PLANE.workspace) for name, view in first.items()}
    words = (f'"{PLANE.instruction(KEY)}"', f"constant   {PLANE.name}   test 7")
    sizes = {name: (32, 64) for name in first}

    def expected(step: int, text: str, outcome: str = "success", lines: tuple[str, str] = words) -> NDArray[np.int64]:
        panels = {
            name: np.hstack([view.rgb, colour_depth(view.depth, *ranges[name])]) for name, view in seen[step][0].items()
        }
        return Layout(sizes, lines, outcome).frame(panels, text).astype(int)

    for step, (_, phase) in enumerate(seen):
        text = f"step {step} of {steps}   phase: {phase}"
        right = np.abs(decoded[step] - expected(step, text))
        assert right.mean() < 4  # the codec's loss
        for wrong in (
            expected(step, f"step {step + 1} of {steps}   phase: {phase}"),
            expected(step, f"step {step} of {steps}   phase: other"),
            expected(step, text, "failure"),
            expected(step, text, lines=('"do something else"', words[1])),
            expected((step + 1) % len(seen), text),
        ):
            assert right.mean() < np.abs(decoded[step] - wrong).mean()


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
    colours = colour_depth(depth, near, far)[0]
    brightness = colours.astype(int).sum(axis=-1)
    assert brightness[0] == brightness[1] > brightness[2] > brightness[3]
    assert np.all(colours[3:] == colours[3])
    steps = colour_depth(np.linspace(near, far, 50, dtype=np.float32)[None], near, far)[0] @ [0.299, 0.587, 0.114]
    assert np.all(np.diff(steps) < 0)  # the farther the darker, so that a depth can be read
    inside = np.eye(4)  # a wrist camera within the workspace
    near, far = depth_range(CameraView(view.rgb, view.depth, np.eye(3), inside), WorkspaceBox((-1, -1, -1), (1, 1, 1)))
    assert 0 < near < far


def test_a_long_instruction_is_cut():
    assert shorten("short", 200) == "short"
    assert shorten("long " * 100, 200).endswith("…")
