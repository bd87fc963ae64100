"""What may stand in one table, and what a row says."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import EpisodeKey, RenderConfig
from sim_eval.envs.tasks import suites
from sim_eval.evaluation.engine import EpisodeResult, RolloutProtocol
from sim_eval.evaluation.manifest import Manifest
from sim_eval.evaluation.run_folder import open_run
from sim_eval.leaderboard import LeaderboardArguments, main
from sim_eval.policies.policy import PolicySpec
from sim_eval.reporting.board import Ranking, build

PROTOCOL = RolloutProtocol()


def result(key: EpisodeKey, success: bool, error: str | None = None) -> EpisodeResult:
    return EpisodeResult(key, "go", success, False, 30, 20 if success else None, "none", 8, error, 1.0)


def make_run(
    folder: Path,
    successes: int,
    tasks: tuple[str, ...] = ("fake/Plane",),
    episodes: int = 40,
    errors: int = 0,
    finished: int | None = None,
    protocol: RolloutProtocol = PROTOCOL,
    privileged: bool = False,
    variant: str = "",
) -> Path:
    """A run whose first episodes of each task succeed and whose last ones end with an error."""
    manifest = Manifest.plan(tasks, "test", 0, episodes)
    policy = PolicySpec(folder.name, privileged=privileged, variant=variant)
    with open_run(folder, manifest, policy, protocol, {}, []) as run:
        for key in run.remaining[:finished]:
            error = "policy: broke" if key.index >= episodes - errors else None
            run.append(result(key, key.index < successes, error))
    return folder


def cells(ranking: Ranking, policy: str) -> dict[str, str]:
    (row,) = [row for row in ranking.table.rows if row[1].split()[0] == policy]
    return dict(zip(ranking.table.header, row, strict=True))


def test_rows_are_ranked_with_ties_and_labels(tmp_path: Path):
    make_run(tmp_path / "zero", 0)
    make_run(tmp_path / "deep", 38)
    make_run(tmp_path / "late", 37)
    make_run(tmp_path / "scripted", 40, privileged=True)
    (ranking,) = build([tmp_path]).rankings
    assert [row[:2] for row in ranking.table.rows] == [
        ("1", "scripted (privileged)"),
        ("1", "deep"),
        ("1", "late"),
        ("4", "zero"),
    ]
    assert cells(ranking, "deep")["success"] == "38/40"
    assert cells(ranking, "deep")["rate [95 %]"] == "95.0 % [83.1, 99.4]"
    assert "errors" not in cells(ranking, "deep")
    assert cells(ranking, "deep")["steps"] == "20"
    assert cells(ranking, "zero")["steps"] == "-"


def test_a_policy_run_otherwise_than_its_checkpoint_says_is_named_so(tmp_path: Path):
    make_run(tmp_path / "plain", 38)
    make_run(tmp_path / "quick", 30, variant="1 Euler steps")
    (ranking,) = build([tmp_path]).rankings
    assert [row[1] for row in ranking.table.rows] == ["plain", "quick, 1 Euler steps"]


def test_an_error_counts_as_a_failure_and_is_shown(tmp_path: Path):
    (ranking,) = build([make_run(tmp_path / "frail", 30, errors=4)]).rankings
    row = cells(ranking, "frail")
    assert (row["success"], row["without errors"], row["rate [95 %]"]) == ("30/40", "30/36", "75.0 % [58.8, 87.3]")
    assert row["errors"] == "4"


def test_partial_and_damaged_runs_are_left_out_with_the_reason(tmp_path: Path):
    make_run(tmp_path / "whole", 20)
    make_run(tmp_path / "partial", 20, finished=30)
    damaged = make_run(tmp_path / "damaged", 20)
    (damaged / "episodes.jsonl").write_text("{}\n")
    board = build([tmp_path])
    assert [row[1] for ranking in board.rankings for row in ranking.table.rows] == ["whole"]
    reasons = {folder.name: reason for folder, reason in board.left_out}
    assert reasons["partial"].startswith("30 of 40 episodes")
    assert "line 1 is damaged" in reasons["damaged"]


def test_a_run_whose_numbers_were_doctored_in_run_json_gains_nothing(tmp_path: Path):
    folder = make_run(tmp_path / "whole", 20)
    data = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**data, "successes": 40, "rate": 1.0}))
    (ranking,) = build([folder]).rankings
    assert cells(ranking, "whole")["success"] == "20/40"


def test_other_manifests_and_protocols_get_their_own_table(tmp_path: Path):
    make_run(tmp_path / "a", 20)
    make_run(tmp_path / "longer", 20, episodes=41)
    make_run(tmp_path / "eight", 20, protocol=RolloutProtocol(n_action_steps=8))
    make_run(tmp_path / "faithful", 20, protocol=RolloutProtocol(render=RenderConfig("faithful")))
    make_run(tmp_path / "foreign", 20, protocol=RolloutProtocol(other_robot=True))
    make_run(tmp_path / "b", 20)
    board = build([tmp_path])
    assert sorted(sorted(row[1] for row in ranking.table.rows) for ranking in board.rankings) == [
        ["a", "b"],
        ["eight"],
        ["faithful"],
        ["foreign"],
        ["longer"],
    ]
    (foreign,) = (ranking for ranking in board.rankings if "foreign" in ranking.table.rows[0])
    assert foreign.title.endswith("other robot than trained for)")


def test_several_tasks_get_a_table_each_and_one_for_all_whatever_their_order(tmp_path: Path):
    make_run(tmp_path / "a", 10, tasks=("fake/Plane", "fake/Line"))
    make_run(tmp_path / "b", 20, tasks=("fake/Line", "fake/Plane"))
    rankings = build([tmp_path]).rankings
    assert [ranking.title.split(" (")[0] for ranking in rankings] == ["fake/Plane", "fake/Line", "all tasks"]
    assert [cells(ranking, "b")["success"] for ranking in rankings] == ["20/40", "20/40", "40/80"]
    assert [cells(rankings[2], name)["rank"] for name in ("a", "b")] == ["2", "1"]


def test_tasks_that_are_not_installed_are_ranked_all_the_same(tmp_path: Path):
    make_run(tmp_path / "a", 10, tasks=("absent_suite/0", "absent_suite/1"))
    rankings = build([tmp_path]).rankings
    assert [ranking.name for ranking in rankings] == ["absent_suite/0", "absent_suite/1", "all tasks"]
    assert [cells(ranking, "a")["success"] for ranking in rankings] == ["10/40", "10/40", "20/80"]


def test_fifty_tasks_of_a_suite_share_a_table_with_their_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    easy, hard = tuple(f"sea/cod-{n}" for n in range(40)), tuple(f"sea/eel-{n}" for n in range(10))
    for name, parts in {"sea/All": ("sea/easy", "sea/hard"), "sea/easy": easy, "sea/hard": hard}.items():
        monkeypatch.setitem(suites(), name, parts)
    make_run(tmp_path / "a", 1, tasks=(*easy, *hard, "fake/Plane"), episodes=4)
    make_run(tmp_path / "b", 3, tasks=("fake/Plane", *hard, *easy), episodes=4)
    rankings = build([tmp_path]).rankings
    assert [ranking.title.split(" (")[0] for ranking in rankings] == [
        "sea/All",
        "sea/easy",
        "sea/hard",
        "fake/Plane",
        "all tasks",
    ]
    row = cells(rankings[0], "b")
    assert (row["rank"], row["success"], row["mean of 50 tasks"][:6]) == ("1", "150/200", "75.0 %")
    assert row["mean of 2 groups"].startswith("75.0 %")
    assert [ranking.details is None for ranking in rankings] == [False, True, True, True, True]
    assert rankings[0].details is not None
    assert rankings[0].details.header == ("success", "b", "a")
    assert len(rankings[0].details.rows) == 50
    assert rankings[0].details.rows[0][1:] == ("3/4", "1/4")


def test_every_suite_has_a_figure_of_the_same_runs_policies_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for name, parts in {
        "sea/All": ("sea/easy", "sea/eels"),
        "sea/easy": ("sea/cod",),
        "sea/eels": ("sea/eel",),
    }.items():
        monkeypatch.setitem(suites(), name, parts)
    tasks = ("sea/cod", "sea/eel", "fake/Plane")
    make_run(tmp_path / "runs" / "bound", 4, tasks=tasks, episodes=4, privileged=True)
    make_run(tmp_path / "runs" / "good", 3, tasks=tasks, episodes=4)
    make_run(tmp_path / "runs" / "bad", 1, tasks=tasks, episodes=4)
    make_run(tmp_path / "runs" / "eight", 2, tasks=tasks, episodes=4, protocol=RolloutProtocol(n_action_steps=8))
    board = build([tmp_path / "runs"])
    shown = {
        ranking.title: [score.label for score in ranking.scores]
        for ranking in board.rankings
        if "n_action_steps 4" in ranking.title
    }
    assert [labels for title, labels in shown.items() if title.startswith("sea/")] == [
        ["good", "bad", "bound (privileged)"]
    ] * 3
    assert shown[next(title for title in shown if title.startswith("fake/Plane"))] == []
    page = tmp_path / "pages" / "board.md"
    assert main(LeaderboardArguments((tmp_path / "runs",), page, tmp_path / "figures")) == 0
    assert sorted(file.name for file in (tmp_path / "figures").iterdir()) == [
        "sea-All-2.svg",
        "sea-All.svg",
        "sea-easy-2.svg",
        "sea-easy.svg",
        "sea-eels-2.svg",
        "sea-eels.svg",
    ]
    for name in ("sea-All", "sea-All-2"):
        assert page.read_text().count(f"(../figures/{name}.svg)") == 1
    assert "6 figures" in capsys.readouterr().out


def test_hidden_goals_and_counterfactual_instructions_are_in_the_title(tmp_path: Path):
    make_run(tmp_path / "plain", 20)
    make_run(tmp_path / "hidden", 20, protocol=RolloutProtocol(render=RenderConfig(hide_goal=True)))
    make_run(tmp_path / "misled", 20, protocol=RolloutProtocol(instruction_condition="counterfactual"))
    titles = {ranking.table.rows[0][1]: ranking.title for ranking in build([tmp_path]).rankings}
    assert len(titles) == 3
    assert "goal hidden" in titles["hidden"]
    assert "instruction_condition counterfactual" in titles["misled"]
    assert "instruction" not in titles["plain"]
    assert "hidden" not in titles["plain"]


def test_versions_that_differ_are_in_the_title(tmp_path: Path):
    """Another physics or rule is another task, and so is sim_eval's own; torch's version is the policy's affair."""
    first, second = make_run(tmp_path / "first", 20), make_run(tmp_path / "second", 20)
    assert "versions" not in build([first, second]).rankings[0].title
    for package, said in (("torch", False), ("mujoco", True)):
        data = json.loads((second / "run.json").read_text())
        data["versions"][package] = "0.0"
        (second / "run.json").write_text(json.dumps(data))
        assert ("versions differ" in build([first, second]).rankings[0].title) is said
    assert build([first, second]).rankings[0].title.endswith(f"versions differ: mujoco 0.0 and {version('mujoco')})")
    assert "versions" not in build([second]).rankings[0].title


