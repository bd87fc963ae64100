"""Proving a run: what went as recorded is confirmed to the bit, and whatever was changed is found and named."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from fake_simulator import PLANE, FakePolicy, PlaneSimulator, constant, wander
from faulty_workers import DEADLY, DeadlyProving, fake_task
from recorded_run import MANIFEST, Program, file_of, lines, play, seeing

from sim_eval import rollout
from sim_eval.configs import RolloutConfig
from sim_eval.console import run
from sim_eval.core.types import CameraView, EpisodeKey, FloatArray, RenderConfig, SensorReadings, Status
from sim_eval.envs.tasks import get_task
from sim_eval.evaluation.run_folder import read_run
from sim_eval.evaluation.trajectory import (
    MARK,
    Trajectory,
    read_trajectory,
    trajectory_path,
    write_trajectory,
)
from sim_eval.evaluation.verification import VerifyJob, deviates
from sim_eval.policies.policy import PolicyRequest
from sim_eval.verify import PROGRAM, VerifyArguments, main
from sim_eval.verify import verify as prove

KILLED = "its worker was killed by SIGKILL (out of memory?)"


@pytest.fixture
def folder(recorded: Path, tmp_path: Path) -> Path:
    """A copy of the recorded run, to be spoiled."""
    shutil.copytree(recorded, tmp_path / "run")
    return tmp_path / "run"


def edit_line(folder: Path, index: int, **changes: object) -> None:
    edited = lines(folder)
    edited[index].update(changes)
    (folder / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in edited))


def edit_run(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads((folder / "run.json").read_text())
    change(data)
    (folder / "run.json").write_text(json.dumps(data))


def forge(folder: Path, index: int, **changes: object) -> None:
    """Changes a trajectory and seals it again, as somebody who reads this project's code could."""
    write_trajectory(folder, replace(read_trajectory(file_of(folder, index)), **changes))  # type: ignore[arg-type]


def test_a_sealed_file_that_is_no_hdf5_is_refuted_in_one_line(tmp_path: Path, verify: Program) -> None:
    path = file_of(play(tmp_path / "run", seeing(), episodes=1), 0)
    body = b"not HDF5"
    path.write_bytes((MARK + hashlib.sha256(body).hexdigest().encode()).ljust(512, b"\0") + body)
    code, text = verify(tmp_path / "run")
    assert code == 1
    assert "is not a sound trajectory" in text


def one(folder: Path, success: bool) -> int:
    """Index of an episode with this outcome."""
    return next(number for number, line in enumerate(lines(folder)) if line["success"] is success)


def test_what_went_as_recorded_is_identical_to_the_bit(recorded: Path, verify: Program):
    assert {line["success"] for line in lines(recorded)} == {True, False}
    code, shown = verify(recorded, "--strict")
    assert code == 0
    head, _, row = shown.splitlines()
    assert head.split() == ["task", "episodes", "bit-identical", "outcome-identical", "refuted", "broke", "off"]
    assert row.split() == [PLANE.name, "8", "8", "0", "0", "0"]


def test_workers_find_what_one_process_finds_and_one_that_dies_proves_nothing(folder: Path):
    cut(file_of(folder, 4))
    forge(folder, 5, **weaken(read_trajectory(file_of(folder, 5))))
    found = read_run(folder)
    with fake_task():
        alone = prove(VerifyJob(found), found.episodes, 1)
        shared = prove(DeadlyProving(found), found.episodes, 2)
    assert [each.verdict for each in alone][4:6] == ["refuted", "outcome-identical"]
    dead = replace(alone[DEADLY], verdict="refuted", machine={}, findings=(f"the replay ended: {KILLED}",))
    assert shared == [*alone[:DEADLY], dead, *alone[DEADLY + 1 :]]


