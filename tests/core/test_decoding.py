"""Tables become dataclasses strictly, and whatever is wrong with them is one line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pytest

from sim_eval.core import old_files
from sim_eval.core.decoding import decode, encode
from sim_eval.core.errors import SimEvalError
from sim_eval.core.files import atomic, read_json
from sim_eval.core.types import ActionSpec, EnvironmentSpec, EpisodeKey
from sim_eval.policies.policy import PolicySpec, differences

ACTION = ActionSpec(("dx", "grip"), (-1.0, -1.0), (1.0, 1.0), "ee_delta_position", 20.0, "base", 0.05, gripper="closes")


@dataclass(frozen=True)
class Inner:
    number: float
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    inner: Inner
    path: Path | None = None


def test_what_is_encoded_is_decoded() -> None:
    for value in (Outer(Inner(1.5, ("a", "b")), Path("x/y")), Outer(Inner(2.0)), ACTION, EpisodeKey("a/B", "val", 3)):
        assert decode(type(value), encode(value)) == value
        assert decode(type(value), json.loads(json.dumps(encode(value)))) == value
    spec = PolicySpec("p", cameras=MappingProxyType({"top": (4, 6)}), action=ACTION)
    assert decode(PolicySpec, encode(spec)) == PolicySpec("p", cameras={"top": (4, 6)}, action=ACTION)


def nested(depth: int) -> object:
    value: object = 0
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, "here: missing field 'inner'"),
        ({"inner": {}}, "here: missing field 'inner.number'"),
        ({"inner": {"number": 1, "size": 2}}, "here: unknown field 'inner.size': the fields are number, names"),
        ({"inner": {"number": "1"}}, "here: 'inner.number': input should be a valid number, not '1'"),
        ({"inner": {"number": True}}, "here: 'inner.number': input should be a valid number, not True"),
        ({"inner": {"number": 1, "names": "ab"}}, "here: 'inner.names': input should be a valid array"),
        ({"inner": 3}, "here: 'inner': input should be an object, not 3"),
        ([], "here: input should be an object, not []"),
        (None, "here: input should be an object, not None"),
        ({"inner": nested(100_000)}, "here: not a table of fields"),
        ({"inner": {"number": b"1"}}, "here: not a table of fields (no place for bytes in JSON)"),
        ({"inner": {"number": 1, "a\nb" + "c" * 10**6: 2}}, "here: unknown field 'inner.a bccc"),
        ({"inner": {"number": "x" * 10**6}}, "here: 'inner.number': input should be a valid number"),
    ],
)
def test_what_does_not_fit_is_one_line(data: object, words: str) -> None:
    with pytest.raises(SimEvalError) as told:
        decode(Outer, data, "here")
    assert str(told.value).startswith(words)
    assert len(str(told.value)) < 300
    assert "\n" not in str(told.value)


def test_what_a_class_demands_of_its_fields_is_told_with_the_place() -> None:
    with pytest.raises(SimEvalError, match=r"^manifest: unknown split 'exam'"):
        decode(EpisodeKey, {"task": "a", "split": "exam", "index": 0}, "manifest")
    with pytest.raises(SimEvalError, match=r"^manifest: unknown split 'exam of today'"):
        decode(EpisodeKey, {"task": "a", "split": "exam\nof today", "index": 0}, "manifest")
    with pytest.raises(SimEvalError, match=r"^file: action has 2 names, 1 low and 2 high bounds"):
        decode(ActionSpec, {**encode(ACTION), "low": [0]}, "file")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"cannot be read \(No such file or directory\): restore it$"),
        ("", r"is damaged \(Expecting value.*\): restore it$"),
        ("[]", r"is damaged \(not a JSON object\): restore it$"),
        ("[" * 100_000, r"is damaged \(.*recursion.*\): restore it$"),
    ],
)
def test_a_file_that_is_no_json_object_is_one_line(tmp_path: Path, content: str | None, words: str) -> None:
    file = tmp_path / "it.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SimEvalError, match=words) as told:
        read_json(file, "restore it")
    assert str(told.value).startswith(str(file))


def test_a_file_that_is_not_finished_leaves_the_old_one_and_no_trace(tmp_path: Path) -> None:
    file = tmp_path / "new" / "it"
    with atomic(file) as partial:
        partial.write_text("old")

    def interrupted() -> None:
        with atomic(file) as partial:
            partial.write_text("half of the ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [path.name for path in file.parent.iterdir()] == ["it"]
    assert file.read_text() == "old"


OLD = {"names": ["dx"], "low": [-1], "high": [1], "control_hz": 20}


def test_old_sentences_about_actions_become_fields() -> None:
    from sim_eval.envs import metaworld_sim

    osc_pose = ActionSpec(
        names=("dx", "dy", "dz", "drx", "dry", "drz", "gripper"),
        low=(-1.0,) * 7,
        high=(1.0,) * 7,
        control_mode="ee_delta_pose",
        control_hz=20,
        frame="base",
        metres_per_unit=0.05,
        radians_per_unit=0.5,
        rotation="axis_angle",
        gripper="closes",
    )
    for today in (osc_pose, metaworld_sim.ACTION):
        bounds = {name: encode(today)[name] for name in ("names", "low", "high", "control_hz")}
        readings = [
            decode(ActionSpec, old_files.action({**bounds, "controller": sentence}))
            for sentence in old_files.CONTROLLERS
        ]
        assert readings.count(today) == 1
        assert old_files.action(encode(today)) == encode(today)


def test_an_old_sentence_that_nobody_knows_must_be_the_environments_own() -> None:
    odd = decode(ActionSpec, old_files.action({**OLD, "controller": "turns a screw"}))
    assert (odd.control_mode, odd.description) == ("other", "turns a screw")
    policy = PolicySpec("old", action=odd)
    assert differences(policy, EnvironmentSpec("any", {}, {}, odd)) == []
    other = decode(ActionSpec, old_files.action({**OLD, "controller": "turns a nut"}))
    (reason,) = differences(policy, EnvironmentSpec("any", {}, {}, other))
    assert reason == "action description: the policy commands turns a screw, the environment takes turns a nut"


@pytest.mark.parametrize("table", [3, None, [], {"controller": ["x"]}, {"controller": None}, {**OLD, "controller": 3}])
def test_a_damaged_old_action_is_one_line(table: object) -> None:
    with pytest.raises(SimEvalError) as told:
        decode(ActionSpec, old_files.action(table), "old")
    assert str(told.value).startswith("old: ")
    assert "\n" not in str(told.value)
