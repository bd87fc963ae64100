"""Videos that a browser plays: what each frame shows, which episodes get one, and that no episode is changed by it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from math import ceil
from pathlib import Path
from shutil import copytree
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest
from fake_simulator import ACTION, PLANE, PlaneSimulator, constant
from numpy.typing import NDArray
from recorded_run import play

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import (
    ActionChunk,
    CameraView,
    EpisodeKey,
    Observation,
    Recorder,
    RenderConfig,
    SensorReadings,
    Simulator,
    Status,
    WorkspaceBox,
)
from sim_eval.envs.tasks import get_task, own_tasks
from sim_eval.evaluation.engine import EpisodeResult, Recorders, RolloutProtocol, run_episode
from sim_eval.evaluation.jobs import OneSimulator, RolloutJob
from sim_eval.evaluation.trajectory import TrajectoryRecorder
from sim_eval.policies.policy import PolicySpec
from sim_eval.reporting.episode_video import HOLD_SECONDS, VideoRecorder, write_grid, write_video
from sim_eval.reporting.video_layout import (
    AMBER,
    GREEN,
    RED,
    EpisodeLayout,
    Picture,
    Story,
    TileLayout,
    Views,
    colour_depth,
    depth_range,
    fit,
    third_person_size,
)
from sim_eval.video import VideoArguments, main

KEY = EpisodeKey(PLANE.name, "test", 7)
SPEC = PolicySpec("constant")
SIZE = 256
HELD = round(HOLD_SECONDS * ACTION.control_hz)  # frames


def record(
    folder: Path, speed: float, choice: str | int = "all", index: int = 7, simulator: PlaneSimulator | None = None
) -> EpisodeResult:
    recorder = VideoRecorder(folder, SPEC, choice, size=SIZE)
    key = replace(KEY, index=index)
    return run_episode(simulator or PlaneSimulator(PLANE), constant(speed, 0.0), key, RolloutProtocol(), recorder)


def frames(video: Path) -> NDArray[np.int16]:
    return np.array(imageio.mimread(video, memtest=False)).astype(np.int16)


@pytest.mark.parametrize(("speed", "outcome"), [(1.0, "success"), (0.0, "failure")])
def test_it_decodes_with_every_step_and_the_outcome_in_its_name(tmp_path: Path, speed: float, outcome: str):
    steps = record(tmp_path, speed).steps
    (path,) = tmp_path.iterdir()  # and no partial file
    assert path.name == f"fake-Plane_test_00007_{outcome}.mp4"
    with imageio.get_reader(path) as reader:
        meta = reader.get_meta_data()
        assert len(list(reader.iter_data())) == steps + 1 + HELD
    assert meta["codec"] == "h264"
    assert meta["pix_fmt"].startswith("yuv420p")
    assert (meta["fps"], meta["size"]) == (20.0, (640, 360))
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # plays before it is wholly loaded


@pytest.mark.parametrize("size", [128, 200, 333, 512, 768])
def test_sizes_are_even_and_landscape(size: int):
    view = PlaneSimulator(PLANE)
    view.reset(KEY)
    views = view.observe().views
    large = np.zeros((*third_person_size(size), 3), np.uint8)
    for layout in (EpisodeLayout, TileLayout):
        height, width, _ = layout(story([False]), views, size).frame(0, large, views).shape
        assert height % 2 == width % 2 == 0
        assert height < width
    assert EpisodeLayout(story([False]), views, 512).frame(0, large, views).shape == (720, 1280, 3)


class MovingPicture(PlaneSimulator):
    """The plane with a picture that says where and when: red grows to the right, green downwards, blue with time."""

    def observe(self, cameras: Sequence[str] | None = None) -> SensorReadings:
        seen = super().observe(cameras)
        ramp = np.linspace(0, 255, 32).astype(np.uint8)
        rgb = np.stack([*np.meshgrid(ramp, ramp), np.full((32, 32), 8 * self._steps, np.uint8)], axis=-1)
        return replace(seen, views={name: replace(view, rgb=rgb) for name, view in seen.views.items()})


def story(success: Sequence[bool], counts: bool | None = None, max_steps: int = 30, **changes: object) -> Story:
    """An episode whose rule held after these steps."""
    statuses = [Status(each, 2 if each else 0) for each in success]
    counts = any(success) if counts is None else counts
    made = Story(
        KEY, "constant", PLANE.instruction(KEY), PLANE.workspace, PLANE.phases, statuses, [0], counts, max_steps, 20.0
    )
    return replace(made, **changes)


def test_every_frame_decodes_to_the_pictures_and_words_of_its_step(tmp_path: Path):
    """Each decoded frame is held against the frame that must be there, and against those that must not."""
    simulator, seen, statuses = MovingPicture(PLANE), list[Views](), list[Status]()

    class Witness(Recorder):
        def start(self, simulator: Simulator, key: EpisodeKey, instruction: str) -> None:
            seen.append(simulator.observe().views)

        def after_act(self, simulator: Simulator, status: Status) -> None:
            seen.append(simulator.observe().views)
            statuses.append(status)

    recorders = Recorders(Witness(), VideoRecorder(tmp_path, SPEC, size=SIZE))
    result = run_episode(simulator, constant(1.0, 0.0), KEY, RolloutProtocol(), recorders)
    decoded = frames(next(tmp_path.iterdir()))
    steps = len(statuses)
    assert {status.phase for status in statuses} == {0, 1, 2}
    true = story([], True, statuses=statuses, asked=range(0, steps, 4))
    assert true.first_success == result.first_success

    def expected(step: int, told: Story = true, at: int | None = None) -> NDArray[np.int16]:
        views = seen[step if at is None else at]
        return EpisodeLayout(told, seen[0], SIZE).frame(step, views["top"].rgb, views).astype(np.int16)

    for step in range(steps + 1):
        right = np.abs(decoded[step] - expected(step))
        assert right.mean() < 4  # the codec's loss
        wrong = [
            expected(step, replace(true, instruction="do something else")),
            expected(step, replace(true, label="another policy")),
            expected(step, replace(true, asked=[0])),
            expected(step, at=(step + 1) % len(seen)),
            expected(step + 1 if step < steps else 0, at=step),
        ]
        if step >= result.first_success:
            wrong.append(expected(step, replace(true, statuses=[Status(False, each.phase) for each in statuses])))
        assert all(right.mean() < np.abs(decoded[step] - other).mean() for other in wrong)
    assert np.abs(decoded[steps + 1 :] - expected(steps)).mean() < 4  # the end stays


def test_the_outcome_is_told_from_the_moment_it_happens():
    lost = story([False, True, True, False, True, False])
    told = [lost.outcome(step) for step in range(7)]
    assert told[:2] == [None, None]
    assert told[2] == told[3] == told[5] == ("success at step 2", GREEN)
    assert told[4] == ("success at step 2, lost again", AMBER)
    assert told[6] == ("success at step 2, lost at the end", AMBER)
    failed = story([False] * 30)
    assert [failed.outcome(step) for step in (0, 29, 30)] == [None, None, ("failure: time limit", RED)]
    assert story([False] * 5).outcome(5) == ("failure: broke off", RED)
    assert story([False, True], counts=False).outcome(2) == ("failure: broke off", RED)  # the simulator broke later


@pytest.mark.parametrize("layout", [EpisodeLayout, TileLayout])
def test_no_frame_shows_the_outcome_before_it_happens(layout: type[EpisodeLayout] | type[TileLayout]):
    view = PlaneSimulator(PLANE)
    view.reset(KEY)
    views = view.observe().views
    drawn = [
        layout(story(success), views, SIZE).frame(3, view.observe().views["top"].rgb, views)
        for success in ([False] * 4 + [True], [False] * 5, [False, True, True, False, False])
    ]
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


def test_failures_only(tmp_path: Path):
    assert record(tmp_path, 1.0, "failures").success
    assert not list(tmp_path.iterdir())
    record(tmp_path, 0.0, "failures")
    assert [path.suffix for path in tmp_path.iterdir()] == [".mp4"]


def test_the_first_episodes_by_index_get_one_whatever_ran_before(tmp_path: Path):
    recorder = VideoRecorder(tmp_path, SPEC, 2, first=5, size=128)
    for index in (8, 6, 7, 5):
        simulator = PlaneSimulator(PLANE)
        key = replace(KEY, index=index)
        run_episode(simulator, constant(1.0, 0.0), key, RolloutProtocol(), recorder)
        assert bool(simulator.observed.count(("top", "side"))) == (index < 7)  # nothing is rendered in vain
    assert sorted(path.name[17:21] for path in tmp_path.iterdir()) == ["0005", "0006"]


class Fast(PlaneSimulator):
    """The plane at 80 Hz, rendered again from its poses; ``rendered`` counts them."""

    def __init__(self) -> None:
        super().__init__(PLANE)
        self.spec = replace(self.spec, action=replace(ACTION, control_hz=80.0))
        self.rendered: list[int] = []

    def pose(self) -> int:
        return self._steps

    def rerender(
        self, poses: Sequence[int], mode: str, size: tuple[int, int], cameras: Sequence[str]
    ) -> Iterator[tuple[Picture, Views]]:
        views = self.observe(cameras).views
        for pose in poses:
            self.rendered.append(pose)
            yield np.full((*size, 3), 8 * pose, np.uint8), views


def test_fast_control_is_shown_in_real_time_by_fewer_frames(tmp_path: Path):
    simulator, beats = Fast(), list[None]()
    recorder = VideoRecorder(tmp_path, SPEC, size=128, still_working=lambda: beats.append(None))
    steps = run_episode(simulator, constant(0.9, 0.0), KEY, RolloutProtocol(), recorder).steps
    assert steps % 3 != 0  # else the last step would be shown anyway
    assert simulator.rendered == [*range(0, steps, 3), steps]
    assert len(beats) == len(simulator.rendered)  # a watchdog hears of each frame
    (path,) = tmp_path.iterdir()
    with imageio.get_reader(path) as reader:
        assert reader.get_meta_data()["fps"] == pytest.approx(80 / 3, abs=0.01)
        shown = len(list(reader.iter_data()))
    assert shown == ceil(steps / 3) + 1 + round(80 / 3)


def test_a_simulator_that_can_be_rendered_again_is_rendered_for_kept_videos_only(tmp_path: Path):
    simulator = Fast()
    recorder = VideoRecorder(tmp_path, SPEC, "failures", size=128)
    run_episode(simulator, constant(1.0, 0.0), KEY, RolloutProtocol(), recorder)
    assert not simulator.rendered
    assert set(simulator.observed) == {()}  # and nothing while it ran: the policy is blind


@pytest.mark.parametrize("name", ["robosuite/LiftWide", "metaworld/drawer-open-v3"])
def test_a_video_changes_nothing_and_shows_what_the_policy_saw(name: str, tmp_path: Path):
    """On the real simulators: states and every observation with a video equal those without, and so do the insets."""
    task = replace(get_task(name), max_episode_steps=5)
    cameras = {"agentview": (48, 64), "wrist": (48, 64)}
    key = EpisodeKey(name, "test", 3)
    seen: list[Views] = []
    shown: dict[int, tuple[Picture, Views]] = {}

    class Witness(TrajectoryRecorder):
        def asked(self, observation: Observation, chunk: ActionChunk) -> None:
            super().asked(observation, chunk)
            seen.append(observation.views)

    class Shown(EpisodeLayout):
        def frame(self, step: int, large: Picture, views: Views) -> Picture:
            shown[step] = large, views
            return super().frame(step, large, views)

    with closing(task.make(RenderConfig.for_cameras("fast", cameras))) as simulator:
        policy = constant(*np.linspace(-0.4, 0.6, simulator.spec.action.dim))
        policy.spec = PolicySpec("waver", cameras=cameras)
        runs = []
        for videos in ([], [VideoRecorder(tmp_path, policy.spec, size=128, layout=Shown)], []):
            recorder = Witness(policy.spec)
            result = run_episode(simulator, policy, key, RolloutProtocol(3), Recorders(recorder, *videos))
            runs.append((result, recorder.trajectory))
    for result, trajectory in runs[1:]:
        assert result == runs[0][0]
        assert trajectory.seen == runs[0][1].seen
        assert trajectory.states.tobytes() == runs[0][1].states.tobytes()
    assert len(list(tmp_path.iterdir())) == 1
    for step, then in ((0, seen[0]), (3, seen[1])):
        for camera in cameras:
            for field in ("rgb", "depth", "intrinsics", "camera_to_world"):
                assert np.array_equal(getattr(shown[step][1][camera], field), getattr(then[camera], field))
    first, last = shown[0][0], shown[5][0]
    assert first.shape == (*third_person_size(128), 3)
    assert first.std() > 20  # a scene, not a blank
    assert not np.array_equal(first, last)


def test_an_interrupt_ends_the_rendering_before_the_simulator_is_closed(tmp_path: Path):
    ended = list[int]()

    class Leaving(Fast):
        def rerender(self, *arguments: Any) -> Iterator[tuple[Picture, Views]]:
            try:
                yield from super().rerender(*arguments)
            finally:
                ended.append(self.rendered[-1])

    def interrupt() -> None:
        if len(simulator.rendered) == 2:
            raise KeyboardInterrupt

    simulator = Leaving()
    recorder = VideoRecorder(tmp_path, SPEC, size=128, still_working=interrupt)
    with pytest.raises(KeyboardInterrupt) as stop:  # it holds every frame of the stack
        run_episode(simulator, constant(1.0, 0.0), KEY, RolloutProtocol(), recorder)
    assert stop.type is KeyboardInterrupt
    assert ended == [3]
    assert not list(tmp_path.iterdir())


def test_a_watchdog_hears_of_the_work_after_an_episode(recorded_plane: Path, tmp_path: Path):
    beats = list[None]()

    class Listener(Recorder):
        def still_working(self) -> None:
            beats.append(None)

    spec = PolicySpec("constant")
    job = RolloutJob(
        spec, RolloutProtocol(), tmp_path, (partial(VideoRecorder, tmp_path, spec, "all", 0, 128, "fast"),)
    )
    result = job.player(constant(1.0, 0.0), OneSimulator(RenderConfig()), Listener())(KEY)
    assert len(beats) == result.steps + 1  # one for each frame


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


def test_a_long_instruction_gets_smaller_letters_and_then_an_end():
    short, largest = fit("short", 400, 30, 18)
    longer, smaller = fit("a longer one that just about fits", 400, 30, 18)
    assert (short, longer) == ("short", "a longer one that just about fits")
    assert largest.size == 30 > smaller.size >= 18
    cut, smallest = fit("long " * 100, 400, 30, 18)
    assert cut.endswith("…")
    assert smallest.size == 18
    assert smallest.getlength(cut) <= 400
    assert fit("of two\nlines", 400, 30, 18)[0] == "of two lines"


def test_a_grid_keeps_time_and_the_last_frames(tmp_path: Path):
    """A clip of 10 Hz and 2 s, and one of 20 Hz and 1 s, whose brightness is their own time."""
    for name, rate, count in (("slow", 10, 20), ("quick", 20, 20)):
        pictures = (np.full((64, 64, 3), round(100 * number / rate) + 20, np.uint8) for number in range(count))
        write_video(tmp_path / f"{name}.mp4", pictures, rate)
    write_grid(tmp_path / "grid.mp4", [tmp_path / "slow.mp4", tmp_path / "quick.mp4", tmp_path / "slow.mp4"], 2)
    grid = frames(tmp_path / "grid.mp4")
    assert grid.shape[1:] == (128, 128, 3)
    for instant, frame in enumerate(grid):
        slow, quick = (frame[:64, place : place + 64].mean() - 20 for place in (0, 64))
        assert slow == pytest.approx(100 * (instant // 2) / 10, abs=4)
        assert quick == pytest.approx(100 * min(instant, 19) / 20, abs=4)
    assert len(grid) == 40
    assert grid[:, 64:, 64:].max() < 10  # no fourth episode


@pytest.fixture
def recorded_plane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of two successes and a failure on the plane, without videos."""
    monkeypatch.setitem(own_tasks(), PLANE.name, PLANE)
    get_task.cache_clear()
    speeds = {0: 1.0, 1: 0.0, 2: 1.0}
    policy = constant(1.0, 0.0)
    policy._answer = lambda request: np.tile((speeds[request.key.index], 0.0), (8, 1))
    return play(tmp_path / "run", policy, episodes=3)


