"""A run on disk: nothing finished is lost or counted twice, and another run is never mixed in."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from fake_simulator import PLANE, PlaneSimulator, wander

from sim_eval.configs import RolloutConfig
from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import RenderConfig
from sim_eval.evaluation.engine import RolloutProtocol, run_episode
from sim_eval.evaluation.manifest import Manifest
from sim_eval.evaluation.run_folder import fresh_folder, from_line, open_run, read_run, to_line
from sim_eval.evaluation.trajectory import TrajectoryRecorder, read_trajectory
from sim_eval.policies.policy import PolicySpec

MANIFEST = Manifest.plan([PLANE.name], "test", 0, 12)
PROTOCOL = RolloutProtocol()


def play(folder: Path, episodes: int = 100, pause: float = 0.0) -> int:
    """Runs up to so many remaining episodes; how many it ran."""
    simulator, policy = PlaneSimulator(PLANE), wander()
    recorder = TrajectoryRecorder(policy.spec, folder)
    with open_run(folder, MANIFEST, policy.spec, PROTOCOL, {PLANE.name: simulator.spec}) as run:
        todo = run.remaining[:episodes]
        for key in todo:
            run.append(run_episode(simulator, policy, key, PROTOCOL, recorder))
            time.sleep(pause)
    return len(todo)


def identities(folder: Path) -> list[dict[str, object]]:
    lines = (folder / "episodes.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "seconds"} for line in lines]


def test_a_line_says_everything_and_reads_back(tmp_path: Path):
    play(tmp_path)
    first = identities(tmp_path)[0]
    assert list(first)[:3] == ["task", "split", "index"]
    assert {"instruction", "success", "success_end", "steps", "first_success", "phase", "policy_calls", "error"} < set(
        first
    )
    assert list(json.loads((tmp_path / "episodes.jsonl").read_text().splitlines()[0]))[-1] == "seconds"
    run = read_run(tmp_path)
    assert run.complete
    assert [from_line(to_line(result)) for result in run.episodes] == list(run.episodes)
    assert 0 < sum(result.success for result in run.episodes) < 12  # both outcomes, or the tests here show little


def test_run_json_names_policy_protocol_environments_and_machine(tmp_path: Path):
    play(tmp_path, 1)
    data = json.loads((tmp_path / "run.json").read_text())
    assert data["policy"]["digest"] == "abc"
    assert data["protocol"]["render"] == asdict(RenderConfig())
    assert data["environments"][PLANE.name]["action"]["control_hz"] == 20.0
    assert data["versions"]["mujoco"]
    assert data["processor"]


def age(folder: Path, *options: str) -> None:
    """Rewrites a run folder as versions before 0.2 wrote it, with the command line that they saved."""
    data = json.loads((folder / "run.json").read_text())
    protocol, render = data["protocol"], data["protocol"]["render"]
    data["command"] = ["python", "-m", "sim_eval.rollout", *options]
    data["protocol"] = {
        "replan": protocol["n_action_steps"],
        "settle_steps": protocol["post_success_steps"],
        "telling": {"correct": "right", "counterfactual": "wrong"}[protocol["instruction_condition"]],
        "simulator": {"render": render["mode"], "height": render["height"], "width": render["width"]},
    }
    del data["config"], data["policy"]["variant"]
    (folder / "run.json").write_text(json.dumps(data))
    log = folder / "episodes.jsonl"
    log.write_text(log.read_text().replace("policy_calls", "replans"))


def test_a_run_of_an_earlier_version_is_read_and_resumed(tmp_path: Path):
    play(tmp_path / "now")
    play(tmp_path / "old", 5)
    protocol = RolloutProtocol(3, 7, "counterfactual", RenderConfig("faithful", 64, 48))
    with open_run(tmp_path / "other", MANIFEST, wander().spec, protocol, {}):
        pass
    options = ["--policy", "runs/a b", "--episodes", "12", "--replan", "3", "--render", "faithful", "--compile"]
    options += ["--telling", "wrong", "--wait", "10.0"]
    for name in ("old", "other"):
        age(tmp_path / name, *options)
    assert read_run(tmp_path / "other").protocol == protocol
    config = RolloutConfig("runs/a b", episodes=12, n_action_steps=3, render="faithful", compile=True)
    config = replace(config, instruction_condition="counterfactual", video="all", workers=1)
    assert read_run(tmp_path / "old").config == config
    assert play(tmp_path / "old") == 7
    assert read_run(tmp_path / "old").episodes == read_run(tmp_path / "now").episodes


def test_a_run_of_a_later_version_is_refused_and_names_it(tmp_path: Path):
    play(tmp_path, 1)
    data = json.loads((tmp_path / "run.json").read_text())
    data["versions"]["sim_eval"], data["protocol"]["temperature"] = "7.3", 2.0
    (tmp_path / "run.json").write_text(json.dumps(data))
    with pytest.raises(SimEvalError, match=r"run.json is of sim_eval 7.3 .*'temperature'.*: read it with that version"):
        read_run(tmp_path)


def test_run_twice_gives_the_same_lines(tmp_path: Path):
    play(tmp_path / "a")
    play(tmp_path / "b")
    assert identities(tmp_path / "a") == identities(tmp_path / "b")


def test_resuming_skips_what_is_finished(tmp_path: Path):
    play(tmp_path / "whole")
    assert [play(tmp_path / "parts", 5), play(tmp_path / "parts", 5), play(tmp_path / "parts")] == [5, 5, 2]
    assert play(tmp_path / "parts") == 0
    assert identities(tmp_path / "parts") == identities(tmp_path / "whole")


def test_a_torn_last_line_is_run_again(tmp_path: Path):
    play(tmp_path / "whole")
    play(tmp_path / "torn", 5)
    log = tmp_path / "torn" / "episodes.jsonl"
    log.write_bytes(log.read_bytes()[:-40])
    assert len(read_run(tmp_path / "torn").episodes) == 4
    assert play(tmp_path / "torn") == 8
    assert identities(tmp_path / "torn") == identities(tmp_path / "whole")


def test_killed_and_resumed_equals_finished(tmp_path: Path):
    folder = tmp_path / "killed"
    code = (
        f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[2])!r}]\n"
        f"from pathlib import Path; from {Path(__file__).stem} import play; play(Path({str(folder)!r}), pause=0.05)"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    log = folder / "episodes.jsonl"
    deadline = time.monotonic() + 30
    while not (log.exists() and log.read_bytes().count(b"\n") >= 3):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not read_run(folder).complete
    play(folder)
    play(tmp_path / "whole")
    assert identities(folder) == identities(tmp_path / "whole")
    assert len(list((folder / "trajectories").glob("*.h5"))) == 12


@pytest.mark.parametrize(
    ("manifest", "spec", "protocol", "words"),
    [
        (Manifest.plan([PLANE.name], "test", 0, 13), wander().spec, PROTOCOL, "12 episodes"),
        (MANIFEST, PolicySpec("wander", digest="def"), PROTOCOL, "policy digest was abc, is now def"),
        (MANIFEST, replace(wander().spec, variant="1 Euler steps"), PROTOCOL, "variant was none, is now 1 Euler steps"),
        (MANIFEST, wander().spec, RolloutProtocol(n_action_steps=8), "protocol n_action_steps was 4, is now 8"),
        (MANIFEST, wander().spec, RolloutProtocol(render=RenderConfig("faithful")), "faithful"),
    ],
)
def test_another_run_is_refused(
    tmp_path: Path, manifest: Manifest, spec: PolicySpec, protocol: RolloutProtocol, words: str
):
    play(tmp_path, 2)
    before = identities(tmp_path)
    with pytest.raises(SimEvalError, match=words) as caught, open_run(tmp_path, manifest, spec, protocol, {}):
        pass
    assert "choose another --out" in str(caught.value)
    assert identities(tmp_path) == before


def test_a_folder_in_use_or_with_other_files_is_refused(tmp_path: Path):
    writing = open_run(tmp_path / "run", MANIFEST, wander().spec, PROTOCOL, {})
    with writing, pytest.raises(SimEvalError, match="another process"):
        play(tmp_path / "run", 1)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    with pytest.raises(SimEvalError, match="holds other files"):
        play(tmp_path / "thesis", 1)
    (tmp_path / "file").touch()
    with pytest.raises(SimEvalError, match="cannot write"):
        play(tmp_path / "file" / "run", 1)


def spoil_line(folder: Path) -> None:
    log = folder / "episodes.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text(lines[0] + lines[1].replace("true", "maybe").replace("false", "maybe") + lines[2])


def spoil_type(folder: Path) -> None:
    log = folder / "episodes.jsonl"
    log.write_text(log.read_text().replace('"error": null', '"error": 3'))


def double_line(folder: Path) -> None:
    log = folder / "episodes.jsonl"
    log.write_text(log.read_text() * 2)


def stray_line(folder: Path) -> None:
    log = folder / "episodes.jsonl"
    log.write_text(log.read_text().replace('"index": 0', '"index": 77'))


def drop_key(folder: Path) -> None:
    data = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**data, "keys": data["keys"][1:]}))


def cut_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text((folder / "manifest.json").read_text()[:100])


def drop_run(folder: Path) -> None:
    (folder / "run.json").unlink()


def empty_run(folder: Path) -> None:
    (folder / "run.json").write_text("{}")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_line, "episodes.jsonl, line 2 is damaged"),
        (spoil_type, "episodes.jsonl, line 1 is damaged"),
        (double_line, "line 4: episode fake/Plane/test/00000 is there twice"),
        (stray_line, "not in the manifest"),
        (drop_key, "manifest.json is damaged"),
        (cut_manifest, "manifest.json is damaged"),
        (drop_run, "run.json cannot be read"),
        (empty_run, "run.json is damaged"),
    ],
)
def test_a_damaged_run_is_named(tmp_path: Path, spoil, words: str):
    play(tmp_path, 3)
    spoil(tmp_path)
    with pytest.raises(SimEvalError, match=words):
        read_run(tmp_path)


def test_a_trajectory_holds_what_replay_needs(tmp_path: Path):
    play(tmp_path, 1)
    (path,) = (tmp_path / "trajectories").iterdir()
    assert path.name == "fake-Plane_test_00000.h5"
    result, recorded = read_run(tmp_path).episodes[0], read_trajectory(path)
    assert recorded.actions.dtype == recorded.states.dtype == np.float64
    assert len(recorded.actions) == len(recorded.phases) == len(recorded.success) == result.steps
    assert bool(recorded.success.any()) == result.success
    assert recorded.asked.tolist() == list(range(0, result.steps, PROTOCOL.n_action_steps))
    assert len(set(recorded.seen)) == len(recorded.seen) == result.policy_calls
    assert recorded.policy == {"name": "wander", "digest": "abc", "variant": ""}
    assert recorded.machine["versions"]["mujoco"]
    simulator = PlaneSimulator(PLANE)
    simulator.reset(recorded.key)
    replayed = [simulator.snapshot().state]
    for action in recorded.actions:
        simulator.act(action)
        replayed.append(simulator.snapshot().state)
    assert np.array_equal(replayed, recorded.states)


def test_a_manifest_is_its_set_of_keys():
    two = Manifest.plan(["a", "b"], "test", 0, 3)
    assert two.digest == Manifest.plan(["b", "a"], "test", 0, 3).digest
    assert two.tasks == ("a", "b")
    assert (
        len({two.digest, Manifest.plan(["a", "b"], "test", 1, 3).digest, Manifest.plan(["a"], "test", 0, 6).digest})
        == 3
    )
    assert Manifest.from_dict(json.loads(json.dumps(two.to_dict()))) == two
    for wrong in (["a", "a"], []):
        with pytest.raises(SimEvalError):
            Manifest.plan(wrong, "test", 0, 3)
    with pytest.raises(SimEvalError, match="unknown split"):
        Manifest.plan(["a"], "exam", 0, 3)


def test_a_fresh_folder_is_fresh(tmp_path: Path):
    names = []
    for _ in range(3):
        names.append(fresh_folder("some/policy", tmp_path))
        names[-1].mkdir()
    assert len(set(names)) == 3
    assert all(name.parent == tmp_path for name in names)