def test_verifying_changes_nothing(folder: Path, verify: Program):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    verify(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


LINE_FAULTS: list[tuple[bool, dict[str, object], str]] = [
    (
        False,
        {"success": True, "first_success": 9},
        "success: True in episodes.jsonl, False in the trajectory, False wh",
    ),
    (True, {"success": False, "first_success": None}, "success: False in episodes.jsonl, True in the trajectory, True"),
    (False, {"success_end": True}, "success_end: True in episodes.jsonl, False in the trajectory, False when replayed"),
    (True, {"first_success": 2}, "first_success: 2 in episodes.jsonl"),
    (False, {"steps": 29}, "steps: 29 in episodes.jsonl, 30 in the trajectory, 30 when replayed"),
    (False, {"phase": "goal"}, "phase: goal in episodes.jsonl"),
    (False, {"policy_calls": 7}, "policy_calls: 7 in episodes.jsonl, 8 in the trajectory"),
    (True, {"instruction": "stand still"}, "instruction: stand still in episodes.jsonl"),
    # A success made a failure by an error that never was: the line agrees with itself, the replay does not break off.
    (
        True,
        {"success": False, "success_end": False, "first_success": None, "error": "policy: tired"},
        "error: policy: tired in episodes.jsonl, policy: tired in the trajectory, None when replayed",
    ),
]


@pytest.mark.parametrize(("success", "changes", "words"), LINE_FAULTS)
def test_an_edited_line_is_refuted(
    folder: Path, verify: Program, success: bool, changes: Mapping[str, object], words: str
):
    index = one(folder, success)
    edit_line(folder, index, **changes)
    code, shown = verify(folder)
    assert code == 1
    assert f"episode {index} ({MANIFEST.keys[index]}) refuted: " in shown
    assert words in shown
    assert shown.splitlines()[-1].split() == [PLANE.name, "8", "7", "0", "1", "0"]


def flip(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:3000] + bytes([content[3000] ^ 1]) + content[3001:])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def edit_actions(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["actions"][3] = 0.0


def earlier_version(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["actions"] = np.zeros((3, 2))


def swap(path: Path) -> None:
    other = path.with_name(path.name.replace("00002", "00003"))
    content = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (flip, "00002.h5 is not a sound trajectory (it is truncated or damaged)"),
        (cut, "00002.h5 is not a sound trajectory (it is truncated or damaged)"),
        (edit_actions, "00002.h5 is not a sound trajectory (it is truncated or damaged)"),
        (earlier_version, "00002.h5 is not a sound trajectory (sim_eval did not write it"),
        (Path.unlink, "fake-Plane_test_00002.h5 is missing"),
        (swap, "00002.h5 holds episode fake/Plane/test/00003"),
    ],
)
def test_a_spoiled_trajectory_is_refuted(folder: Path, verify: Program, spoil: Callable[[Path], None], words: str):
    spoil(file_of(folder, 2))
    code, shown = verify(folder)
    assert code == 1
    assert words in shown
    bad = 2 if spoil is swap else 1
    assert shown.splitlines()[-1].split() == [PLANE.name, "8", str(8 - bad), "0", str(bad), "0"]


def test_a_trajectory_of_another_policy_is_refuted(folder: Path, tmp_path: Path, verify: Program):
    play(tmp_path / "other", constant(1.0, 0.0))
    shutil.copy(file_of(tmp_path / "other", 2), file_of(folder, 2))
    code, shown = verify(folder)
    assert code == 1
    assert "00002.h5 was recorded with policy name 'fake', run.json says 'wander'" in shown


def weaken(found: Trajectory) -> dict[str, object]:
    """One action changed by so little that the outcome stays."""
    actions = found.actions.copy()
    actions[5, 1] += 1e-9
    return {"actions": actions}


def exceed(found: Trajectory) -> dict[str, object]:
    """An action out of bounds, which the engine clips to what was executed."""
    limited = np.abs(found.actions) == 1.0
    assert limited.any()
    return {"actions": np.where(limited, 1.5 * found.actions, found.actions)}


def reverse(found: Trajectory) -> dict[str, object]:
    return {"actions": -found.actions}


def move(found: Trajectory) -> dict[str, object]:
    states = found.states.copy()
    states[7, 1] += 0.5
    return {"states": states}


def shorten(found: Trajectory) -> dict[str, object]:
    parts: dict[str, Any] = {name: getattr(found, name)[:-4] for name in ("actions", "states", "phases", "success")}
    count = int((found.asked < len(found.actions) - 4).sum())
    return {**parts, "asked": found.asked[:count], "seen": found.seen[:count]}


