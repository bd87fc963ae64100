"""What is counted, pooled and joined, against numbers made by hand; what is not counted is named."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from trainings_and_runs import LIFT, STACK, make_run, make_training

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import RenderConfig
from sim_eval.envs.tasks import suites
from sim_eval.evaluation.engine import RolloutProtocol
from sim_eval.reporting.comparison import (
    Point,
    command_options,
    compare,
    demonstrations_panels,
    minutes_panels,
)
from sim_eval.reporting.intervals import success_interval
from sim_eval.reporting.summary import Tally
from sim_eval.results import ResultsArguments, main

WIDE, CAN = "robosuite/LiftWide", "robosuite/PickPlaceCan"
GREEN, RED = "stack the green cube on the red cube", "stack the red cube on the green cube"


def left_out(root: Path) -> dict[str, str]:
    return {folder.name: reason for folder, reason in compare([root / "train"], [root / "runs"]).left_out}


def table(page: str, title: str) -> list[dict[str, str]]:
    """Rows of the first table after a heading."""
    lines = page.split(f"{title}\n", 1)[1].split("\n")
    start = next(number for number, line in enumerate(lines) if line.startswith("| "))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]


def write(root: Path) -> str:
    assert main(ResultsArguments((root / "train",), root / "out", (root / "runs",))) == 0
    return (root / "out" / "results.md").read_text()


def test_a_run_is_joined_to_the_training_of_its_weights_and_counted_by_goal(tmp_path: Path):
    make_training(tmp_path / "train", "a")
    make_training(tmp_path / "train", "b")
    # Even indices ask for the first goal, red on green: 2 of 2; odd ones for the second: 1 of 2.
    make_run(tmp_path / "runs" / "one", "a", {0, 1, 2}, tasks=(STACK, LIFT))
    (tested,) = compare([tmp_path / "train"], [tmp_path / "runs"]).tested
    assert tested.training.folder.name == "a"
    assert tested.scores() == {
        (STACK, ""): Tally(3, 4),
        (STACK, RED): Tally(2, 2),
        (STACK, GREEN): Tally(1, 2),
        (LIFT, ""): Tally(3, 4),
    }
    (row,) = table(write(tmp_path), "## Test split")
    assert row["training"] == "a"
    assert row[f"{STACK} (n = 4)"] == "75.0 % [19.4, 99.4]"
    assert row[f"{STACK}: {RED} (n = 2)"] == "100.0 % [15.8, 100.0]"
    assert left_out(tmp_path) == {
        "b": f"no complete test run of its weights: python -m sim_eval.rollout --policy {tmp_path / 'train' / 'b'}"
    }


def test_seeds_are_pooled_and_shown_one_by_one(tmp_path: Path):
    for seed, successes in enumerate(({0, 1, 2, 3}, {0, 1, 2}, {0})):
        make_training(tmp_path / "train", f"s{seed}", seed=seed)
        make_run(tmp_path / "runs" / f"r{seed}", f"s{seed}", successes)
    make_training(tmp_path / "train", "late", "late_gemma")
    make_run(tmp_path / "runs" / "late", "late", {0})
    page = write(tmp_path)
    low, high = success_interval(8, 12)
    (row,) = table(page, "### Seeds together")
    assert (row["expert"], row["seeds"], row["budget"]) == ("deep_llama", "0, 1, 2", "20 minutes")
    assert row[f"{STACK} (n = 12)"] == f"66.7 % [{100 * low:.1f}, {100 * high:.1f}] (100.0, 75.0, 25.0)"
    assert [row["training"] for row in table(page, "## Test split")] == ["s0", "s1", "s2", "late"]


def test_unequal_numbers_of_episodes_are_shown_in_every_cell(tmp_path: Path):
    make_training(tmp_path / "train", "a")
    make_training(tmp_path / "train", "b", seed=1)
    make_run(tmp_path / "runs" / "a", "a", {0})
    make_run(tmp_path / "runs" / "b", "b", {0}, episodes=2)
    rows = table(write(tmp_path), "## Test split")
    cells = [row[f"{STACK} (n = 2 to 4)"] for row in rows]
    assert [(cell.split(" %")[0], cell.split("], ")[1]) for cell in cells] == [("25.0", "n = 4"), ("50.0", "n = 2")]


@pytest.mark.parametrize(
    "other",
    [
        {"overrides": ("frame=world",)},
        {"options": "--learning-rate 3e-4"},
        {"options": "--normalization=quantile"},
        {"demonstrations": {STACK: 50}},
        {"successes": (1, 3, 4)},
        {"expert": "late_gemma"},
    ],
)
def test_what_differs_in_more_than_the_seed_is_not_pooled(tmp_path: Path, other: dict[str, object]):
    make_training(tmp_path / "train", "a")
    make_training(tmp_path / "train", "b", seed=1, **other)  # type: ignore[arg-type]
    first, second = compare([tmp_path / "train"], []).trainings
    assert first.setting != second.setting


def test_the_seed_and_how_long_the_last_validation_took_make_no_setting(tmp_path: Path):
    for seed in (0, 1):
        make_training(tmp_path / "train", f"s{seed}", seed=seed)
    first, second = compare([tmp_path / "train"], []).trainings
    assert first.setting == second.setting
    assert command_options("python -m sim_eval.train --steps 30 --learning_rate 1e-4 --data a b --seed 3") == {
        "steps": "30",
        "learning-rate": "1e-4",
    }
    assert set(command_options("train --steps")) == set(command_options("it's")) == {"command"}


def test_an_episode_counts_once_however_many_runs_hold_it(tmp_path: Path):
    make_training(tmp_path / "train", "a")
    make_run(tmp_path / "runs" / "long", "a", {0, 1, 2})
    make_run(tmp_path / "runs" / "short", "a", {0, 1}, episodes=2)
    shutil.copytree(tmp_path / "runs" / "long", tmp_path / "runs" / "copy")
    make_run(tmp_path / "runs" / "lift", "a", {0}, tasks=(LIFT,))
    (tested,) = compare([tmp_path / "train"], [tmp_path / "runs"]).tested
    assert tested.scores()[STACK, ""] == Tally(3, 4)
    assert tested.scores()[LIFT, ""] == Tally(1, 4)
    assert set(left_out(tmp_path)) == {"long", "short"}  # the copy came first


def test_each_protocol_has_its_table_and_a_wrong_telling_says_so(tmp_path: Path):
    make_training(tmp_path / "train", "a")
    make_run(tmp_path / "runs" / "wrong", "a", {0}, protocol=RolloutProtocol(instruction_condition="counterfactual"))
    make_run(tmp_path / "runs" / "plain", "a", {0, 1, 2, 3})
    looks = RolloutProtocol(n_action_steps=8, render=RenderConfig("faithful"))
    make_run(tmp_path / "runs" / "other", "a", {0, 1}, protocol=looks)
    make_run(tmp_path / "runs" / "euler", "a", {0, 1, 2}, variant="1 Euler steps")
    page = write(tmp_path)
    titles = [line for line in page.split("\n") if line.startswith("## Test split")]
    assert titles == [
        "## Test split",
        "## Test split, 1 Euler steps",
        "## Test split, replanning every 8 control steps, faithful rendering",
        "## Test split, told the counterfactual instruction",
    ]
    rates = [table(page, title)[0][f"{STACK} (n = 4)"].split(" ")[0] for title in titles]
    assert rates == ["100.0", "75.0", "50.0", "25.0"]


def test_a_success_that_did_not_last_stands_in_its_own_table(tmp_path: Path):
    make_training(tmp_path / "train", "a")
    make_run(tmp_path / "runs" / "a", "a", {0, 1, 2}, lasting={2})
    page = write(tmp_path)
    (at_any,), (at_end,) = table(page, "## Test split"), table(page, "### Success at the last step")
    assert at_any[f"{STACK} (n = 4)"].startswith("75.0 %")
    assert at_end[f"{STACK} (n = 4)"].startswith("25.0 %")
    assert at_end[f"{STACK}: {RED} (n = 2)"].startswith("50.0 %")
    whole = table(page, "### Errors, steps and phases")[0]
    assert (whole["success / planned"], whole["success / completed"], whole["errors"]) == ("3 / 4", "3 / 4", "0")
    assert (whole["steps to success"], whole["at the end"]) == ("20", at_end[f"{STACK} (n = 4)"])


def test_a_suite_is_told_by_its_means_and_then_a_row_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, made_of in {
        "made/All": ("made/rest", "made/lifts"),
        "made/rest": (STACK,),
        "made/lifts": (WIDE, LIFT),
    }.items():
        monkeypatch.setitem(suites(), name, made_of)
    for seed, successes in enumerate(({0}, {0, 1})):
        make_training(tmp_path / "train", f"s{seed}", seed=seed)
        lasting = {0} if seed else None
        tasks = (CAN, LIFT, STACK, WIDE)
        make_run(tmp_path / "runs" / f"r{seed}", f"s{seed}", successes, tasks, episodes=2, lasting=lasting)
    make_training(tmp_path / "train", "few", "late_gemma")
    make_run(tmp_path / "runs" / "few", "few", {0}, (LIFT, WIDE))
    page = write(tmp_path)
    rows = {row["training"]: row for row in table(page, "## Test split")}
    assert list(rows["s0"])[7:] == [
        "made/All, mean of 3 tasks (n = 6)",
        "made/All, mean of 2 groups (n = 6)",
        "made/rest, mean of 1 tasks (n = 2)",
        "made/lifts, mean of 2 tasks (n = 4 to 8)",
        f"{CAN} (n = 2)",
    ]
    assert rows["s0"]["made/All, mean of 3 tasks (n = 6)"] == "50.0 % [11.8, 88.2]"
    assert rows["few"]["made/All, mean of 3 tasks (n = 6)"] == "-"
    assert rows["few"]["made/lifts, mean of 2 tasks (n = 4 to 8)"] == "25.0 % [3.2, 65.1], n = 8"
    together = table(page, "### Seeds together")[0]
    assert together["made/All, mean of 3 tasks (n = 12)"].startswith("75.0 %")
    assert together["made/All, mean of 3 tasks (n = 12)"].endswith(" (50.0, 100.0)")
    ends = {row["training"]: row for row in table(page, "### Success at the last step")}
    assert ends["s1"]["made/All, mean of 2 groups (n = 6)"].startswith("50.0 %")
    after = page.split("\n\n| task |")[1]  # the second table
    below = {row["task"]: row for row in table(f"\n| task |{after}", "")}
    assert list(below) == [
        f"{STACK} (n = 2)",
        f"{STACK}: {GREEN} (n = 1)",
        f"{STACK}: {RED} (n = 1)",
        f"{WIDE} (n = 2 to 4)",
        f"{LIFT} (n = 2 to 4)",
    ]
    assert below[f"{WIDE} (n = 2 to 4)"]["few"] == "25.0 % [0.6, 80.6], n = 4"
    assert below[f"{STACK} (n = 2)"] == {
        "task": f"{STACK} (n = 2)",
        "s0": "50.0 % [1.3, 98.7]",
        "s1": "100.0 % [15.8, 100.0]",
        "few": "-",
    }
    assert "mean of groups each of the suites alike" in page


def test_what_is_not_counted_is_named_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
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
    make_run(runs / "nowhere", "good", {0}, tasks=("robosuite/Nowhere",))
    (make_run(runs / "broken", "good", {0}) / "episodes.jsonl").write_text("{}\n")
    reasons = left_out(tmp_path)
    expected = {
        "going": "unfinished, 20.9 minutes",
        "good_again": "the same weights as",
        "torn": "damaged",
        "partial": "3 of 4 episodes",
        "val": "val split",
        "zero": "has no weights",
        "stranger": "no finished training here has its weights, policy@73747261",
        "going_run": "no finished training here",
        "nowhere": "unknown task 'robosuite/Nowhere'",
        "broken": "line 1 is damaged",
    }
    assert set(reasons) == set(expected)
    for name, says in expected.items():
        assert says in reasons[name]
    page, shown = write(tmp_path), capsys.readouterr()
    for name in expected:
        assert f"{name}: " in page.split("## Left out")[1]
        assert f"{name}: " in shown.err
    assert len(table(page, "## Test split")) == 1


def test_curves_pool_seeds_round_by_round(tmp_path: Path):
    make_training(tmp_path / "train", "a", seed=0, successes=(1, 3))
    make_training(tmp_path / "train", "b", seed=1, successes=(2, 4))
    make_training(tmp_path / "train", "late", "late_gemma", seed=0, successes=(0, 1))
    make_training(tmp_path / "train", "changed", seed=0, successes=(0, 0), overrides=("frame=world",))
    (panel,) = minutes_panels(compare([tmp_path / "train"], []).trainings)
    assert [series.expert for series in panel.series] == ["deep_llama", "late_gemma"]
    assert panel.series[0].pooled == (
        Point(pytest.approx(10.05), Tally(3, 8), 2),
        Point(pytest.approx(20.05), Tally(7, 8), 2),
    )
    assert [[point.tally.successes for point in seed] for seed in panel.series[0].seeds] == [[1, 3], [2, 4]]
    assert panel.sample == "n = 4 to 8 (1 to 2 seeds of 4)"
    assert [folder.name for folder in panel.shown] == ["a", "b", "late"]
    make_run(tmp_path / "runs" / "r", "a", {0})
    assert "were not scored: changed." in write(tmp_path)


def test_seeds_with_unequally_many_rounds_are_not_pooled(tmp_path: Path):
    for seed, successes in enumerate(((1, 3), (2,))):
        options = "--steps 200"  # the same budget, though one validation stood for two
        make_training(tmp_path / "train", f"s{seed}", seed=seed, successes=successes, options=options)
    (panel,) = minutes_panels(compare([tmp_path / "train"], []).trainings)
    assert panel.series[0].pooled == ()
    assert panel.sample == "n = 4 a seed, not pooled"


def test_more_demonstrations_are_compared_where_nothing_else_differs(tmp_path: Path):
    few, many = {STACK: 50, LIFT: 20}, {STACK: 200, LIFT: 20}
    scores = {"few0": (few, 0, {0}), "few1": (few, 1, {0, 1}), "many": (many, 0, {0, 1, 2})}
    for name, (data, seed, successes) in scores.items():
        make_training(tmp_path / "train", name, seed=seed, demonstrations=data)
        make_run(tmp_path / "runs" / name, name, successes, tasks=(STACK, LIFT))
    make_training(tmp_path / "train", "alone", demonstrations={STACK: 400})
    make_training(tmp_path / "train", "changed", demonstrations={STACK: 800, LIFT: 20}, overrides=("frame=world",))
    for name in ("alone", "changed"):
        make_run(tmp_path / "runs" / name, name, {0})
    (panel,) = demonstrations_panels(compare([tmp_path / "train"], [tmp_path / "runs"]).tested)
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
    assert "Not drawn: no task has tested trainings on two numbers of demonstrations" in page
    make_training(tmp_path / "train", "more", demonstrations={STACK: 200})
    for name in ("a", "more"):
        make_run(tmp_path / "runs" / name, name, {0, 1})
    assert "(demonstrations.svg)" in write(tmp_path)
    assert "2 trainings, 2 tested: results.md, minutes.svg, demonstrations.svg in" in capsys.readouterr().out


def test_neither_table_nor_figure_is_a_failure(tmp_path: Path):
    make_training(tmp_path / "train", "a", successes=())
    assert main(ResultsArguments((tmp_path / "train",), tmp_path / "out")) == 1


def test_without_a_finished_training_nothing_is_written(tmp_path: Path):
    make_training(tmp_path / "train", "going", finished=False)
    with pytest.raises(SimEvalError, match=r"no finished training of sim_eval\.train; .*going: unfinished"):
        main(ResultsArguments((tmp_path / "train",), tmp_path / "out"))
    assert not list((tmp_path / "out").iterdir())


def test_a_path_that_does_not_exist_is_one_line(tmp_path: Path):
    command = [sys.executable, "-m", "sim_eval.results", "--trainings", "nowhere", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: nowhere does not exist: name folders of trainings\n"
