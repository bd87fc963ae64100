import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sim_eval.configs import TrainConfig
from sim_eval.console import parse
from sim_eval.core.decoding import encode
from sim_eval.core.errors import SimEvalError
from sim_eval.policies.policy import PolicySpec
from sim_eval.policies.registry import CHECKPOINTS, load_policy
from sim_eval.policies.spatialvla.configuration_spatialvla import SpatialVLAConfig
from sim_eval.reporting.model_card import model_card
from sim_eval.training.metadata import METADATA, TrainingMetadata, ValidationRound, read_metadata, write_metadata
from sim_eval.training.preparation import fitted

STACK, LIFT = "robosuite/Stack", "robosuite/Lift"
RECORDED = TrainingMetadata(
    config=TrainConfig(
        data=(Path("data/all of it"),),
        expert="late_gemma",
        minutes=12.4,
        seed=3,
        network=replace(TrainConfig(expert="late_gemma").network, frame="world"),
    ),
    minutes=12.5,
    steps=4000,
    device="cpu",
    threads=2,
    demonstrations={LIFT: 50, STACK: 200},
    windows={LIFT: 2000, STACK: 20000},
    parameters=1_234_567,
    trainable=1_000_000,
    versions={"torch": "2.13.0"},
    rounds=(
        ValidationRound(1000, 3.1, {LIFT: (20, 20), STACK: (5, 20)}),
        ValidationRound(4000, 12.4, {LIFT: (19, 20), STACK: (18, 20)}),
    ),
    best=1,
    digest="ab" * 32,
    finished=True,
)


@pytest.mark.parametrize("record", [RECORDED, replace(RECORDED, rounds=(), best=None, digest="", finished=False)])
def test_what_is_written_is_read(tmp_path: Path, record: TrainingMetadata) -> None:
    write_metadata(tmp_path, record)
    assert read_metadata(tmp_path) == record
    assert [path.name for path in tmp_path.iterdir()] == [METADATA]


def test_a_rate_counts_tasks_alike() -> None:
    assert ValidationRound(1, 1.0, {LIFT: (1, 2), STACK: (20, 20)}).rate == 0.75


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data.pop("digest"), "digest"),
        (lambda data: data.pop("rounds"), "rounds"),
        (lambda data: data.update(colour="red"), "unknown field 'colour': the fields are config, minutes, steps"),
        (lambda data: data.update(config=3), "'config': input should be an object, not 3"),
        (lambda data: data["config"].update(seed=-1), "'config.seed': input should be greater than or equal to 0"),
        (lambda data: data["config"]["network"]["text"].update(layers=0), "'config.network.text.layers'"),
        (lambda data: data["config"]["network"].update(frame="elbow"), "'gripper' or 'world', not 'elbow'"),
        (lambda data: data.update(steps="many"), "'steps': input should be a valid integer, not 'many'"),
        (lambda data: data.update(minutes=None), "'minutes': input should be a valid number, not None"),
        (lambda data: data.update(finished=1), "'finished': input should be a valid boolean, not 1"),
        (lambda data: data.update(best=2), "best is 2 of 2 rounds"),
        (lambda data: data.update(windows=7), "'windows': .* not 7"),
        (lambda data: data.update(rounds=[{"step": 1}]), "missing field 'rounds.0.minutes'"),
        (
            lambda data: data.update(rounds=[{"step": 1, "minutes": 2, "success": {LIFT: [1]}}]),
            f"'rounds.0.success.{LIFT}.1'",
        ),
    ],
)
def test_damage_is_one_clear_line(tmp_path: Path, change: Change, says: str) -> None:
    write_metadata(tmp_path, RECORDED)
    data = json.loads((tmp_path / METADATA).read_text())
    change(data)
    (tmp_path / METADATA).write_text(json.dumps(data))
    with pytest.raises(
        SimEvalError, match=rf"training\.json is damaged \(.*({says}).*train the checkpoint again"
    ) as caught:
        read_metadata(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", "7", "\udcff", "[" * 100_000])
def test_what_is_no_record_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / METADATA).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(SimEvalError, match="damaged"):
        read_metadata(tmp_path)


def test_a_missing_record_is_named(tmp_path: Path) -> None:
    with pytest.raises(SimEvalError, match=r"training\.json is missing"):
        read_metadata(tmp_path)


def test_the_card_tells_the_record() -> None:
    card = model_card(RECORDED, PolicySpec("late_gemma", cameras={"wrist": (128, 128)}, proprio={"eef_pos": 3}), 4)
    for line in (
        "# late_gemma, seed 3",
        "1.23 M parameters",
        "| command | `python -m sim_eval.train --data 'data/all of it' --expert late_gemma --minutes 12.4 --seed 3 "
        "--network.frame world` |",
        "| network | `frame=world` |",
        "| trained | 12.5 minutes, 4000 steps of 32 observations with adamw, on cpu (2 threads) |",
        f"| {LIFT} | 50 | 2000 |",
        f"| {STACK} | 200 | 20000 |",
        f"| step | minutes | {LIFT} | {STACK} |  |",
        "| 4000 | 12.4 | 19/20 | 18/20 | best |",
    ):
        assert line in card.splitlines() or line in card, line
    assert "none was run" in model_card(replace(RECORDED, rounds=(), best=None), PolicySpec("late_gemma"), 4)


def test_a_card_of_many_tasks_counts_them_by_family() -> None:
    success = {LIFT: (3, 4), **{f"metaworld/task-{number}-v3": (number % 2, 1) for number in range(50)}}
    card = model_card(
        replace(RECORDED, rounds=(ValidationRound(4000, 12.4, success),), best=0), PolicySpec("late_gemma"), 4
    )
    assert "| step | minutes | robosuite, 1 tasks | metaworld, 50 tasks | mean of tasks |  |" in card.splitlines()
    assert "| 4000 | 12.4 | 3/4 | 25/50 | 50.5% | best |" in card.splitlines()


def test_a_python_call_is_recorded_as_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["notebook", "--seed", "9"])
    config = TrainConfig(data=(Path("a"), Path("b c")), steps=5, lora=("vlm",), checkpointing=True, seed=4)
    typed = shlex.split(config.command)
    assert typed[:3] == ["python", "-m", "sim_eval.train"]
    assert parse(TrainConfig, "train", typed[3:]) == config