def shift(found: Trajectory) -> dict[str, object]:
    return {"asked": np.append(found.asked[:1], found.asked[1:] - 1)}


def show_another(found: Trajectory) -> dict[str, object]:
    return {"seen": (found.seen[0], "0" * 64, *found.seen[2:])}


def claim_success(found: Trajectory) -> dict[str, object]:
    return {"success": np.ones_like(found.success), "phases": np.full_like(found.phases, 2)}


@pytest.mark.parametrize(
    ("change", "success", "verdict", "words"),
    [
        (weaken, False, "outcome-identical", "states differ from step 6 on, most by 1e-10 at step"),
        (exceed, False, "outcome-identical", "actions differ at"),
        (reverse, True, "refuted", "success: True in episodes.jsonl, True in the trajectory, False when replayed"),
        (move, False, "outcome-identical", "states differ from step 7 on, most by 0.5 at step 7 in number 1"),
        (shorten, False, "refuted", "the recorded actions end after 26 control steps when replayed"),
        (shift, False, "outcome-identical", "7 of 8 observations differ, the first at step 3"),
        (show_another, False, "outcome-identical", "1 of 8 observations differ, the first at step 4"),
        (claim_success, False, "refuted", "success: False in episodes.jsonl, True in the trajectory, False when repl"),
    ],
)
def test_a_forged_trajectory_is_found(
    folder: Path,
    verify: Program,
    change: Callable[[Trajectory], dict[str, object]],
    success: bool,
    verdict: str,
    words: str,
):
    index = one(folder, success)
    forge(folder, index, **change(read_trajectory(file_of(folder, index))))
    code, shown = verify(folder)
    assert code == (verdict == "refuted")
    assert f"episode {index} ({MANIFEST.keys[index]}) {verdict}: " in shown
    assert words in shown
    assert (verdict == "refuted") or "versions and machine are those of the recording" in shown
    assert verify(folder, "--strict")[0] == 1


def test_line_and_trajectory_forged_alike_are_refuted(folder: Path, verify: Program):
    index = one(folder, False)
    forge(folder, index, **claim_success(read_trajectory(file_of(folder, index))))
    edit_line(folder, index, success=True, success_end=True, first_success=1, phase="goal")
    code, shown = verify(folder)
    assert code == 1
    assert "success: True in episodes.jsonl, True in the trajectory, False when replayed" in shown


def test_a_trajectory_whose_parts_do_not_fit_is_refuted(folder: Path, verify: Program, tmp_path: Path):
    """Sealed as ours, but not written by us: nothing that it holds may end the program."""
    from sim_eval.core.files import sealed
    from sim_eval.evaluation.trajectory import MARK

    content = file_of(folder, 2).read_bytes()
    (tmp_path / "copy.h5").write_bytes(content)
    for number, part in enumerate(("success", "actions", "seen", "asked", "states"), start=1):

        def fill(file: h5py.File, part: str = part) -> None:
            with h5py.File(tmp_path / "copy.h5") as sound:
                for name in sound:
                    file[name] = sound[name][()][: 3 if name == part else None]
                file.attrs.update(sound.attrs)

        file_of(folder, number).write_bytes(sealed(MARK, fill))
    file_of(folder, 6).write_bytes(sealed(MARK, lambda file: None))
    code, shown = verify(folder)
    assert code == 1
    assert shown.count("contradicts itself") == 5
    assert shown.count("is not a sound trajectory") == 6


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data["protocol"].update(post_success_steps=3), "steps: "),
        (lambda data: data["protocol"].update(n_action_steps=2), "when replayed"),
        (
            lambda data: data["policy"].update(digest="def"),
            "was recorded with policy digest 'abc', run.json says 'def'",
        ),
    ],
)
def test_an_edited_run_json_is_refuted(
    folder: Path, verify: Program, change: Callable[[dict[str, Any]], object], words: str
):
    edit_run(folder, change)
    code, shown = verify(folder)
    assert code == 1
    assert words in shown


def test_other_cameras_in_run_json_are_other_observations(folder: Path, verify: Program):
    edit_run(folder, lambda data: data["policy"].update(cameras={"top": [32, 32]}))
    code, shown = verify(folder)
    assert code == 0
    assert "8 of 8 observations differ, the first at step 0" in shown
    edit_run(folder, lambda data: data["policy"].update(cameras=3))
    code, shown = verify(folder)
    assert (code, shown.count("\n")) == (2, 1)
    assert "run.json is damaged" in shown


