"""What is asked and answered over the network: nothing lost for our server, and a foreign one asked in its words."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import (
    ActionChunk,
    ActionSpec,
    CameraView,
    EnvironmentSpec,
    EpisodeKey,
    Observation,
    WorkspaceBox,
)
from sim_eval.policies.policy import PolicyRequest, PolicySpec, differences
from sim_eval.policies.registry import shipped_checkpoints
from sim_eval.policies.remote.keys import SHIPPED, axis_angle, read_keys, template
from sim_eval.policies.remote.messages import (
    from_chunk,
    from_metadata,
    from_request,
    to_chunk,
    to_metadata,
    to_request,
)
from sim_eval.policies.remote.wire import Message, pack, unpack

ACTION = ActionSpec(("dx", "grip"), (-1.0, 0.1), (1.0, 1 / 3), "ee_delta_position", 20.0, "base", 0.05)
SPEC = PolicySpec(
    "mine", "Panda", {"top/left": (4, 6)}, {"eef_pos": 3, "q": 2}, ACTION, ("a/B",), True, "abc", "2 steps", "fast"
)


def request() -> PolicyRequest:
    rng = np.random.default_rng(0)
    view = CameraView(
        rng.integers(0, 256, (4, 6, 3)).astype(np.uint8),
        rng.random((4, 6)).astype(np.float32),
        rng.random((3, 3)),
        rng.random((4, 4)),
    )
    proprio = {"eef_pos": rng.random(3), "q": rng.random(2), "more": rng.random(5)}
    box = WorkspaceBox((-0.1, 0.2, 1 / 3), (1.0, 2.0, 3.0))
    key = EpisodeKey("a/B", "test", 7)
    return PolicyRequest(Observation({"top/left": view}, proprio, "lift", box), key, 3, ACTION, {"cube": rng.random(3)})


def test_a_question_arrives_bit_by_bit() -> None:
    sent, got = request(), to_request(unpack(pack(from_request(request()))), SPEC)
    assert (got.key, got.policy_call, got.action) == (sent.key, sent.policy_call, sent.action)
    assert (got.observation.instruction, got.observation.workspace) == ("lift", sent.observation.workspace)
    assert list(got.observation.proprio) == list(sent.observation.proprio)
    assert got.privileged is not None
    assert sent.privileged is not None
    for name, array in vars(sent.observation.views["top/left"]).items():
        there = getattr(got.observation.views["top/left"], name)
        assert (there.dtype, there.tobytes()) == (array.dtype, array.tobytes())
    for mine, theirs in ((sent.observation.proprio, got.observation.proprio), (sent.privileged, got.privileged)):
        assert {name: vector.tobytes() for name, vector in mine.items()} == {
            name: vector.tobytes() for name, vector in theirs.items()
        }
    blind = replace(sent, observation=replace(sent.observation, views={}), privileged=None)
    assert to_request(unpack(pack(from_request(blind))), PolicySpec("any")).privileged is None


def test_an_answer_and_a_spec_arrive_as_they_were() -> None:
    chunk = ActionChunk(np.random.default_rng(0).normal(size=(8, 2)), np.array([0.1, 0.0]), 0.15)
    got = to_chunk(unpack(pack(from_chunk(chunk, 3.0))))
    assert got.disturbance is not None
    assert (got.actions.tobytes(), got.disturbance.tolist()) == (chunk.actions.tobytes(), [0.1, 0.0])
    assert got.disturbed_share == 0.15
    assert to_chunk(unpack(pack(from_chunk(ActionChunk(chunk.actions), 3.0)))).disturbance is None
    for spec in (SPEC, PolicySpec("zero")):
        assert from_metadata(unpack(pack(to_metadata(spec)))) == spec


@pytest.mark.parametrize("name", shipped_checkpoints())
def test_a_checkpoints_spec_arrives_as_it_was(name: str) -> None:
    from sim_eval.policies.registry import load_policy

    spec = load_policy(name, "cpu").spec
    assert from_metadata(unpack(pack(to_metadata(spec)))) == spec


def put(name: str, value: object) -> Callable[[Message], None]:
    return lambda message: message.update({name: value})


def drop(name: str) -> Callable[[Message], None]:
    return lambda message: message.__delitem__(name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop("views/top/left/rgb"), "lacks 'views/top/left/rgb'"),
        (drop("views/top/left/depth"), "lacks 'views/top/left/depth'"),
        (drop("views/top/left/intrinsics"), "lacks 'views/top/left/intrinsics'"),
        (drop("views/top/left/camera_to_world"), "lacks 'views/top/left/camera_to_world'"),
        (drop("proprio/q"), "lacks 'proprio/q'"),
        (drop("workspace"), "lacks 'workspace'"),
        (drop("prompt"), "lacks 'prompt'"),
        (drop("episode"), "lacks 'episode'"),
        (drop("policy_call"), "lacks 'policy_call'"),
        (put("views/top/left/rgb", np.zeros((4, 6, 3))), "must be uint8 [any, any, 3], not float64 [4, 6, 3]"),
        (put("views/top/left/rgb", np.zeros((6, 4, 3), np.uint8)), "'views/top/left/depth' must be float32 [6, 4]"),
        (put("views/top/left/depth", np.zeros((4, 6), complex)), "must be float32 [4, 6], not complex128"),
        (put("proprio/q", np.zeros(3)), "'proprio/q' must be float64 [2], not float64 [3]"),
        (put("proprio/q", [0.0, 0.0]), "'proprio/q' must be of type ndarray, not list"),
        (put("workspace", np.zeros(6)), "must be float64 [2, 3]"),
        (put("prompt", b"lift"), "'prompt' must be of type str, not bytes"),
        (put("policy_call", True), "'policy_call' must be of type int, not bool"),
        (put("episode", {"task": "a", "split": "exam", "index": 0}), "unknown split 'exam'"),
        (
            put("episode", {"task": "a", "split": "test", "index": "0"}),
            "'episode': 'index': input should be a valid int",
        ),
        (put("episode", {"task": "a", "split": "test"}), "'episode': missing field 'index'"),
        (put("action", {"names": ["x"]}), "'action': missing field 'low'"),
        (
            put("action", {**vars(ACTION), "rotation": "rodrigues"}),
            "'action': 'rotation': input should be 'axis_angle'",
        ),
        (put("action", {**vars(ACTION), "low": [0, 1]}), "'action': action 'grip' has the bounds 1.0 to 0.33"),
        (put("action", {**vars(ACTION), "low": [0, float("nan")]}), "'action': action 'grip' has the bounds nan to"),
        (put("action", {**vars(ACTION), "names": [["x"], "y"]}), "'action': 'names.0': input should be a valid str"),
        (put("action", {**vars(ACTION), "frame": b"base"}), "'action': not a table of fields (no place for bytes"),
        (put("action", {**vars(ACTION), "low": np.zeros(2)}), "'action': not a table of fields (no place for ndarray"),
        (put("action", {**vars(ACTION), "low": [0]}), "2 names, 1 low and 2 high bounds"),
        (put("privileged/cube", 3), "'privileged/cube' must be of type ndarray"),
    ],
)
def test_a_wrong_question_is_told_by_its_entry(change: Callable[[Message], None], words: str) -> None:
    message = from_request(request())
    change(message)
    with pytest.raises(SimEvalError) as told:
        to_request(message, SPEC)
    assert words in str(told.value)
    assert "\n" not in str(told.value)


def test_who_knows_what_its_actions_mean_need_not_be_told() -> None:
    message = from_request(request())
    del message["action"]
    assert to_request(message, SPEC).action == ACTION
    with pytest.raises(SimEvalError, match="lacks 'action'"):
        to_request(message, replace(SPEC, action=None))


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"sim_eval": {"protocol": 1}}, "version 1 of sim_eval's messages, this is 2"),
        ({"sim_eval": {"protocol": 2}}, "lacks 'policy'"),
        ({"sim_eval": {"policy": {}}}, "lacks 'protocol'"),
        ({"sim_eval": 3}, "'sim_eval' must be of type dict, not int"),
        (
            {"sim_eval": {"protocol": 2, "policy": {"action": None, "name": "x", "robot": None}}},
            "missing field 'cameras'",
        ),
        ({"sim_eval": {"protocol": 2, "policy": {**asdict(SPEC), "privileged": 0}}}, "'privileged': input should be"),
        ({"sim_eval": {"protocol": 2, "policy": {**asdict(SPEC), "weights": "w"}}}, "unknown field 'weights'"),
    ],
)
def test_a_wrong_introduction_is_told(metadata: Message, words: str) -> None:
    with pytest.raises(SimEvalError, match=words):
        from_metadata(metadata)


KEYS: dict[str, Any] = {
    "name": "pi05_libero",
    "robot": "Panda",
    "observation": {
        "observation/image": "views/agentview/rgb | mirror",
        "observation/depth": "views/agentview/depth|millimetres",
        "observation/state": ["proprio/eef_pos", "proprio/eef_quat | axis_angle", "proprio/gripper_qpos"],
        "images": {"wrist": "views/wrist/rgb|rotate_180|channels_first"},
        "camera": "views/agentview/intrinsics",
        "prompt": "prompt",
    },
    "cameras": {"agentview": [4, 6], "wrist": [2, 2]},
    "proprio": {"eef_pos": 3, "eef_quat": 4, "gripper_qpos": 2},
    "action": {"names": ["dx"], "low": [-1], "high": [1], "control_mode": "ee_delta_pose", "control_hz": 20},
}
TOML = """
name = "pi05_libero"
robot = "Panda"
[observation]
"observation/image" = "views/agentview/rgb | mirror"
"observation/depth" = "views/agentview/depth|millimetres"
"observation/state" = ["proprio/eef_pos", "proprio/eef_quat | axis_angle", "proprio/gripper_qpos"]
camera = "views/agentview/intrinsics"
prompt = "prompt"
[observation.images]
wrist = "views/wrist/rgb|rotate_180|channels_first"
[cameras]
agentview = [4, 6]
wrist = [2, 2]
[proprio]
eef_pos = 3
eef_quat = 4
gripper_qpos = 2
[action]
names = ["dx"]
low = [-1]
high = [1]
control_mode = "ee_delta_pose"
control_hz = 20
"""


def keys_file(folder: Path, data: object) -> Path:
    file = folder / "keys.json"
    file.write_text(json.dumps(data))
    return file


def foreign_request() -> PolicyRequest:
    rng = np.random.default_rng(0)

    def view(height: int, width: int) -> CameraView:
        rgb = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
        return CameraView(rgb, np.full((height, width), 1.2344, np.float32), np.eye(3) * 5, np.eye(4))

    proprio = {"eef_pos": np.arange(3.0), "eef_quat": np.array([1.0, 0, 0, 0]), "gripper_qpos": np.array([0.4, -0.4])}
    observation = Observation(
        {"agentview": view(4, 6), "wrist": view(2, 2)}, proprio, "lift it", request().observation.workspace
    )
    return replace(request(), observation=observation)


def test_a_foreign_server_is_asked_in_its_words(tmp_path: Path) -> None:
    mapping = read_keys(keys_file(tmp_path, KEYS))
    asked = foreign_request()
    seen = asked.observation.views
    message = unpack(pack(mapping.message(asked)))
    assert set(message) == set(KEYS["observation"])
    assert np.array_equal(message["observation/image"], seen["agentview"].rgb[:, ::-1])  # type: ignore[call-overload]
    assert np.array_equal(message["images"]["wrist"], seen["wrist"].rgb[::-1, ::-1].transpose(2, 0, 1))  # type: ignore[index]
    assert np.array_equal(message["observation/depth"], np.full((4, 6), 1234, np.uint16))  # type: ignore[call-overload]
    assert np.allclose(message["observation/state"], [0, 1, 2, np.pi, 0, 0, 0.4, -0.4])  # type: ignore[call-overload]
    assert message["prompt"] == "lift it"
    (tmp_path / "keys.toml").write_text(TOML)
    assert read_keys(tmp_path / "keys.toml") == mapping


def test_the_template_of_keys_is_a_file_of_keys(tmp_path: Path) -> None:
    """As it is printed, and filled in for another server."""
    action = ActionSpec(("dx", "dy"), (-1.0, -1.0), (1.0, 1.0), "ee_delta_position", 20.0, "base", 0.05)
    environment = EnvironmentSpec(
        "Panda", {"agentview": (4, 6), "wrist": (2, 2)}, {"eef_pos": 3, "joint_pos": 7}, action
    )
    text = template(environment, "robosuite/Lift")
    (tmp_path / "keys.toml").write_text(text)
    mapping = read_keys(tmp_path / "keys.toml")
    assert (mapping.action, mapping.cameras, mapping.proprio) == (action, environment.cameras, environment.proprio)
    assert mapping.observation["observation/state"] == ["proprio/eef_pos", "proprio/joint_pos"]
    assert not differences(mapping.spec(b""), environment)
    filled = text.replace('"observation/wrist" = "views/wrist/rgb"', '"observation/hand" = "views/wrist/rgb | mirror"')
    filled = filled.replace("my_policy", "pi0").replace("agentview = [4, 6]", "agentview = [224, 224]")
    (tmp_path / "keys.toml").write_text(filled)
    mapping = read_keys(tmp_path / "keys.toml")
    assert (mapping.name, mapping.cameras["agentview"]) == ("pi0", (224, 224))
    assert mapping.observation["observation/hand"] == "views/wrist/rgb | mirror"


def test_keys_that_come_along_are_known_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "openpi_libero").mkdir()  # a run folder of that name, say, is no file of keys
    monkeypatch.chdir(tmp_path)
    for name, file in SHIPPED.items():
        mapping = read_keys(Path(name))
        assert mapping == read_keys(file)
        assert mapping.name == name


def test_axis_angle_goes_on_smoothly_past_half_a_turn() -> None:
    """Where the gripper points down, w is near 0 and of either sign; SciPy's rotation vector would jump there."""
    from scipy.spatial.transform import Rotation

    for w in (0.3, 0.01, -0.01, -0.3):
        quaternion = np.array([np.sqrt(1 - w**2), 0.0, 0.0, w])
        turned = axis_angle(quaternion)
        assert turned[0] == pytest.approx(2 * np.arccos(w))
        assert Rotation.from_rotvec(turned).approx_equal(Rotation.from_quat(quaternion))
    assert np.array_equal(axis_angle(np.array([0.0, 0, 0, 1])), np.zeros(3))


