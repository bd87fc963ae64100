"""The doctor's command: a healthy set-up has no fault, and each planted one is found and named."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sim_eval import collect, doctor, train
from sim_eval.configs import DoctorConfig, TrainConfig
from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import CameraView, Observation, RenderConfig, SensorReadings, Simulator
from sim_eval.datasets.episode_file import Episode, episode_files, file_name, read_episode, write_episode
from sim_eval.diagnosis.examination import Subject, checkpoint_findings, environment_findings
from sim_eval.diagnosis.findings import Finding
from sim_eval.envs.tasks import get_task

TASK = "robosuite/LiftWide"
SIDE = 64


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demonstrations")
    collect.main(collect.CollectConfig(task=TASK, out=out, episodes=2, size=SIDE))
    return out


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "checkpoint"
    train.main(TrainConfig(data=(data,), out=out, steps=3, batch_size=4, val_episodes=0))
    return out


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    made = get_task(TASK).make(RenderConfig(height=SIDE, width=SIDE))
    yield made
    made.close()


def found(simulator: Simulator, policy: Path | None = None, data: Path | None = None) -> list[Finding]:
    """All findings but the machine's, in a simulator that several tests share."""
    arguments = DoctorConfig(
        policy=str(policy) if policy else None, data=(data,) if data else (), episodes=1, device="cpu"
    )
    subject = Subject.of(arguments)
    own: list[Finding] = []
    if subject.policy and subject.stats:
        own = list(checkpoint_findings(subject, subject.policy, subject.stats))
    return [*own, *environment_findings(subject, simulator)]


def faults(findings: list[Finding]) -> dict[str, str]:
    """Name -> what was measured; every fault has its remedy."""
    assert all(finding.remedy for finding in findings if finding.level != "ok")
    return {finding.name: finding.measured for finding in findings if finding.level == "fault"}


def with_views(episode: Episode, change: Callable[[Mapping[str, CameraView]], Mapping[str, CameraView]]) -> Episode:
    def changed(seen: Observation) -> Observation:
        return replace(seen, views=change(seen.views))

    return replace(episode, observations=[changed(seen) for seen in episode.observations])


def altered_data(data: Path, out: Path, change: Callable[[Episode], Episode]) -> Path:
    """The demonstrations, each changed, in another folder."""
    for path in episode_files(data):
        episode = change(read_episode(path))
        write_episode(out / file_name(episode.key), episode)
    return out


def flipped(view: CameraView) -> CameraView:
    return replace(view, rgb=view.rgb[::-1], depth=view.depth[::-1])


def in_millimetres(view: CameraView) -> CameraView:
    return replace(view, depth=view.depth * 1000)


def altered_checkpoint(trained: Path, out: Path, file: str, change: Callable[[dict[str, Any]], None]) -> Path:
    """The checkpoint with one of its JSON files changed, in ``out``; there it can be changed again."""
    if out != trained:
        shutil.copytree(trained, out)
    values = json.loads((out / file).read_text())
    change(values)
    (out / file).write_text(json.dumps(values))
    return out


def exchange(values: dict[str, Any], first: str, second: str) -> None:
    values[first], values[second] = values[second], values[first]


def permute(values: dict[str, list[float]]) -> None:
    values.update({part: [*numbers[1:3], numbers[0], *numbers[3:]] for part, numbers in values.items()})


def to_millimetres(values: dict[str, list[float]]) -> None:
    values.update({part: [1000 * number for number in numbers] for part, numbers in values.items()})


