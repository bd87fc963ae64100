"""Every arm of robosuite: the spec says what the arm has and does, and no task is pooled with another arm's."""

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, replace

import numpy as np
import pytest

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import EpisodeKey, FloatArray, RenderConfig, without_derived
from sim_eval.envs.robosuite_robot import single_arm_robots
from sim_eval.envs.robosuite_sim import RobosuiteScene, RobosuiteSimulator
from sim_eval.envs.tasks import expand, get_task
from sim_eval.evaluation.trajectory import observation_digest
from sim_eval.policies.policy import REQUIRED, PolicySpec, check_fit
from sim_eval.policies.registry import CHECKPOINTS, load_policy

TASK = "robosuite/LiftWide"
JOINTS = {  # arm -> joints, joints of the fingers, dimensions of an action
    "UR5e": (6, 6, 7),
    "Panda": (7, 2, 7),
    "IIWA": (7, 6, 7),
    "Jaco": (7, 6, 7),
    "Kinova3": (7, 6, 7),
    "PandaDexLH": (7, 12, 12),
    "PandaDexRH": (7, 12, 12),
    "Sawyer": (7, 2, 7),
    "XArm7": (7, 6, 7),
}
SLOW_FINGERS = {"Jaco": 220}  # control steps that they take from open to closed; others take no more than 40
ARMS = ["UR5e", *(pytest.param(arm, marks=pytest.mark.slow) for arm in JOINTS if arm != "UR5e")]


@pytest.fixture(scope="module", params=ARMS)
def arm(request: pytest.FixtureRequest) -> Iterator[RobosuiteSimulator]:
    simulator = get_task(f"{TASK}@{request.param}").make(RenderConfig("fast", 32, 32))
    assert isinstance(simulator, RobosuiteSimulator)
    with closing(simulator):
        yield simulator


def action(simulator: RobosuiteSimulator, move: int | None = None, gripper: float = 0.0) -> FloatArray:
    """1 in one dimension of the arm's motion, and a command for all of the gripper's."""
    vector = np.zeros(simulator.spec.action.dim)
    vector[6:] = gripper
    if move is not None:
        vector[move] = 1.0
    return vector


def key(simulator: RobosuiteSimulator, index: int = 0) -> EpisodeKey:
    return EpisodeKey(simulator.task.name, "test", index)


def test_every_arm_is_here() -> None:
    assert single_arm_robots() == sorted(JOINTS)


def test_the_spec_is_what_the_arm_has(arm: RobosuiteSimulator) -> None:
    robot = arm.task.name.partition("@")[2] or "Panda"
    joints, fingers, dim = JOINTS[robot]
    assert arm.spec.robot == robot
    assert (arm.spec.proprio["joint_pos"], arm.spec.proprio["gripper_qpos"], arm.spec.action.dim) == (
        joints,
        fingers,
        dim,
    )
    arm.reset(key(arm))
    seen = arm.observe()
    assert {name: len(values) for name, values in seen.proprio.items()} == dict(arm.spec.proprio)
    assert all(np.isfinite(values).all() for values in seen.proprio.values())
    assert {name: view.depth.shape for name, view in seen.views.items()} == dict(arm.spec.cameras)
    assert arm.act(np.array(arm.spec.action.high)).phase == 0
    pads = [
        name
        for side in ("left", "right")
        for name in arm._env.robots[0].gripper["right"].important_geoms[f"{side}_fingerpad"]
    ]
    assert pads
    assert all(arm._model.geom(name).id >= 0 for name in pads)  # else nothing would ever count as grasped


def test_a_translation_goes_where_the_spec_says(arm: RobosuiteSimulator) -> None:
    spec = arm.spec.action
    assert (spec.control_mode, spec.frame, spec.names[:3]) == ("ee_delta_pose", "base", ("dx", "dy", "dz"))
    assert spec.metres_per_unit == 0.05
    for axis in range(3):
        arm.reset(key(arm))
        before = arm.observe(()).proprio["eef_pos"]
        arm.act(action(arm, axis))
        one = arm.observe(()).proprio["eef_pos"] - before
        for _ in range(5):
            arm.act(action(arm, axis))
        moved = arm.observe(()).proprio["eef_pos"] - before
        assert 0.002 < one[axis] < spec.metres_per_unit  # it lags behind, as OSC does
        assert moved[axis] > 0.02
        assert np.abs(np.delete(moved, axis)).max() < moved[axis] / 2  # the XArm7 sags