def test_a_foreign_servers_fit_is_checked_and_its_identity_is_file_and_introduction(tmp_path: Path) -> None:
    mapping = read_keys(keys_file(tmp_path, KEYS))
    spec = mapping.spec(b"one")
    assert spec.cameras == {"agentview": (4, 6), "wrist": (2, 2)}
    assert spec.digest not in ("", mapping.spec(b"two").digest)
    other = read_keys(keys_file(tmp_path, {**KEYS, "action": {**KEYS["action"], "control_hz": 15}}))
    assert other.spec(b"one").digest != spec.digest
    environment = EnvironmentSpec("Panda", spec.cameras, spec.proprio, mapping.action)
    assert differences(spec, environment) == []
    (found,) = differences(other.spec(b"one"), environment)
    assert "control_hz: the policy commands 15.0, the environment takes 20.0" in found


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("names", ("dy", "grip")),
        ("low", (-2.0, 0.1)),
        ("high", (2.0, 1 / 3)),
        ("control_mode", "ee_target_delta_position"),
        ("control_hz", 10.0),
        ("frame", "world"),
        ("metres_per_unit", 1.0),
        ("radians_per_unit", 0.5),
        ("rotation", "euler_xyz"),
        ("gripper", "opens"),
        ("description", "turns a screw"),
    ],
)
def test_each_part_of_what_actions_mean_is_compared_and_named(part: str, value: object) -> None:
    environment = EnvironmentSpec("Panda", SPEC.cameras, SPEC.proprio, replace(ACTION, **{part: value}))  # type: ignore[arg-type]
    (reason,) = differences(SPEC, environment)
    mine = getattr(ACTION, part)
    assert reason == f"action {part}: the policy commands {mine}, the environment takes {value}"