OLD_COMMANDS = [
    ("python -m sim_eval.train --data a b --minutes 50", {"data": (Path("a"), Path("b")), "minutes": 50}),
    ("x --data a --normalization quantile", {"normalization": "quantile", "minutes": 10}),
    ("x --data a --normalization=quantile --steps 3", {"normalization": "quantile", "steps": 3, "minutes": None}),
    ("x --data a --learning_rate 1e-4 --shard", {"learning_rate": 1e-4, "shard": True}),
    ("x --data a --freeze vision vlm --cache c --workers 2", {"freeze": ("vision", "vlm")}),
    ("pytest -x", {"minutes": 12.5, "data": ()}),  # Python called; what it gave is not known
    ("x --data 'a", {"minutes": 12.5, "data": ()}),
]
OLD = {
    "expert": "late_gemma",
    "size": "tiny",
    "seed": 3,
    "batch_size": 16,
    "draws": 2,
    "balance": 0.2,
    "every": 2,
    "optimizer": "muon",
    "overrides": [
        "text.layers=3",
        " expert.horizon = 4 ",
        "voxel_size=null",
        "vision.prune=false",
    ],
}


def old_table() -> dict[str, Any]:
    return {**{name: value for name, value in encode(RECORDED).items() if name != "config"}, **OLD}


