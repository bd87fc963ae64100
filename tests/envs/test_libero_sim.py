"""LIBERO: its own sentences, limits and initial states; keys decide everything; pixels stand where the simulator says.

Skipped where LIBERO is not installed (``make libero``).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from sim_eval import rollout, verify
from sim_eval.configs import RolloutConfig
from sim_eval.core.cameras import unproject
from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import EpisodeKey, FloatArray, RenderConfig, Simulator, observe_task
from sim_eval.envs.libero_sim import LiberoSimulator, drawing_from, installation, load_libero, undisturbed
from sim_eval.envs.tasks import get_task, suite_tasks, suites
from sim_eval.policies.policy import PolicyRequest, check_fit
from sim_eval.policies.remote.keys import axis_angle, read_keys

pytestmark = pytest.mark.skipif(installation() is None, reason="LIBERO is not installed: make libero")

OBJECT, SPATIAL, DRAWER = "libero_object/6", "libero_spatial/2", "libero_spatial/4"
STOVE = "libero_goal/7"
LIMITS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}
ELSEWHERE = """
import json, sys
import sim_eval
from sim_eval.core.types import EpisodeKey
from sim_eval.envs.tasks import get_task
name = sys.argv[1]
simulator = get_task(name).make()
found = {}
for split, index in (("test", 1), ("train", 3), ("val", 0)):
    key = EpisodeKey(name, split, index)
    simulator.reset(key)
    rng = key.rng("test")
    digests = [simulator.snapshot().digest]
    for _ in range(10):
        simulator.act(rng.uniform(-1, 1, 7))
        digests.append(simulator.snapshot().digest)
    found[split] = digests
print(json.dumps(found))
simulator.close()
"""


def made(name: str) -> LiberoSimulator:
    simulator = get_task(name).make()
    assert isinstance(simulator, LiberoSimulator)
    return simulator


@pytest.fixture(scope="module")
def butter() -> Iterator[LiberoSimulator]:
    with closing(made(OBJECT)) as simulator:
        yield simulator


@pytest.fixture(scope="module")
def drawer() -> Iterator[LiberoSimulator]:
    with closing(made(DRAWER)) as simulator:
        yield simulator


def digests(simulator: Simulator, key: EpisodeKey) -> list[str]:
    simulator.reset(key)
    rng = key.rng("test")
    found = [simulator.snapshot().digest]
    for _ in range(10):
        simulator.act(rng.uniform(-1, 1, 7))
        found.append(simulator.snapshot().digest)
    return found


def test_tasks_are_the_official_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    package = load_libero().package
    monkeypatch.setenv("LIBERO_CONFIG_PATH", "unused")
    benchmark = pytest.importorskip("libero.libero.benchmark")
    folders = {"bddl_files": package / "bddl_files", "init_states": package / "init_files"}
    monkeypatch.setattr(benchmark, "get_libero_path", lambda key: str(folders[key]))
    assert {suite: len(suite_tasks(suite)) for suite in suites() if suite.startswith("libero")} == {
        suite: 90 if suite == "libero_90" else 10 for suite in LIMITS
    }
    for suite, limit in LIMITS.items():
        official = benchmark.get_benchmark(suite)()
        for number, name in enumerate(suite_tasks(suite)):
            task = get_task(name)
            assert task.goals == ((official.get_task(number).language,),)
            assert task.max_episode_steps == limit
            assert task.counterfactuals
            assert task.goals[0][0] not in task.counterfactuals
            assert Path(official.get_task_bddl_file_path(number)).is_file()


def test_test_episodes_are_the_official_environments(butter: LiberoSimulator) -> None:
    """LIBERO's own wrapper, driven in LIBERO's order, comes to the same state and shows the same robot.

    To rounding: MuJoCo's solver starts from its last solution, which is of what the samplers drew before.
    """
    from libero.libero.envs.env_wrapper import ControlEnv

    task_file = butter._package / "bddl_files" / f"{butter._problem}.bddl"
    wrapper = ControlEnv(str(task_file), use_camera_obs=False, has_offscreen_renderer=False)
    for index in (0, 49):
        wrapper.seed(7)
        wrapper.reset()
        wrapper.set_init_state(butter.official_states()[index])
        for _ in range(10):
            seen = wrapper.step([0.0] * 6 + [-1.0])[0]
        butter.reset(EpisodeKey(OBJECT, "test", index))
        np.testing.assert_allclose(butter.snapshot().state, wrapper.get_sim_state(), rtol=0, atol=1e-9)
        proprio = butter.observe(()).proprio
        for ours, theirs in (("eef_pos", "eef_pos"), ("hand_quat", "eef_quat"), ("gripper_qpos", "gripper_qpos")):
            # LIBERO reads its sensors one physics step before the control step ends.
            np.testing.assert_allclose(proprio[ours], seen[f"robot0_{theirs}"], atol=1e-3)
        hand = axis_angle(proprio["hand_quat"])
        np.testing.assert_allclose(hand, axis_angle(np.asarray(seen["robot0_eef_quat"])), atol=3e-3)
    wrapper.close()


def test_an_openpi_server_is_asked_what_openpis_own_client_asks() -> None:
    """Its client turns LIBERO's pictures by 180 degrees and joins three of its readings (examples/libero/main.py)."""
    load_libero()
    from libero.libero.envs.env_wrapper import OffScreenRenderEnv

    keys = read_keys(Path("openpi_libero"))
    size = keys.cameras["agentview"]
    ours = get_task(OBJECT).make(RenderConfig("faithful", *size))
    assert isinstance(ours, LiberoSimulator)
    task_file = ours._package / "bddl_files" / f"{ours._problem}.bddl"
    official = OffScreenRenderEnv(bddl_file_name=str(task_file), camera_heights=size[0], camera_widths=size[1])
    with closing(ours), closing(official):  # closing one renderer would spoil the other's pictures
        official.seed(7)
        official.reset()
        official.set_init_state(ours.official_states()[3])
        for _ in range(10):
            seen = official.step([0.0] * 6 + [-1.0])[0]
        key = EpisodeKey(OBJECT, "test", 3)
        ours.reset(key)
        check_fit(keys.spec(b""), ours.spec)
        asked = keys.message(PolicyRequest(observe_task(ours, ours.task.instruction(key)), key, 0, keys.action))
    assert set(asked) == {"observation/image", "observation/wrist_image", "observation/state", "prompt"}
    for theirs, camera in (("observation/image", "agentview"), ("observation/wrist_image", "robot0_eye_in_hand")):
        picture = np.asarray(asked[theirs])
        official_picture = seen[f"{camera}_image"][::-1, ::-1]
        assert picture.dtype == np.uint8
        assert picture.shape == official_picture.shape
        assert np.abs(picture.astype(float) - official_picture).mean() < 0.1, theirs
    readings = [seen[f"robot0_{name}"] for name in ("eef_pos", "eef_quat", "gripper_qpos")]
    state = np.concatenate([readings[0], axis_angle(np.asarray(readings[1])), readings[2]])
    np.testing.assert_allclose(np.asarray(asked["observation/state"]), state, atol=3e-3)
    assert asked["prompt"] == "pick up the butter and place it in the basket"