def test_a_healthy_set_up_has_no_fault(
    data: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    arguments = DoctorConfig(policy=str(trained), data=(data,), device="cpu", out=tmp_path / "findings.json")
    assert doctor.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("doctor: 0 faults, ")
    assert not any("\033" in line for line in lines)  # no terminal, no colours
    written = json.loads((tmp_path / "findings.json").read_text())
    assert written["healthy"]
    assert list(written["groups"]) == ["machine", "demonstrations", "policy deep_llama", TASK]
    names = {finding["name"] for findings in written["groups"].values() for finding in findings}
    assert {"OpenGL", "reprojection", "replays", "weights", "statistics of action", "suggested --workers"} <= names
    # Three steps teach nothing, and that is said.
    (imitation,) = [each for each in written["groups"][TASK] if each["name"] == "imitation"]
    assert imitation["level"] == "warning"


def test_all_at_once_through_the_command_line(
    data: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(episode: Episode) -> Episode:
        def views(seen: Mapping[str, CameraView]) -> Mapping[str, CameraView]:
            return {"agentview": flipped(seen["agentview"]), "hand": in_millimetres(seen["wrist"])}

        return replace(with_views(episode, views), action=replace(episode.action, control_hz=10.0))

    def swap(values: dict[str, Any]) -> None:
        exchange(values["normalization"]["fields"]["action"], "mean", "std")

    bad = altered_checkpoint(trained, tmp_path / "checkpoint", "processor.json", swap)
    altered_checkpoint(bad, bad, "training.json", lambda values: values.update(digest="0" * 64))
    arguments = DoctorConfig(
        policy=str(bad), data=(altered_data(data, tmp_path / "data", change),), device="cpu", episodes=1
    )
    assert doctor.main(arguments) == 1
    render_config = capsys.readouterr().out
    for told in ("camera 'hand'", "control_hz", "upside down", "mean and std are exchanged", "stale"):
        assert told in render_config


@pytest.mark.parametrize(
    ("swap", "told"),
    [
        (lambda fields: exchange(fields["action"], "mean", "std"), "mean and std are exchanged"),
        (lambda fields: exchange(fields["action"], "q01", "q99"), "q01 and q99 are exchanged"),
        (lambda fields: permute(fields["action"]), "dimensions are permuted"),
        (lambda fields: to_millimetres(fields["eef_pos"]), ""),
    ],
)
def test_swapped_normalisation(
    data: Path, trained: Path, tmp_path: Path, simulator: Simulator, swap: Callable[[Any], None], told: str
) -> None:
    bad = altered_checkpoint(
        trained, tmp_path / "bad", "processor.json", lambda values: swap(values["normalization"]["fields"])
    )
    measured = faults(found(simulator, bad, data))
    if not told:  # far from the data and from the environment
        assert set(measured) == {"statistics of eef_pos", "eef_pos here"}
    else:
        assert told in measured["statistics of action"]


def test_swapped_normalisation_mode(trained: Path, tmp_path: Path, simulator: Simulator) -> None:
    def change(values: dict[str, Any]) -> None:
        values["normalization"]["mode"] = "quantile"

    bad = altered_checkpoint(trained, tmp_path / "bad", "processor.json", change)
    assert faults(found(simulator, bad)) == {"normalisation mode": "quantile, trained with mean_std"}


def test_flipped_image(data: Path, tmp_path: Path, simulator: Simulator) -> None:
    def change(episode: Episode) -> Episode:
        return with_views(episode, lambda views: {**views, "agentview": flipped(views["agentview"])})

    measured = faults(found(simulator, data=altered_data(data, tmp_path, change)))
    assert set(measured) == {"agentview: rgb", "agentview: depth"}
    assert all(told.startswith("upside down") for told in measured.values())


def test_depth_in_millimetres(data: Path, tmp_path: Path, simulator: Simulator) -> None:
    def change(episode: Episode) -> Episode:
        return with_views(episode, lambda views: {**views, "wrist": in_millimetres(views["wrist"])})

    measured = faults(found(simulator, data=altered_data(data, tmp_path, change)))
    assert set(measured) == {"wrist: depth"}
    assert measured["wrist: depth"].startswith("depth in millimetres")
    assert "1000 times" in measured["wrist: depth"]


def test_wrong_camera_name(data: Path, trained: Path, tmp_path: Path, simulator: Simulator) -> None:
    def rename(values: dict[str, Any]) -> None:
        values["cameras"] = {"front" if name == "agentview" else name: size for name, size in values["cameras"].items()}

    bad = altered_checkpoint(trained, tmp_path / "bad", "processor.json", rename)
    measured = faults(found(simulator, bad, data))
    assert set(measured) == {"fit to the data", "fit to the environment"}
    assert measured["fit to the environment"] == "camera 'front' is needed, the environment has agentview, wrist"
    renamed = altered_data(
        data,
        tmp_path / "data",
        lambda episode: with_views(episode, lambda views: {"front": views["agentview"], "wrist": views["wrist"]}),
    )
    measured = faults(found(simulator, data=renamed))
    assert measured == {"fit of the data": "camera 'front' is in the data, the environment has agentview, wrist"}


def test_wrong_control_rate(data: Path, trained: Path, tmp_path: Path, simulator: Simulator) -> None:
    bad = altered_checkpoint(
        trained, tmp_path / "bad", "processor.json", lambda values: values["action"].update(control_hz=10)
    )
    measured = faults(found(simulator, bad))
    assert measured == {
        "fit to the environment": "action control_hz: the policy commands 10.0, the environment takes 20",
    }
    slow = altered_data(
        data, tmp_path / "data", lambda episode: replace(episode, action=replace(episode.action, control_hz=10.0))
    )
    measured = faults(found(simulator, data=slow))
    assert measured == {"fit of the data": "action control_hz: the data commands 10.0, the environment takes 20"}


def test_stale_checkpoint_hash(trained: Path, tmp_path: Path, simulator: Simulator) -> None:
    stale = altered_checkpoint(
        trained, tmp_path / "stale", "training.json", lambda values: values.update(digest="0" * 64, steps=4000)
    )
    findings = found(simulator, stale)
    assert set(faults(findings)) == {"weights"}
    # The card was not written by that record either.
    (card,) = [finding for finding in findings if finding.name == "card"]
    assert card.level == "warning"


def test_a_damaged_demonstration_is_a_fault_and_the_rest_is_examined(data: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(data, tmp_path / "data")
    victim = episode_files(copy)[0]
    victim.write_bytes(victim.read_bytes()[:2000])
    subject = Subject.of(DoctorConfig(data=(copy,)))
    assert len(subject.data.headers) == 1
    assert str(victim) in subject.data.problems[0]


def test_a_simulator_that_breaks_is_a_fault(simulator: Simulator) -> None:
    class Broken:
        task, spec, reset, privileged = simulator.task, simulator.spec, simulator.reset, simulator.privileged

        def act(self, action: object) -> None:
            raise RuntimeError("the physics\ndiverged")

        def observe(self, cameras: object = None) -> SensorReadings:
            return simulator.observe(())

    measured = faults(found(Broken()))  # type: ignore[arg-type]
    assert measured["simulator"] == "broke off (RuntimeError: the physics diverged)"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"policy": "nobody"}, "unknown policy 'nobody'"),
        ({"task": "robosuite/Fly"}, "unknown task"),
        ({"data": (Path("docs"),)}, "no demonstrations in docs"),
        ({"out": Path(__file__) / "findings.json"}, "--out .* cannot be written"),
        ({"policy": "deep_llama", "device": "tpu9"}, "device 'tpu9'"),
    ],
)
def test_bad_input_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(SimEvalError, match=says) as caught:
        doctor.main(DoctorConfig(**changes))
    assert "\n" not in str(caught.value)


def test_json_and_csv_hold_every_finding(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [("machine", [Finding("cores", "ok", "2, or so")]), ("task", [Finding("cameras", "fault", "none", "add")])]
    monkeypatch.setattr("sim_eval.diagnosis.examination.examination", lambda subject: iter(groups))
    assert doctor.main(DoctorConfig(json=True)) == 1
    told = json.loads(capsys.readouterr().out)
    assert not told["healthy"]
    assert told["groups"]["task"] == [{"name": "cameras", "level": "fault", "measured": "none", "remedy": "add"}]
    assert doctor.main(DoctorConfig(csv=True)) == 1
    assert capsys.readouterr().out.splitlines() == [
        "group,name,level,measured,remedy",
        'machine,cores,ok,"2, or so",',
        "task,cameras,fault,none,add",
    ]


def test_bad_input_is_one_line_and_exit_code_2() -> None:
    command = [sys.executable, "-m", "sim_eval.doctor", "--task", "robosuite/Fly"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: ")
    assert len(answer.stderr.strip().splitlines()) == 1
    assert answer.stdout == ""