@pytest.mark.parametrize(("command", "says"), OLD_COMMANDS)
def test_an_old_command_is_read(command: str, says: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / METADATA).write_text(json.dumps({**old_table(), "command": command}))
    found = read_metadata(tmp_path)
    base = TrainConfig(expert="late_gemma").network
    network = replace(
        base,
        text=replace(base.text, layers=3),
        expert=replace(base.expert, chunk_size=4),
        vision=replace(base.vision, prune=False),
        voxel_size=None,
    )
    expected = {"expert": "late_gemma", "seed": 3, "batch_size": 16, "flow_samples": 2, "sampling_temperature": 1.25}
    expected |= {"frame_stride": 2, "optimizer": "muon", "network": network, **says}
    assert {name: getattr(found.config, name) for name in expected} == expected
    assert replace(found, config=RECORDED.config) == RECORDED


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data.pop("size"), "missing field 'size'"),
        (lambda data: data.update(seed="x"), "'seed': .*not 'x'"),
        (lambda data: data.update(balance=7), "balance must lie between 0 and 1, not 7"),
        (lambda data: data.update(overrides=["frmae=3"]), "an option is damaged .'frmae'"),
        (lambda data: data.update(overrides=["text=3"]), "'network.text'"),
        (lambda data: data.update(overrides=["text.layers.x=3"]), "an option is damaged"),
        (lambda data: data.update(overrides=["frame.x=3"]), "an option is damaged"),
        (lambda data: data.update(overrides=3), "an option is damaged"),
        (lambda data: data.update(balance=None), "NoneType"),
        (lambda data: data.update(minutes="a"), "'minutes'"),
        (lambda data: data.update(overrides=["text.layers=3"], expert="deep_llama"), "expert.layers 2 must equal"),
    ],
)
def test_damage_in_an_old_file_is_one_clear_line(tmp_path: Path, change: Change, says: str) -> None:
    data = {**old_table(), "command": "python -m sim_eval.train --data a"}
    change(data)
    (tmp_path / METADATA).write_text(json.dumps(data))
    with pytest.raises(SimEvalError, match=rf"training\.json is damaged \(.*{says}") as caught:
        read_metadata(tmp_path)
    assert "\n" not in str(caught.value)


SHIPPED = {
    "deep_llama": {"minutes": 50, "sampling_temperature": 1.25, "val_episodes": 10, "frame_stride": 1},
    "late_gemma": {"minutes": 50, "sampling_temperature": 1.25, "val_episodes": 10, "optimizer": "adamw"},
    "deep_llama_libero": {"minutes": 48, "demonstrations": 30, "optimizer": "muon", "frame_stride": 2},
    "deep_llama_mt50": {"minutes": 95, "val_episodes": 1, "data": (Path("data/mt50"),)},
    "late_gemma_mt50": {"minutes": 180, "val_episodes": 1, "out": Path("runs/train/late_gemma-mt50")},
}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_checkpoints_say_how_they_were_trained(name: str) -> None:
    metadata = read_metadata(CHECKPOINTS / name)
    config, file = metadata.config, json.loads((CHECKPOINTS / name / METADATA).read_text())
    assert {field: getattr(config, field) for field in SHIPPED[name]} == SHIPPED[name]
    assert (config.expert, config.seed, config.batch_size) == (file["expert"], file["seed"], file["batch_size"])
    spec = load_policy(name, "cpu").spec
    network = json.loads((CHECKPOINTS / name / "config.json").read_text())["network"]
    asked = config.network
    side = asked.vision.image_size or 128
    fit = fitted(asked, side, network["expert"]["state_dim"], network["expert"]["action_dim"])
    assert replace(fit, expert=replace(fit.expert, euler_steps=network["expert"]["euler_steps"])) == (
        SpatialVLAConfig.from_dict(network)
    )
    card, written = model_card(metadata, spec, 4), (CHECKPOINTS / name / "README.md").read_text()
    same = ("# ", "| seed", "| trained", "| versions", "| robosuite", "| metaworld", "| libero", "| step")
    facts = [line for line in written.splitlines() if line.startswith(same) or re.match(r"\| \d", line)]
    assert len(facts) > 8
    assert [line for line in facts if line not in card.splitlines()] == []
    changes = {line for line in written.splitlines() if line.startswith("| network")}
    assert set(re.findall("`.*?`", str(changes))) == set(re.findall("`.*?`", card.split("| network")[1].split("\n")[0]))
    assert config.checked() == config


def test_the_command_trains_with_the_same_numbers_to_the_last_digit() -> None:
    network = replace(TrainConfig().network, voxel_size=0.1 + 0.2)
    config = TrainConfig(data=(Path("a"),), minutes=100 / 3, learning_rate=0.000314159265, network=network)
    assert parse(TrainConfig, "train", shlex.split(config.command)[3:]) == config