def test_no_other_split_starts_from_an_official_state(butter: LiberoSimulator) -> None:
    official, places = butter.official_states(), []
    assert official.shape == (50, len(butter.snapshot().state))
    butter.reset(EpisodeKey(OBJECT, "test", 7))
    for split in ("train", "val"):
        for index in range(3):
            butter.reset(EpisodeKey(OBJECT, split, index))
            state = butter.snapshot().state
            joints = [
                place for place, name in enumerate(butter._state_names) if name.startswith("qpos butter_1_joint0")
            ]
            places.append(state[joints[:2]])
            assert np.abs(official[:, joints[:2]] - places[-1]).max(axis=1).min() > 1e-6
    assert len({tuple(place) for place in places}) == 6


def test_there_are_fifty_of_them() -> None:
    task = get_task(OBJECT)
    assert task.instruction(EpisodeKey(OBJECT, "test", 49)) == "pick up the butter and place it in the basket"
    with pytest.raises(SimEvalError, match="50 official initial states"):
        task.instruction(EpisodeKey(OBJECT, "test", 50))
    assert task.instruction(EpisodeKey(OBJECT, "train", 50))


@pytest.mark.parametrize("name", [OBJECT, DRAWER])
def test_same_key_same_trajectory_in_any_order_and_process(name: str, request: pytest.FixtureRequest) -> None:
    simulator: LiberoSimulator = request.getfixturevalue("butter" if name == OBJECT else "drawer")
    keys = {split: EpisodeKey(name, split, index) for split, index in (("val", 0), ("test", 1), ("train", 3))}
    forward = {split: digests(simulator, key) for split, key in keys.items()}
    assert {split: digests(simulator, keys[split]) for split in reversed(keys)} == forward
    answer = subprocess.run([sys.executable, "-c", ELSEWHERE, name], capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout) == forward  # and nothing else was printed


def test_the_bowl_lies_in_the_drawer_however_often_the_cabinet_moved(drawer: LiberoSimulator) -> None:
    for split, index in (("train", 0), ("train", 1), ("test", 0), ("val", 0)):
        drawer.reset(EpisodeKey(DRAWER, split, index))
        state = drawer.privileged()
        inside = state["wooden_cabinet_1_mat"].T @ (state["moved_pos"] - state["wooden_cabinet_1_pos"])
        assert abs(inside[0]) < 0.06
        assert -0.25 < inside[1] < 0.0  # pulled out along the cabinet's -y
        assert inside[2] == pytest.approx(0.158, abs=0.01)