def test_a_rotation_turns_as_the_spec_says(arm: RobosuiteSimulator) -> None:
    assert (arm.spec.action.rotation, arm.spec.action.radians_per_unit) == ("axis_angle", 0.5)
    arm.reset(key(arm))
    before = arm.privileged()["eef_mat"]
    for _ in range(5):
        arm.act(action(arm, 5))
    turned = arm.privileged()["eef_mat"] @ before.T
    about_z = np.arctan2(turned[1, 0] - turned[0, 1], turned[0, 0] + turned[1, 1])
    assert 0.1 < about_z < 2.5
    assert turned[2, 2] > 0.95


def test_the_largest_command_closes_the_gripper(arm: RobosuiteSimulator) -> None:
    assert arm.spec.action.gripper == "closes"
    assert arm._fingers is not None
    openings, gaps = [], []
    arm.reset(key(arm))
    for command in (1.0, -1.0):
        for _ in range(SLOW_FINGERS.get(arm.spec.robot, 40)):
            arm.act(action(arm, gripper=command))
        openings.append(float(arm.observe(()).proprio["gripper_opening"][0]))
        gaps.append(float(arm._fingers.gap(arm._model, arm._scene_camera.data)[0]))
    assert 0 <= openings[0] < 0.05
    assert 0.9 < openings[1] <= 1
    assert gaps[0] < 0.02 < 0.03 < gaps[1]


def test_a_key_alone_decides_an_arms_episode(arm: RobosuiteSimulator) -> None:
    def digests(index: int) -> list[str]:
        arm.reset(key(arm, index))
        rng = key(arm, index).rng("test")
        found = [arm.snapshot().digest]
        for _ in range(5):
            arm.act(rng.uniform(-1, 1, arm.spec.action.dim))
            found.append(arm.snapshot().digest)
        return found

    first, second = digests(0), digests(1)
    assert first[0] != second[0]
    assert (digests(1), digests(0)) == (second, first)


def test_a_policy_of_another_arm_is_refused_unless_it_is_asked_for(arm: RobosuiteSimulator) -> None:
    fields = {"eef_pos": 3, "eef_rot6d": 6, "gripper_opening": 1}
    policy = PolicySpec("shared", "Elsewhere", proprio=fields, action=arm.spec.action)
    with pytest.raises(SimEvalError, match=r"trained for Elsewhere, .* has \w+; rollout --other-robot scores it"):
        check_fit(policy, arm.spec)
    check_fit(policy, arm.spec, other_robot=True)
    reading = replace(policy, proprio={**fields, "gripper_qpos": 3})
    with pytest.raises(SimEvalError, match=r"environment: proprio 'gripper_qpos' of length 3 is needed, .* has \d+$"):
        check_fit(reading, arm.spec, other_robot=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["IIWA", "Kinova3", "UR5e", "XArm7"])
def test_the_demonstrator_lifts_with_other_arms(name: str) -> None:
    from sim_eval.evaluation.engine import RolloutProtocol, run_episode

    with closing(get_task(f"{TASK}@{name}").make()) as simulator:
        for index in range(2):
            episode = EpisodeKey(simulator.task.name, "val", index)
            result = run_episode(simulator, load_policy("scripted"), episode, RolloutProtocol())
            assert (result.success, result.phase, result.error) == (True, "lift", None)


def test_the_pandas_spec_is_that_of_a_shipped_checkpoint(fast: RobosuiteSimulator) -> None:
    table = json.loads((CHECKPOINTS / "deep_llama" / "processor.json").read_text())
    check_fit(PolicySpec.from_dict({name: table[name] for name in REQUIRED}), fast.spec)