def test_other_versions_and_machines_are_said_in_one_line_before_the_table(folder: Path, verify: Program):
    edit_run(folder, lambda data: data["versions"].update(mujoco="3.2.0"))
    there = read_trajectory(file_of(folder, 4)).machine
    forge(folder, 4, machine={**there, "processor": "Pentium", "torch_threads": 7})  # resumed elsewhere
    code, shown = verify(folder)
    assert code == 0
    (line,) = [line for line in shown.splitlines() if line.startswith("recorded with other")]
    assert "mujoco 3.2.0, here 3.3.0" in line
    assert f"processor Pentium, here {there['processor']}" in line
    assert "numpy" not in line
    assert "threads" not in line  # they move no simulator
    assert shown.index(line) < shown.index("task  ")


class OtherPlane(PlaneSimulator):
    """The plane as another machine or version might compute it."""

    def __init__(self, push: float = 0.0, since: int = 0, dark: bool = False) -> None:
        super().__init__(PLANE)
        self.push, self.since, self.dark = push, since, dark

    def act(self, action: FloatArray) -> Status:
        if self._steps >= self.since:
            self._position = self._position + np.array([0.0, self.push])
        return super().act(action)

    def observe(self, cameras: Sequence[str] | None = None) -> SensorReadings:
        seen = super().observe(cameras)

        def look(view: CameraView) -> CameraView:
            return replace(view, rgb=np.where(view.rgb == 52, np.uint8(53), view.rgb)) if self.dark else view

        return replace(seen, views={name: look(view) for name, view in seen.views.items()})


def test_another_last_digit_is_outcome_identical_and_says_where(recorded: Path, verify: Program, tmp_path: Path):
    verify.simulator(OtherPlane(push=-1e-12, since=4))
    code, shown = verify(recorded, "--json")
    told = json.loads(shown)
    code, shown = verify(recorded, "--out", str(tmp_path / "report.json"))
    assert told == json.loads((tmp_path / "report.json").read_text())
    assert code == 0
    assert shown.splitlines()[-1].split() == [PLANE.name, "8", "0", "8", "0", "0"]
    assert "states differ from step 5 on, most by" in shown
    index = one(recorded, False)
    report = json.loads((tmp_path / "report.json").read_text())
    found = report["episodes"][index]
    assert (found["index"], found["verdict"]) == (index, "outcome-identical")
    deviation = found["deviation"]
    assert (deviation["since"], deviation["step"], deviation["entry"]) == (5, 30, "number 1")
    assert deviation["largest"] == pytest.approx(26e-12, rel=1e-3)
    assert report["machine_differences"] == []
    assert verify(recorded, "--strict")[0] == 1


def test_another_outcome_is_refuted(recorded: Path, verify: Program):
    verify.simulator(OtherPlane(push=0.2))
    code, shown = verify(recorded)
    assert code == 1
    assert int(shown.splitlines()[-1].split()[4]) >= sum(line["success"] for line in lines(recorded)) > 0


def test_another_renderer_is_told_from_another_physics(recorded: Path, verify: Program):
    verify.simulator(OtherPlane(dark=True))
    code, shown = verify(recorded)
    assert code == 0
    assert "outcome-identical: 1 of" in shown
    assert "the first at step" in shown
    assert "states differ" not in shown


def fail_at(policy_call: int) -> FakePolicy:
    def answer(request: PolicyRequest) -> object:
        if request.policy_call == policy_call:
            raise ValueError("out of ideas")
        return np.zeros((8, 2))

    return FakePolicy(answer)


