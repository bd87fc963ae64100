"""Joining, pooling and counting against numbers made by hand; folders that do not count are listed."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from trainings_and_runs import CONFIG, LIFT, STACK, make_run, make_training

from sim_eval.configs import TrainConfig
from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import RenderConfig
from sim_eval.envs.tasks import suites
from sim_eval.evaluation.engine import RolloutProtocol
from sim_eval.policies.spatialvla.configuration_spatialvla import SIZES, PositionConfig, TextConfig
from sim_eval.reporting.intervals import success_interval
from sim_eval.reporting.panels import Point, demonstrations_panels, minutes_panels
from sim_eval.reporting.summary import RATE, Tally
from sim_eval.reporting.trainings import FinishedTraining, Results, read_results
from sim_eval.results import ResultsArguments, main

WIDE, CAN = "robosuite/LiftWide", "robosuite/PickPlaceCan"
GREEN, RED = "stack the green cube on the red cube", "stack the red cube on the green cube"


NETWORK = CONFIG.network
WORLD = replace(CONFIG, network=replace(NETWORK, frame="world"))
LATE = TrainConfig(expert="late_gemma", minutes=20)


def seed(number: int) -> TrainConfig:
    return replace(CONFIG, seed=number)


def read(root: Path) -> Results:
    return read_results([root / "train"], [root / "runs"])


def trainings(root: Path) -> tuple[FinishedTraining, ...]:
    return read_results([root / "train"], []).trainings


def table(page: str, title: str, number: int = 0) -> list[dict[str, str]]:
    """Rows of a table after a heading: of the first, or of one further down."""
    blocks = re.findall(r"(?:^\|.*\n)+", page.split(f"{title}\n", 1)[1], flags=re.MULTILINE)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in blocks[number].splitlines()]
    return [with_parts(dict(zip(rows[0], row, strict=True))) for row in rows[2:]]


def with_parts(row: dict[str, str]) -> dict[str, str]:
    """The row, and the rate and its interval apart where it has them."""
    rate, _, interval = row.get(RATE, "").partition(" [")
    return {**row, "rate": rate, "interval": f"[{interval}"} if rate else row


def scores(page: str, title: str, number: int = 0) -> dict[tuple[str, str], dict[str, str]]:
    """(task or goal, training) -> the row of a table of scores."""
    return {(row["task"], row["training"]): row for row in table(page, title, number)}


def write(root: Path) -> str:
    assert main(ResultsArguments((root / "train",), root / "out", (root / "runs",))) == 0
    return (root / "out" / "results.md").read_text()


def test_a_run_is_joined_to_the_training_of_its_weights_and_counted_by_goal(tmp_path: Path):
    make_training(tmp_path / "train", "a")
    make_training(tmp_path / "train", "b")
    # Even indices ask for the first goal, red on green: 2 of 2; odd ones for the second: 1 of 2.
    make_run(tmp_path / "runs" / "one", "a", {0, 1, 2}, tasks=(STACK, LIFT))
    (scored,) = read(tmp_path).scored
    assert scored.training.folder.name == "a"
    assert scored.tallies == {STACK: Tally(3, 4), LIFT: Tally(3, 4)}
    rows = scores(write(tmp_path), "## Test split")
    assert {name: row["success"] for name, row in rows.items()} == {
        (LIFT, "a"): "3/4",
        (STACK, "a"): "3/4",
        (GREEN, "a"): "1/2",
        (RED, "a"): "2/2",
    }
    assert (rows[STACK, "a"]["rate"], rows[STACK, "a"]["interval"]) == ("75.0 %", "[19.4, 99.4]")
    assert rows[RED, "a"]["interval"] == "[15.8, 100.0]"
    (left_out,) = read(tmp_path).left_out
    b = tmp_path / "train" / "b"
    assert left_out == (b, f"no complete test run of its weights: python -m sim_eval.rollout --policy {b}")


def test_seeds_are_pooled_and_shown_one_by_one(tmp_path: Path):
    for number, successes in enumerate(({0, 1, 2, 3}, {0, 1, 2}, {0})):
        make_training(tmp_path / "train", f"s{number}", seed(number))
        make_run(tmp_path / "runs" / f"r{number}", f"s{number}", successes)
    make_training(tmp_path / "train", "late", LATE)
    make_run(tmp_path / "runs" / "late", "late", {0})
    page = write(tmp_path)
    rows = {training: row for (task, training), row in scores(page, "## Test split").items() if task == STACK}
    assert [(name, row["rate"]) for name, row in rows.items()] == [
        ("s0", "100.0 %"),
        ("s1", "75.0 %"),
        ("s2", "25.0 %"),
        ("3 seeds: s0, s1, s2", "66.7 %"),
        ("late", "25.0 %"),
    ]
    low, high = success_interval(8, 12)
    pooled = rows["3 seeds: s0, s1, s2"]
    assert (pooled["success"], pooled["interval"]) == ("8/12", f"[{100 * low:.1f}, {100 * high:.1f}]")
    about = {row["training"]: row for row in table(page, "## Trainings")}
    assert [(row["expert"], row["seed"], row["budget"]) for row in (about["s1"], about["late"])] == [
        ("deep_llama", "1", "20 minutes on cpu with 2 threads"),
        ("late_gemma", "0", "20 minutes on cpu with 2 threads"),
    ]


def test_unequal_numbers_of_episodes_are_shown_in_every_row(tmp_path: Path):
    make_training(tmp_path / "train", "a")
    make_training(tmp_path / "train", "b", seed(1))
    make_run(tmp_path / "runs" / "a", "a", {0})
    make_run(tmp_path / "runs" / "b", "b", {0}, episodes=2)
    rows = scores(write(tmp_path), "## Test split")
    counts = {name: row["success"] for (task, name), row in rows.items() if task == STACK}
    assert counts == {"a": "1/4", "b": "1/2", "2 seeds: a, b": "2/6"}


@pytest.mark.parametrize(
    "other",
    [
        {"optimizer": "muon"},
        {"frame_stride": 2},
        {"cameras": ("agentview",)},
        {"freeze": ("vision",)},
        {"lora": ("vlm",)},
        {"lora": ("vlm",), "lora_rank": 8},
        {"precision": "bfloat16"},
        {"llava3d": "ChaimZhu/LLaVA-3D-7B", "network": SIZES["llava3d-7b"]["deep_llama"]},
        {"learning_rate": 3e-4},
        {"normalization": "quantile"},
        {"batch_size": 64},
        {"flow_samples": 2},
        {"sampling_temperature": 1.0},
        {"expert": "late_gemma"},
        {"minutes": 30},
        {"minutes": None, "steps": 200},
        {"network": replace(NETWORK, frame="world")},
        {"network": replace(NETWORK, text=TextConfig(mlp=512))},
        {"network": replace(NETWORK, position=PositionConfig(points=4))},
    ],
    ids=lambda other: "-".join(other),
)
def test_trainings_that_differ_in_more_than_the_seed_are_not_pooled(tmp_path: Path, other: dict[str, Any]):
    """Each would be another point in a table; pooled, its interval would be of no training that can be repeated."""
    make_training(tmp_path / "train", "a")
    make_training(tmp_path / "train", "b", replace(CONFIG, seed=1, **other))
    for name in ("a", "b"):
        make_run(tmp_path / "runs" / name, name, {0})
    first, second = trainings(tmp_path)
    assert first.setting != second.setting
    assert {row["training"] for row in table(write(tmp_path), "## Test split")} == {"a", "b"}


@pytest.mark.parametrize(
    "other",
    [
        {"demonstrations": {STACK: 50}},
        {"demonstrations": {STACK: 100, LIFT: 100}},
        {"device": "cuda"},
        {"threads": 1},
        {"processes": 2},
        {"earlier_budgets": (10.0,)},
    ],
    ids=lambda other: "-".join(other),
)
def test_trainings_on_other_data_or_machines_or_after_a_shorter_budget_are_not_pooled(
    tmp_path: Path, other: dict[str, Any]
):
    make_training(tmp_path / "train", "a")
    make_training(tmp_path / "train", "b", seed(1), **other)
    first, second = trainings(tmp_path)
    assert first.setting != second.setting


@pytest.mark.parametrize(
    "other",
    [
        {"out": Path("elsewhere")},
        {"data": (Path("moved"),)},
        {"loader_workers": 4},
        {"cache_features": Path("cache")},
        {"device": "cpu"},
        {"threads": 2},
    ],
    ids=lambda other: "-".join(other),
)
def test_seed_paths_and_speed_are_no_part_of_a_setting(tmp_path: Path, other: dict[str, Any]):
    make_training(tmp_path / "train", "a")
    make_training(tmp_path / "train", "b", replace(CONFIG, seed=1, **other))
    first, second = trainings(tmp_path)
    assert first.setting == second.setting


def test_how_long_a_budget_took_is_no_part_of_a_setting(tmp_path: Path):
    """Two trainings of 50 minutes, whose last validations ended at 50.1 and 50.6 on the clock."""
    asked = TrainConfig(minutes=50)
    for number, late in enumerate((0.1, 0.6)):
        config = replace(asked, seed=number)
        make_training(tmp_path / "train", f"s{number}", config, successes=(1, 2, 3, 4, 5 - number), late=late)
    first, second = trainings(tmp_path)
    assert [round(each.metadata.minutes, 1) for each in (first, second)] == [50.1, 50.6]
    assert first.setting == second.setting
    assert first.setting.budget == "50 minutes"


def test_a_setting_says_what_was_changed(tmp_path: Path):
    changed = TrainConfig(
        steps=300, optimizer="muon", cameras=("agentview", "wrist"), network=replace(NETWORK, text=TextConfig(mlp=64))
    )
    make_training(tmp_path / "train", "a", changed, earlier_budgets=(100.0, 200.0))
    (training,) = trainings(tmp_path)
    assert training.setting.budget == "300 steps (lengthened from 100, 200)"
    assert training.setting.changes == ("cameras agentview wrist", "optimizer muon", "network.text.mlp 64")


def test_an_episode_counts_once_however_many_runs_hold_it(tmp_path: Path):
    make_training(tmp_path / "train", "a")
    make_run(tmp_path / "runs" / "long", "a", {0, 1, 2})
    make_run(tmp_path / "runs" / "short", "a", {0, 1}, episodes=2)
    shutil.copytree(tmp_path / "runs" / "long", tmp_path / "runs" / "copy")
    make_run(tmp_path / "runs" / "lift", "a", {0}, tasks=(LIFT,))
    results = read(tmp_path)
    (scored,) = results.scored
    assert scored.tallies == {STACK: Tally(3, 4), LIFT: Tally(1, 4)}
    assert {each.folder.name for each in results.left_out} == {"long", "short"}  # the copy came first


def test_each_protocol_has_its_table_and_counterfactual_instructions_are_explained(tmp_path: Path):
    make_training(tmp_path / "train", "a")
    make_run(tmp_path / "runs" / "wrong", "a", {0}, protocol=RolloutProtocol(instruction_condition="counterfactual"))
    make_run(tmp_path / "runs" / "plain", "a", {0, 1, 2, 3})
    other = RolloutProtocol(n_action_steps=8, render=RenderConfig("faithful"))
    make_run(tmp_path / "runs" / "other", "a", {0, 1}, protocol=other)
    make_run(tmp_path / "runs" / "euler", "a", {0, 1, 2}, variant="1 Euler steps")
    page = write(tmp_path)
    titles = [line for line in page.split("\n") if line.startswith("## Test split")]
    assert titles == [
        "## Test split",
        "## Test split, 1 Euler steps",
        "## Test split, n_action_steps 8, rendering faithful 128x128",
        "## Test split, instruction_condition counterfactual",
    ]
    rates = [scores(page, title)[STACK, "a"]["rate"] for title in titles]
    assert rates == ["100.0 %", "75.0 %", "50.0 %", "25.0 %"]
    before, after = page.split(titles[-1])
    assert "means that the policy ignores language" in after
    assert "ignores language" not in before


def test_a_success_that_did_not_last_stands_in_its_own_column(tmp_path: Path):
    make_training(tmp_path / "train", "a")
    make_run(tmp_path / "runs" / "a", "a", {0, 1, 2}, lasting={2})
    rows = scores(write(tmp_path), "## Test split")
    whole = rows[STACK, "a"]
    assert (whole["success"], whole["rate"]) == ("3/4", "75.0 %")
    assert (whole["at the end"][:6], rows[RED, "a"]["at the end"][:6]) == ("25.0 %", "50.0 %")
    assert whole["steps"] == "20"
    assert "errors" not in whole  # there were none


def test_phases_are_counted_for_each_training(tmp_path: Path):
    make_training(tmp_path / "train", "a")
    make_run(tmp_path / "runs" / "a", "a", {0, 1, 2})
    assert scores(write(tmp_path), "### Furthest phases")[STACK, "a"] == {
        "task": STACK,
        "training": "a",
        **{"none": "4", "reach": "0", "grasp": "0", "lift": "0", "place": "0"},
    }


def test_a_suite_has_its_means_before_its_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, made_of in {
        "made/All": ("made/rest", "made/lifts"),
        "made/rest": (STACK,),
        "made/lifts": (WIDE, LIFT),
    }.items():
        monkeypatch.setitem(suites(), name, made_of)
    for number, successes in enumerate(({0}, {0, 1})):
        make_training(tmp_path / "train", f"s{number}", seed(number))
        lasting = {0} if number else None
        tasks = (CAN, LIFT, STACK, WIDE)
        make_run(tmp_path / "runs" / f"r{number}", f"s{number}", successes, tasks, episodes=2, lasting=lasting)
    make_training(tmp_path / "train", "few", LATE)
    make_run(tmp_path / "runs" / "few", "few", {0}, (LIFT, WIDE))
    page = write(tmp_path)
    means = {(row["suite"], row[""], row["training"]): row for row in table(page, "## Test split")}
    both = "2 seeds: s0, s1"
    assert list(means) == [
        *(("made/All", of, name) for name in ("s0", "s1", both) for of in ("mean of 3 tasks", "mean of 2 groups")),
        *(("made/rest", "mean of 1 tasks", name) for name in ("s0", "s1", both)),
        *(("made/lifts", "mean of 2 tasks", name) for name in ("s0", "s1", both, "few")),  # few lacks Stack
    ]
    own = means["made/All", "mean of 3 tasks", "s0"]
    assert (own["episodes"], own["rate"], own["interval"]) == ("6", "50.0 %", "[11.8, 88.2]")
    pooled = means["made/All", "mean of 3 tasks", both]
    assert (pooled["episodes"], pooled["rate"]) == ("12", "75.0 %")
    assert means["made/All", "mean of 2 groups", "s1"]["at the end"].startswith("50.0 %")
    few = means["made/lifts", "mean of 2 tasks", "few"]
    assert (few["episodes"], few["rate"], few["interval"]) == ("8", "25.0 %", "[3.2, 65.1]")
    rows = scores(page, "## Test split", 1)
    assert {name: row["rate"] for (task, name), row in rows.items() if task == STACK} == {
        "s0": "50.0 %",
        "s1": "100.0 %",
        both: "75.0 %",
    }
    assert rows[CAN, both]["success"] == "3/4"
    assert rows[WIDE, "few"]["interval"] == "[0.6, 80.6]"
    assert "mean of groups weighs each of the suites alike" in page


def test_tasks_that_are_not_installed_here_are_counted_all_the_same(tmp_path: Path):
    """As of LIBERO where LIBERO is missing: everything in the tables was recorded with the episodes."""
    make_training(tmp_path / "train", "a")
    make_run(tmp_path / "runs" / "r", "a", {0, 1}, tasks=("absent/One", "absent/Two"))
    rows = scores(write(tmp_path), "## Test split")
    assert {name: row["success"] for name, row in rows.items()} == {
        ("absent/One", "a"): "2/4",
        ("absent/Two", "a"): "2/4",
    }


def test_everything_left_out_is_listed_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make_training(tmp_path / "train", "good")
    make_training(tmp_path / "train", "going", finished=False)
    shutil.copytree(tmp_path / "train" / "good", tmp_path / "train" / "good_again")
    (tmp_path / "train" / "torn").mkdir()
    (tmp_path / "train" / "torn" / "training.json").write_text('{"expert"')
    runs = tmp_path / "runs"
    make_run(runs / "good", "good", {0})
    make_run(runs / "partial", "good", {0}, finished=3)
    make_run(runs / "val", "good", {0}, split="val")
    make_run(runs / "zero", "", set())
    make_run(runs / "stranger", "stranger", {0})
    make_run(runs / "going_run", "going", {0})
    (make_run(runs / "broken", "good", {0}) / "episodes.jsonl").write_text("{}\n")
    reasons = {each.folder.name: each.reason for each in read(tmp_path).left_out}
    expected = {
        "going": "unfinished, 20.9 minutes",
        "good_again": "the same weights as",
        "torn": "damaged",
        "partial": "3 of 4 episodes",
        "val": "val split",
        "zero": "has no weights",
        "stranger": "no finished training here has its weights, policy@73747261",
        "going_run": "no finished training here",
        "broken": "line 1 is damaged",
    }
    assert set(reasons) == set(expected)
    for name, says in expected.items():
        assert says in reasons[name]
    page, shown = write(tmp_path), capsys.readouterr()
    for name in expected:
        assert f"{name}: " in page.split("## Left out")[1]
        assert f"{name}: " in shown.err
    assert [row["success"] for row in table(page, "## Test split")] == ["1/4", "0/2", "1/2"]


def test_curves_pool_seeds_round_by_round(tmp_path: Path):
    make_training(tmp_path / "train", "a", seed(0), successes=(1, 3))
    make_training(tmp_path / "train", "b", seed(1), successes=(2, 4))
    make_training(tmp_path / "train", "late", LATE, successes=(0, 1))
    make_training(tmp_path / "train", "changed", WORLD, successes=(0, 0))
    (panel,) = minutes_panels(trainings(tmp_path))
    assert [series.expert for series in panel.series] == ["deep_llama", "late_gemma"]
    assert panel.series[0].pooled == (
        Point(pytest.approx(10.05), Tally(3, 8), 2),
        Point(pytest.approx(20.05), Tally(7, 8), 2),
    )
    assert [[point.tally.successes for point in seed] for seed in panel.series[0].seeds] == [[1, 3], [2, 4]]
    assert panel.sample == "n = 4 to 8 (1 to 2 seeds of 4)"
    assert [folder.name for folder in panel.shown] == ["a", "b", "late"]
    make_run(tmp_path / "runs" / "r", "a", {0})
    assert "Without changed: " in write(tmp_path)


def test_seeds_with_unequally_many_rounds_are_not_pooled(tmp_path: Path):
    for number, successes in enumerate(((1, 3), (2,))):  # one validation stood for two
        make_training(tmp_path / "train", f"s{number}", seed(number), successes=successes)
    (panel,) = minutes_panels(trainings(tmp_path))
    assert panel.series[0].pooled == ()
    assert panel.sample == "n = 4 a seed, not pooled"


def test_more_demonstrations_are_compared_where_nothing_else_differs(tmp_path: Path):
    few, many = {STACK: 50, LIFT: 20}, {STACK: 200, LIFT: 20}
    won = {"few0": (few, 0, {0}), "few1": (few, 1, {0, 1}), "many": (many, 0, {0, 1, 2})}
    for name, (data, number, successes) in won.items():
        make_training(tmp_path / "train", name, seed(number), demonstrations=data)
        make_run(tmp_path / "runs" / name, name, successes, tasks=(STACK, LIFT))
    make_training(tmp_path / "train", "alone", demonstrations={STACK: 400})
    make_training(tmp_path / "train", "changed", WORLD, demonstrations={STACK: 800, LIFT: 20})
    for name in ("alone", "changed"):
        make_run(tmp_path / "runs" / name, name, {0})
    (panel,) = demonstrations_panels(read(tmp_path).scored)
    assert panel.task == STACK  # Lift had one number of demonstrations
    (series,) = panel.series
    assert series.pooled == (Point(50, Tally(3, 8), 2), Point(200, Tally(3, 4), 1))
    assert [folder.name for folder in panel.shown] == ["few0", "few1", "many"]


def test_figures_are_drawn_only_from_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make_training(tmp_path / "train", "a")
    out = tmp_path / "out"
    assert main(ResultsArguments((tmp_path / "train",), out)) == 0
    assert sorted(file.name for file in out.iterdir()) == ["minutes.svg", "results.md"]
    page = (out / "results.md").read_text()
    assert "(minutes.svg)" in page
    assert "Not drawn: no task has tested trainings that differ only in its number of demonstrations" in page
    make_training(tmp_path / "train", "more", demonstrations={STACK: 200})
    for name in ("a", "more"):
        make_run(tmp_path / "runs" / name, name, {0, 1})
    assert "(demonstrations.svg)" in write(tmp_path)
    assert "2 trainings, of which 2 tested: results.md, minutes.svg, demonstrations.svg in" in capsys.readouterr().out


def test_neither_table_nor_figure_is_a_failure(tmp_path: Path):
    make_training(tmp_path / "train", "a", successes=())
    assert main(ResultsArguments((tmp_path / "train",), tmp_path / "out")) == 1


def test_without_a_finished_training_nothing_is_written(tmp_path: Path):
    make_training(tmp_path / "train", "going", finished=False)
    with pytest.raises(SimEvalError, match=r"no finished training of sim_eval\.train; .*going: unfinished"):
        main(ResultsArguments((tmp_path / "train",), tmp_path / "out"))
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("missing", ["nowhere", "empty"])
def test_a_path_without_trainings_or_runs_is_refused(tmp_path: Path, missing: str):
    make_training(tmp_path / "train", "a")
    (tmp_path / "empty").mkdir()
    for paths, name in (
        (((tmp_path / missing,), tmp_path / "out"), "training.json"),
        (((tmp_path / "train",), tmp_path / "out", (tmp_path / missing,)), "manifest.json"),
    ):
        with pytest.raises(SimEvalError, match=f"{missing} holds no {name}: name "):
            main(ResultsArguments(*paths))


def test_json_has_every_tested_training_and_what_was_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make_training(tmp_path / "train", "a")
    make_training(tmp_path / "train", "b", seed(1))
    make_run(tmp_path / "runs" / "one", "a", {0, 1, 2}, tasks=(STACK, LIFT))
    arguments = ResultsArguments((tmp_path / "train",), tmp_path / "out", (tmp_path / "runs",))
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith("2 trainings, of which 1 tested: results.md, minutes.svg")
    assert main(replace(arguments, json=True)) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(each["training"], each["task"], each["goal"], each["successes"]) for each in told["scores"]] == [
        (str(tmp_path / "train" / "a"), task, goal, count)
        for task, goal, count in ((LIFT, "", 3), (STACK, "", 3), (STACK, RED, 2), (STACK, GREEN, 1))
    ]
    assert told["left_out"][0]["folder"] == str(tmp_path / "train" / "b")
    assert main(replace(arguments, runs=())) == 0
    assert "2 trainings, of which none tested" in capsys.readouterr().out