def test_what_the_environment_is_built_with_stands_in_the_spec() -> None:
    controller = {
        "type": "BASIC",
        "body_parts": {
            "right": {
                "type": "OSC_POSITION",
                "input_max": 1,
                "input_min": -1,
                "output_max": 0.1,
                "output_min": -0.1,
                "kp": 150,
                "damping_ratio": 1,
                "input_type": "delta",
                "input_ref_frame": "world",
                "interpolation": None,
                "gripper": {"type": "GRIP"},
            }
        },
    }
    scene = RobosuiteScene(
        "Lift",
        lambda env, goal: 0,
        {},
        lambda: {"robots": "Sawyer", "gripper_types": None, "control_freq": 10, "controller_configs": controller},
    )
    with closing(RobosuiteSimulator(replace(get_task(TASK), robot=""), scene, RenderConfig())) as simulator:
        simulator.reset(key(simulator))
        simulator.act(np.ones(3))
        spec = simulator.spec
        assert {name: len(values) for name, values in simulator.observe(()).proprio.items()} == dict(spec.proprio)
        assert "finger_gap" not in simulator.privileged()
    assert spec.robot == "Sawyer"
    assert dict(spec.proprio) == {"eef_pos": 3, "eef_quat": 4, "eef_rot6d": 6, "joint_pos": 7}
    said = {name: value for name, value in asdict(spec.action).items() if value is not None and value != ""}
    assert said == {
        "names": ("dx", "dy", "dz"),
        "low": (-1.0,) * 3,
        "high": (1.0,) * 3,
        "control_mode": "ee_delta_position",
        "control_hz": 10,
        "frame": "world",
        "metres_per_unit": 0.1,
    }


@pytest.mark.parametrize("robot", ["Baxter", pytest.param("PandaOmron", marks=pytest.mark.slow)])
def test_two_arms_and_wheels_are_refused(robot: str) -> None:
    scene = RobosuiteScene("Lift", lambda env, goal: 0, {}, lambda: {"robots": robot})
    with pytest.raises(SimEvalError, match=rf"the environment has {robot} \(\d arms?\): choose one robot .*UR5e"):
        RobosuiteSimulator(replace(get_task(TASK), robot=""), scene, RenderConfig())
    with pytest.raises(SimEvalError, match=rf"no robot '{robot}' with one arm .* choose one of IIWA, Jaco, .*XArm7$"):
        get_task(f"{TASK}@{robot}")


def test_names_of_tasks_with_another_robot() -> None:
    ours, other = get_task(TASK), get_task(f"{TASK}@UR5e")
    assert get_task(f"{TASK}@Panda") is ours
    assert expand([TASK, f"{TASK}@Panda", f"{TASK}@UR5e"]) == [TASK, f"{TASK}@UR5e"]
    assert (other.name, other.robot) == (f"{TASK}@UR5e", "UR5e")
    assert replace(other, name=ours.name, robot=ours.robot) == ours
    assert EpisodeKey(other.name, "val", 3).stem == "robosuite-LiftWide@UR5e_val_00003"
    for name in (f"{TASK}@ur5e", f"{TASK}@", f"{TASK}@UR5e@Panda"):
        with pytest.raises(SimEvalError, match="choose one of IIWA, Jaco"):
            get_task(name)
    with pytest.raises(SimEvalError, match="metaworld/reach-v3 has one robot: leave @Sawyer out"):
        get_task("metaworld/reach-v3@Sawyer")


def test_what_follows_from_other_fields_changes_no_digest(fast: RobosuiteSimulator) -> None:
    from sim_eval.core.types import observe_task

    fast.reset(EpisodeKey(TASK, "test", 0))
    seen = observe_task(fast, "lift", ())
    before = replace(seen, proprio=without_derived(seen.proprio))  # as recorded when there was no gripper_opening
    assert set(seen.proprio) - set(before.proprio) == {"gripper_opening"}
    assert observation_digest(seen) == observation_digest(before)
    alone = replace(seen, proprio={"gripper_opening": np.array([0.5])})  # of Meta-World: measured
    assert observation_digest(alone) != observation_digest(replace(alone, proprio={}))