@pytest.mark.parametrize(
    ("policy", "breaks_at"),
    [
        (fail_at(0), None),
        (fail_at(2), None),
        (FakePolicy(lambda request: np.full((8, 2), np.nan if request.policy_call == 3 else 0.1)), None),
        (constant(1.0, 0.0), 10),
        (constant(1.0, 0.0), 12),
        (constant(1.0, 0.0), 0),
    ],
)
def test_an_episode_that_broke_off_is_told_apart(
    tmp_path: Path, verify: Program, policy: FakePolicy, breaks_at: int | None
):
    play(tmp_path, policy, PlaneSimulator(PLANE, breaks_at), episodes=2)
    assert all(line["error"] for line in lines(tmp_path))
    code, shown = verify(tmp_path)
    assert code == 0
    assert shown.splitlines()[-1].split() == [PLANE.name, "2", "0", "0", "0", "2"]
    assert lines(tmp_path)[0]["error"] in shown
    assert verify(tmp_path, "--strict")[0] == 1
    # What a killed worker leaves: a line, and nothing to replay.
    shutil.rmtree(tmp_path / "trajectories")
    assert verify(tmp_path)[1].splitlines()[-1].split()[-1] == "2"
    edit_line(tmp_path, 0, success=True, first_success=1)
    assert verify(tmp_path)[0] == 1


def test_what_broke_off_is_still_held_to_its_recording(tmp_path: Path, verify: Program):
    play(tmp_path, fail_at(2), episodes=1)
    edit_line(tmp_path, 0, steps=7)
    code, shown = verify(tmp_path)
    assert code == 1
    assert "steps: 7 in episodes.jsonl, 8 in the trajectory" in shown


def test_some_episodes_can_be_chosen(folder: Path, verify: Program):
    edit_line(folder, 5, steps=1)
    assert verify(folder, "--episode", "0", "3", "3")[1].splitlines()[-1].split()[1:4] == ["2", "2", "0"]
    assert verify(folder, "--episode", "5")[0] == 1
    assert verify(folder, "--sample", "2")[0] == 0  # the first and the last
    assert verify(folder, "--sample", "3")[1].splitlines()[-1].split()[1] == "3"
    assert verify(folder, "--sample", "99")[1].splitlines()[-1].split()[1] == "8"


def test_a_run_that_is_not_complete_is_verified_as_far_as_it_goes(tmp_path: Path, verify: Program):
    play(tmp_path, wander(), episodes=3)
    code, shown = verify(tmp_path)
    assert code == 0
    assert "the run is not complete: 3 of 8 episodes are finished" in shown
    assert verify(tmp_path, "--episode", "5") == (
        2,
        "error: --episode 5: fake/Plane/test/00005 is not finished: resume the run\n",
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--episode", "8"], "--episode 8: "),
        (["--episode", "-1"], "has episodes 0 to 7"),
        (["--sample", "0"], "--sample: input should be greater than or equal to 1"),
        (["--workers", "0"], "--workers: input should be auto or a whole number from 1 on, not 0"),
        (["--sample", "2", "--episode", "1"], "give one of them"),
        (["--out", f"{__file__}/report.json"], "cannot be written"),
        (["--policy"], "was not made by sim_eval.rollout, so its policy is unknown: leave --policy out"),
    ],
)
def test_bad_input_is_one_line(recorded: Path, verify: Program, options: list[str], words: str):
    code, shown = verify(recorded, *options)
    assert code == 2
    assert words in shown
    assert shown.count("\n") == 1


def test_no_run_is_one_line(tmp_path: Path, verify: Program):
    code, shown = verify(tmp_path)
    assert code == 2
    assert shown.count("\n") == 1
    play(tmp_path / "planned", wander(), episodes=0)
    assert "has no finished episode" in verify(tmp_path / "planned")[1]


def test_the_largest_difference_is_where_it_is():
    states = np.arange(12.0).reshape(4, 3)
    assert deviates(states, states.copy()) is None
    other = states.copy()
    other[1, 0] += 1e-3
    other[3, 2] -= 1e-2
    found = deviates(states, other, ("time", "x", "y"))
    assert found is not None
    assert (found.since, found.step, found.entry) == (1, 3, "y")
    assert found.largest == pytest.approx(1e-2)
    other[2, 1] = np.nan  # a simulator that diverged is further off than any number
    found = deviates(states, other)
    assert found is not None
    assert (found.largest, found.step, found.entry) == (float("inf"), 2, "number 1")
    signed = np.zeros((2, 1))
    found = deviates(signed, -signed)  # equal as numbers, not to the last bit
    assert found is not None
    assert found.largest == 0.0