def changed(*path: str, value: object = None) -> dict[str, Any]:
    data = json.loads(json.dumps(KEYS))
    place = data
    for name in path[:-1]:
        place = place[name]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return data  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"name": "x"}, "missing field 'observation' (and 3 more)"),
        (changed("cameras"), "missing field 'cameras'"),
        (changed("proprio"), "missing field 'proprio'"),
        (changed("action"), "missing field 'action'"),
        (changed("action", "control_hz"), "missing field 'action.control_hz'"),
        (changed("action", "names"), "missing field 'action.names'"),
        (changed("action", "low"), "missing field 'action.low'"),
        (changed("action", "high", value=[1, 1]), "1 names, 1 low and 2 high bounds"),
        (
            changed("action", "control_hz", value="fast"),
            "'action.control_hz': input should be a valid number, not 'fast'",
        ),
        (changed("action", "frame", value="moon"), "'action.frame': input should be 'base', 'world' or 'end_effector'"),
        (changed("cameras", "agentview", value=[4]), "missing field 'cameras.agentview.1'"),
        (
            changed("cameras", "agentview", value=[-4, 4]),
            "'cameras.agentview.0': input should be greater than or equal",
        ),
        (changed("camera", value=[4]), "unknown field 'camera'"),
        (changed("observation", value=["prompt"]), "'observation': input should be an object"),
        (changed("cameras", "wrist"), "'wrist' reads 'views/wrist/rgb', which is none of views/agentview/rgb"),
        (changed("proprio", "eef_quat"), "'observation/state' reads 'proprio/eef_quat', which is none of"),
        (changed("proprio", "eef_quat", value=3), "'proprio/eef_quat' cannot be changed by axis_angle"),
        (changed("observation", "prompt", value="prompt | shout"), "changed by 'shout', which is none of mirror"),
        (changed("observation", "prompt", value="prompt | mirror"), "'prompt' cannot be changed by mirror"),
        (changed("observation", "prompt", value=["prompt"]), "only vectors can be joined"),
        (changed("observation", "prompt", value=[]), "only vectors can be joined"),
        (changed("observation", "prompt", value=7), "reads '7'"),
        ([], "input should be an object"),
    ],
)
def test_a_wrong_file_of_keys_is_one_line(tmp_path: Path, data: object, words: str) -> None:
    with pytest.raises(SimEvalError) as told:
        read_keys(keys_file(tmp_path, data))
    assert words in str(told.value)
    assert str(told.value).startswith(f"--keys {tmp_path / 'keys.json'}")
    assert "\n" not in str(told.value)


def test_a_missing_or_unreadable_file_of_keys_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "keys.toml").write_text("name = ")
    for name, words in (("nowhere.toml", "cannot be read"), ("keys.toml", "neither TOML nor JSON")):
        with pytest.raises(SimEvalError, match=words):
            read_keys(tmp_path / name)