def test_videos_of_a_finished_run(recorded_plane: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(VideoArguments((recorded_plane,), which="failures", size=128)) == 0
    (video,) = (recorded_plane / "videos").iterdir()
    assert capsys.readouterr().out == f"{video}\n"
    assert video.name == "fake-Plane_test_00001_failure.mp4"
    assert len(frames(video)) == PLANE.max_episode_steps + 1 + HELD
    assert main(VideoArguments((recorded_plane,), episode=(0, 2), size=128, out=tmp_path / "chosen")) == 0
    assert sorted(path.name[17:21] for path in (tmp_path / "chosen").iterdir()) == ["0000", "0002"]


def test_videos_of_several_runs_of_the_same_episodes_do_not_replace_each_other(recorded_plane: Path, tmp_path: Path):
    other = tmp_path / "other"
    copytree(recorded_plane, other)
    asked = VideoArguments((recorded_plane, other), episode=(0,), size=128, out=tmp_path / "both")
    assert main(asked) == 0
    names = sorted(str(path.relative_to(asked.out)) for path in asked.out.rglob("*.mp4"))
    assert names == [f"{run}/fake-Plane_test_00000_success.mp4" for run in ("other", "run")]
    copytree(recorded_plane, tmp_path / "elsewhere" / "run")
    with pytest.raises(SimEvalError, match="two run folders have one name"):
        main(replace(asked, runs=(recorded_plane, tmp_path / "elsewhere" / "run")))


def test_a_grid_of_a_finished_run(recorded_plane: Path, tmp_path: Path):
    assert main(VideoArguments((recorded_plane,), grid="1x3", size=128, out=tmp_path / "grid")) == 0
    (video,) = (tmp_path / "grid").iterdir()
    shown = frames(video)
    assert len(shown) == PLANE.max_episode_steps + 1 + HELD  # of the failure, the longest
    height, width = shown.shape[1:3]
    assert width > 3 * height
    assert not np.array_equal(shown[-1][:, : width // 3], shown[-1][:, width // 3 : 2 * (width // 3)])


def test_an_episode_that_ends_otherwise_is_said_and_gets_no_video(
    recorded_plane: Path, capsys: pytest.CaptureFixture[str]
):
    episodes = recorded_plane / "episodes.jsonl"
    first, second, third = map(json.loads, episodes.read_text().splitlines())
    other = {**third, "success": False, "success_end": False, "first_success": None}
    later = {**first, "steps": first["steps"] + 1}
    episodes.write_text("".join(json.dumps(line) + "\n" for line in (later, second, other)))
    videos = recorded_plane / "videos"
    videos.mkdir()
    (videos / "fake-Plane_test_00000_success.mp4").write_text("of the run itself")
    assert main(VideoArguments((recorded_plane,), size=128)) == 1
    assert sorted(path.name[17:] for path in videos.iterdir()) == ["0000_success.mp4", "0001_failure.mp4"]
    assert (videos / "fake-Plane_test_00000_success.mp4").read_text() == "of the run itself"
    steps, shown = first["steps"], capsys.readouterr().err
    assert f"ends as a success after {steps} steps when played back, but is recorded as a failure" in shown
    assert f"is recorded as a success after {steps + 1}" in shown


def test_a_missing_or_foreign_trajectory_is_said_and_gets_no_video(
    recorded_plane: Path, capsys: pytest.CaptureFixture[str]
):
    files = [recorded_plane / "trajectories" / f"fake-Plane_test_0000{index}.h5" for index in range(3)]
    files[2].write_bytes(files[0].read_bytes())
    files[1].unlink()
    assert main(VideoArguments((recorded_plane,), size=128)) == 1
    assert [path.name for path in (recorded_plane / "videos").iterdir()] == ["fake-Plane_test_00000_success.mp4"]
    shown = capsys.readouterr().err
    assert files[1].name in shown
    assert f"{files[2].name} holds episode fake/Plane/test/00000" in shown


def test_a_run_with_a_camera_that_is_not_there_is_refused(recorded_plane: Path, capsys: pytest.CaptureFixture[str]):
    path = recorded_plane / "run.json"
    run = json.loads(path.read_text())
    path.write_text(json.dumps({**run, "policy": {**run["policy"], "cameras": {"front": [32, 32]}}}))
    assert main(VideoArguments((recorded_plane,), episode=(0,), size=128)) == 1
    assert "has no camera 'front'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"runs": ()}, "name one or more run folders"),
        ({"grid": "3"}, "--grid 3: give rows and columns, for example 2x3"),
        ({"grid": "9x99999"}, "--grid 9x99999: with --size 288 it exceeds 8192 pixels"),
        ({"grid": "0x2"}, "--grid 0x2: give rows and columns"),
        ({"episode": (0,), "which": "failures"}, "no chosen episode is one of the failures"),
        ({"episode": (9,)}, "--episode 9"),
    ],
)
def test_bad_input_is_refused(changes: dict[str, object], words: str, recorded_plane: Path):
    with pytest.raises(SimEvalError, match=words):
        main(replace(VideoArguments((recorded_plane,)), **changes))