@pytest.mark.parametrize(
    "tasks",
    [
        ("robosuite/Lift", "robosuite/LiftWide"),
        pytest.param(("robosuite/Lift", "robosuite/LiftWide", "robosuite/Stack"), marks=pytest.mark.slow),
    ],
    ids=len,
)
def test_real_episodes_of_a_shipped_policy_are_bit_identical(
    tasks: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from sim_eval.policies.registry import CHECKPOINTS

    checkpoint, folder = tmp_path / "checkpoint", tmp_path / "run"
    shutil.copytree(CHECKPOINTS / "deep_llama", checkpoint)
    arguments = RolloutConfig(str(checkpoint), ",".join(tasks), 1, video="none", out=folder, device="cpu")
    assert rollout.main(arguments) == 0
    assert main(VerifyArguments(folder, strict=True, policy=True)) == 0
    assert main(VerifyArguments(folder, strict=True, policy=True, workers=2)) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(tasks)]
    verdicts, inferred = rows[-2 * len(tasks) : -len(tasks)], rows[-len(tasks) :]
    assert verdicts == [[task, "1", "1", "0", "0", "0"] for task in tasks]
    assert all(chunks == equal and int(chunks) > 5 and largest == "0" for _, chunks, equal, largest in inferred)
    assert max(path.stat().st_size for path in (folder / "trajectories").iterdir()) < 120_000

    key = EpisodeKey("robosuite/Lift", "test", 0)
    sound = read_trajectory(trajectory_path(folder, key))
    nudged = sound.actions.copy()
    nudged[5] *= 1 - 1e-9
    write_trajectory(folder, replace(sound, actions=nudged))
    assert main(VerifyArguments(folder, (0,), strict=True)) == 1
    shown = capsys.readouterr().out
    assert "outcome-identical: states differ from step 6 on, most by " in shown
    assert " in qvel " in shown or " in qpos " in shown
    write_trajectory(folder, replace(sound, actions=np.zeros_like(sound.actions)))
    assert main(VerifyArguments(folder, (0,))) == 1
    assert "success: True in episodes.jsonl, True in the trajectory, False when replayed" in capsys.readouterr().out

    weights = checkpoint / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    monkeypatch.setattr(sys, "argv", ["verify", str(folder), "--policy"])
    for words in ("is no longer the policy of", "cannot be loaded again"):
        with pytest.raises(SystemExit) as stop:
            run(main, VerifyArguments, PROGRAM)
        assert stop.value.code == 2
        assert words in capsys.readouterr().err
        shutil.rmtree(checkpoint, ignore_errors=True)


def test_the_state_of_a_robosuite_task_has_names():
    simulator = get_task("robosuite/Lift").make(RenderConfig())
    try:
        simulator.reset(EpisodeKey("robosuite/Lift", "test", 0))
        found = simulator.snapshot()
        assert len(found.names) == len(found.state) == len(set(found.names))
        cube = simulator.privileged()["cube_pos"]
        place = found.names.index("qpos cube_joint0[0]")
        assert np.array_equal(found.state[place : place + 3], cube)
    finally:
        simulator.close()


OLD_RUN = Path(__file__).parents[1] / "old_files" / "run"  # made by the version before 0.2


def test_a_run_of_an_earlier_version_is_verified_with_its_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    found = read_run(OLD_RUN)
    assert found.config is not None
    assert (found.config.policy, found.config.n_action_steps, found.config.out) == ("scripted", 2, Path("runs/old"))
    assert main(VerifyArguments(OLD_RUN, policy=True, out=tmp_path / "report.json")) == 0
    (episode,) = json.loads((tmp_path / "report.json").read_text())["episodes"]
    # On another processor the last bits may differ, but not the observations' sentence or the actions by much.
    assert episode["verdict"] in ("bit-identical", "outcome-identical")
    assert episode["inferred"]["chunks"] == 37


def test_a_trajectory_of_another_version_is_named(folder: Path, verify: Program):
    path = file_of(folder, 2)
    path.write_bytes(path.read_bytes().replace(b"sim_eval trajectory 2", b"sim_eval trajectory 1", 1))
    code, shown = verify(folder)
    assert code == 1
    assert "00002.h5 is of another version: read it with the sim_eval that run.json names" in shown