def test_a_run_named_twice_stands_once(tmp_path: Path):
    folder = make_run(tmp_path / "a", 10)
    (ranking,) = build([folder, tmp_path]).rankings
    assert [row[-1] for row in ranking.table.rows] == ["a"]
    shutil.copytree(folder, tmp_path / "copy")
    (ranking,) = build([tmp_path]).rankings
    assert [row[-1] for row in ranking.table.rows] == ["a", "copy"]


def test_a_folder_without_runs_is_refused(tmp_path: Path):
    with pytest.raises(SimEvalError, match=r"holds no manifest\.json: name run folders"):
        build([tmp_path])


def test_the_command_prints_and_writes_markdown(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make_run(tmp_path / "deep", 38)
    make_run(tmp_path / "partial", 20, finished=30)
    arguments = LeaderboardArguments((tmp_path,), tmp_path / "board.md")
    assert main(arguments) == 0
    text = (tmp_path / "board.md").read_text()
    assert "## deep, run deep (test split, manifest" in text
    assert "| fake/Plane | 38/40 | 95.0 % [83.1, 99.4] |" in text
    assert "- partial: 30 of 40 episodes" in text
    shown = capsys.readouterr()
    assert "[83.1, 99.4]" in shown.out
    assert "partial" in shown.err
    assert main(replace(arguments, runs=(tmp_path / "partial",), markdown=None)) == 1


def test_a_reader_that_leaves_early_sees_no_traceback(tmp_path: Path):
    make_run(tmp_path / "deep", 38)
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "sim_eval.leaderboard", str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.returncode != 0
    assert done.stderr == ""


def test_one_run_has_one_table_of_its_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make_run(tmp_path / "runs" / "a", 10, tasks=("fake/Plane", "fake/Line", "fake/Cube"))
    assert main(LeaderboardArguments((tmp_path / "runs",), figures=tmp_path / "figures")) == 0
    shown = capsys.readouterr().out
    assert shown.count("10/40") == 3
    assert shown.count("at the end  ") == 1
    assert max(map(len, shown.splitlines())) <= 100
    assert "no figures: each shows a whole suite" in shown


def test_json_and_csv_have_every_run_of_every_ranking(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make_run(tmp_path / "a", 10, tasks=("fake/Plane", "fake/Line"))
    make_run(tmp_path / "b", 38, tasks=("fake/Plane", "fake/Line"), errors=1)
    make_run(tmp_path / "partial", 20, finished=3)
    assert main(LeaderboardArguments((tmp_path,), json=True)) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(each["ranking"], each["rank"], each["policy"], each["successes"]) for each in told["standings"]] == [
        (name, rank, policy, count * times)
        for name, times in (("fake/Plane", 1), ("fake/Line", 1), ("all tasks", 2))
        for rank, policy, count in ((1, "b", 38), (2, "a", 10))
    ]
    assert told["left_out"][0]["folder"] == str(tmp_path / "partial")
    assert main(LeaderboardArguments((tmp_path,), csv=True)) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["run"] for row in rows] == [str(tmp_path / name) for name in ("b", "a") * 3]
    assert [float(row["interval.low"]) for row in rows] == [each["interval"][0] for each in told["standings"]]
    assert [row["errors"] for row in rows] == ["1", "0", "1", "0", "2", "0"]


def test_without_arguments_it_ranks_the_usual_folder_or_says_what_to_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SimEvalError, match="no runs to rank: there is no folder runs/ here"):
        main(LeaderboardArguments())
    make_run(tmp_path / "runs" / "a", 10)
    assert main(LeaderboardArguments()) == 0
    assert "10/40" in capsys.readouterr().out
