import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sim_eval.core.errors import SimEvalError
from sim_eval.policies.policy import PolicySpec
from sim_eval.reporting.model_card import model_card
from sim_eval.training.metadata import METADATA, TrainingMetadata, ValidationRound, read_metadata, write_metadata

STACK, LIFT = "robosuite/Stack", "robosuite/Lift"
RECORDED = TrainingMetadata(
    expert="late_gemma",
    size="tiny",
    seed=3,
    batch_size=32,
    flow_samples=4,
    balance=0.5,
    command="python -m sim_eval.train --seed 3",
    overrides=("frame=world",),
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


Change = Callable[[dict[str, object]], object]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data.pop("digest"), "digest"),
        (lambda data: data.pop("rounds"), "rounds"),
        (lambda data: data.update(colour="red"), "colour"),
        (lambda data: data.update(steps="many"), "steps is 'many'"),
        (lambda data: data.update(minutes=None), "minutes is None"),
        (lambda data: data.update(finished=1), "finished is 1"),
        (lambda data: data.update(best=2), "best is 2 of 2 rounds"),
        (lambda data: data.update(windows=7), "int"),
        (lambda data: data.update(rounds=[{"step": 1}]), "minutes|success"),
        (lambda data: data.update(rounds=[{"step": 1, "minutes": 2, "success": {LIFT: [1]}}]), "unpack"),
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


@pytest.mark.parametrize("text", ["", "{", "[1]", "7", "\udcff"])
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