def test_what_jumped_apart_is_drawn_again() -> None:
    rotation = np.eye(3).reshape(-1)
    placed = np.array([[0.0, 0.0, 1.0, *rotation], [0.3, 0.0, 1.0, *rotation]])
    fallen, pushed, tipped = placed.copy(), placed.copy(), placed.copy()
    fallen[:, 2] -= 0.07  # things are let go above the table
    pushed[1, 0] += 0.1
    tipped[0, 3:] = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]]).reshape(-1)
    assert undisturbed(placed, fallen)
    assert not undisturbed(placed, pushed)
    assert not undisturbed(placed, tipped)


def test_numpys_global_generator_is_given_back() -> None:
    np.random.seed(3)
    expected = np.random.rand(2)
    np.random.seed(3)
    first = np.random.rand()
    with drawing_from(EpisodeKey(OBJECT, "train", 0).rng("placement")):
        np.random.rand(100)
    assert [first, np.random.rand()] == expected.tolist()


def surface_distance(points: FloatArray, box: FloatArray) -> FloatArray:
    """Distance [N] of points [N, 3], in the box's frame, from the surface of a box with corners [2, 3]."""
    beyond = np.abs(points - box.mean(axis=0)) - (box[1] - box[0]) / 2
    return cast(FloatArray, np.abs(np.linalg.norm(np.maximum(beyond, 0), axis=1) + np.minimum(beyond.max(axis=1), 0)))


def test_butter_stands_in_the_pictures_where_the_simulator_says(butter: LiberoSimulator) -> None:
    for split in ("test", "train"):
        butter.reset(EpisodeKey(OBJECT, split, 2))
        seen, state = butter.observe(), butter.privileged()
        shown = int(butter._bodies["butter_1"])
        count = 0
        for name, view in seen.views.items():
            segments = butter.segmentation(name)
            bodies = np.where(segments >= 0, butter._model.geom_bodyid[np.maximum(segments, 0)], -1)
            points = (unproject(view)[bodies == shown] - state["butter_1_pos"]) @ state["butter_1_mat"]
            count += len(points)
            if len(points):  # the mesh that is drawn is not quite the box that collides
                assert np.median(surface_distance(points, state["butter_1_box"])) < 0.002, name
                assert surface_distance(points, state["butter_1_box"]).max() < 0.006, name
        assert count > 20


def test_pictures_are_upright_and_unmirrored(butter: LiberoSimulator) -> None:
    """The robot's base is on top of the agent view, the basket, at positive y, on its right."""
    butter.reset(EpisodeKey(OBJECT, "test", 0))
    bodies = butter._model.geom_bodyid[np.maximum(butter.segmentation("agentview"), 0)]
    rows, columns = np.nonzero(bodies == butter._bodies["basket_1"])
    assert columns.mean() > 80
    links = [butter._model.body(name).id for name in ("robot0_link5", "robot0_link6", "robot0_link7")]
    assert np.nonzero(np.isin(bodies, links))[0].mean() < rows.mean()


def test_a_recorded_episode_is_bit_identical_when_replayed(tmp_path: Path) -> None:
    arguments = RolloutConfig("scripted", OBJECT, 1, video="none", out=tmp_path / "run")
    assert rollout.main(arguments) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "episodes.jsonl").read_text().splitlines()]
    assert [line["error"] for line in lines] == [None]
    assert [line["success"] for line in lines] == [True]
    assert verify.main(verify.VerifyArguments(tmp_path / "run", strict=True)) == 0


def test_a_burner_that_is_on_glows_in_pictures_rendered_again() -> None:
    with closing(made(STOVE)) as simulator:
        simulator.reset(EpisodeKey(STOVE, "train", 0))
        model, data = simulator._physics()
        poses, seen = [simulator.pose()], [simulator.observe().views]
        (knob,) = (number for number in range(model.njnt) if model.joint(number).name.startswith("flat_stove_1"))
        data.qpos[model.jnt_qposadr[knob]] = model.jnt_range[knob, 1 if abs(model.jnt_range[knob, 1]) > 0.1 else 0]
        for _ in range(2):
            simulator.act(np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0]))
        poses.append(simulator.pose())
        seen.append(simulator.observe().views)
        cameras = tuple(simulator.spec.cameras)
        again = [views for _, views in simulator.rerender(poses, "fast", (96, 128), cameras)]
        backwards = [views for _, views in simulator.rerender(poses[::-1], "fast", (96, 128), cameras)][::-1]
    assert not np.array_equal(poses[0].site_rgba, poses[1].site_rgba)
    for views, other, then in zip(again, backwards, seen, strict=True):
        for camera in cameras:
            assert np.array_equal(views[camera].rgb, then[camera].rgb)
            assert np.array_equal(other[camera].depth, then[camera].depth)
            assert np.array_equal(other[camera].rgb, then[camera].rgb)
