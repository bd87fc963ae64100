"""What may be paired, what the table says against counts by hand, and what the videos of disagreements show."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
from fake_simulator import PLANE, FakePolicy, PlaneSimulator, constant
from numpy.typing import NDArray
from recorded_run import play
from trainings_and_runs import LIFT, STACK, make_run

from sim_eval.compare import VIDEO_SIZE, CompareArguments, main
from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import RenderConfig
from sim_eval.envs.tasks import get_task, own_tasks, suites
from sim_eval.evaluation.engine import RolloutProtocol
from sim_eval.evaluation.run_folder import Run, read_run
from sim_eval.policies.policy import PolicyRequest, PolicySpec
from sim_eval.reporting.comparison import contrast_table
from sim_eval.reporting.pairing import check_pairable, contrasts, disagreements, lettered
from sim_eval.reporting.tables import LONG, Table
from sim_eval.reporting.video_layout import third_person_size

PROTOCOL = RolloutProtocol()


def runs_of(*folders: Path) -> dict[str, Run]:
    return lettered([read_run(folder) for folder in folders])


def refusal(*folders: Path, across: tuple[str, ...] = ()) -> str:
    with pytest.raises(SimEvalError) as refused:
        check_pairable(runs_of(*folders), across)
    return str(refused.value)


def test_pairs_are_joined_by_key_whatever_the_order_of_the_tasks(tmp_path: Path):
    a = make_run(tmp_path / "a", "a", {0, 1, 2, 3, 4}, tasks=(STACK, LIFT), episodes=10)
    b = make_run(tmp_path / "b", "b", {4, 5}, tasks=(LIFT, STACK), episodes=10)
    found = contrasts(runs_of(a, b))
    # Stack's goals take turns: of the even episodes A won 0, 2 and 4 and B won 4; of the odd ones 1 and 3, and 5.
    assert [(each.task, bool(each.goal), each.only_first, each.only_second, each.first.episodes) for each in found] == [
        (STACK, False, 4, 1, 10),
        (STACK, True, 2, 0, 5),
        (STACK, True, 2, 1, 5),
        (LIFT, False, 4, 1, 10),
        ("all tasks", False, 8, 2, 20),
    ]
    assert found[-1].difference == pytest.approx(0.3)
    assert found[-1].p_value == pytest.approx(2 * (1 + 10 + 45) / 2**10)
    assert found[0].p_value == pytest.approx(2 * (1 + 5) / 2**5)


def test_holm_runs_over_the_whole_table(tmp_path: Path):
    successes = {"a": set(range(40)), "b": set(range(8, 40)), "c": set(range(20, 40))}
    folders = [make_run(tmp_path / name, name, won, tasks=(LIFT,), episodes=40) for name, won in successes.items()]
    found = {each.pair: each for each in contrasts(runs_of(*folders))}
    assert found["A", "B"].p_value == pytest.approx(2 / 2**8)
    assert found["A", "B"].p_holm == found["A", "B"].p_value  # the largest of three
    assert found["B", "C"].p_holm == pytest.approx(2 * 2 / 2**12)
    assert all(each.separated for each in found.values())
    assert {each.more for each in found.values()} == {0}
    (alone,) = contrasts(runs_of(*folders[:2]))
    assert alone.p_holm == alone.p_value


def test_a_suite_is_paired_over_all_its_episodes_before_its_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wide = "robosuite/LiftWide"
    for name, made_of in {
        "made/All": ("made/rest", "made/lifts"),
        "made/rest": (STACK,),
        "made/lifts": (wide, LIFT),
    }.items():
        monkeypatch.setitem(suites(), name, made_of)
    tasks = (LIFT, STACK, wide)
    a = make_run(tmp_path / "a", "a", {0, 1, 2, 3}, tasks=tasks)
    b = make_run(tmp_path / "b", "b", {0}, tasks=tasks)
    found = contrasts(runs_of(a, b))
    # No row of all tasks, which are the suite; Stack has two goals.
    assert [each.task for each in found] == ["made/All", "made/rest", "made/lifts", LIFT, STACK, STACK, STACK, wide]
    assert (found[0].only_first, found[0].only_second, found[0].first.episodes) == (9, 0, 12)
    assert found[0].p_value == pytest.approx(2 / 2**9)
    assert found[0].p_holm == pytest.approx(8 * 2 / 2**9)
    assert found[0].separated
    assert found[2].only_first == 6
    assert main(CompareArguments((a, b), tmp_path / "out")) == 0
    page = (tmp_path / "out" / "compare.md").read_text()
    above, below = page.split("## Success at any step, task by task", 1)
    assert "| made/All | A - B |" in above
    assert f"| {LIFT} |" not in above
    assert f"| {LIFT} | A - B |" in below
    more = make_run(tmp_path / "more", "a", {0}, tasks=(LIFT, wide, STACK, "robosuite/PickPlaceCan"))
    less = make_run(tmp_path / "less", "b", {0}, tasks=(LIFT, wide, STACK, "robosuite/PickPlaceCan"))
    assert contrasts(runs_of(more, less))[-1].task == "all tasks"


def test_a_long_table_opens_when_it_is_asked_for():
    rows = tuple((str(number),) for number in range(LONG + 1))
    short, long = Table(("n",), rows[:LONG]), Table(("n",), rows)
    assert short.folded() == short.markdown()
    assert long.folded() == f"<details><summary>26 rows</summary>\n\n{long.markdown()}\n\n</details>"


def test_success_at_the_end_is_a_comparison_of_its_own(tmp_path: Path):
    a = make_run(tmp_path / "a", "a", {0, 1, 2, 3}, tasks=(LIFT,), lasting={0})
    b = make_run(tmp_path / "b", "b", {0, 1, 2, 3}, tasks=(LIFT,))
    (any_step,), (at_end,) = contrasts(runs_of(a, b)), contrasts(runs_of(a, b), at_end=True)
    assert (any_step.only_first, any_step.only_second) == (0, 0)
    assert (at_end.only_first, at_end.only_second, at_end.difference) == (0, 3, -0.75)


def test_how_many_more_episodes_is_said_in_words(tmp_path: Path):
    won = [set(range(30)), set(range(25)), set(range(30)), set(range(1, 31))]
    folders = [make_run(tmp_path / str(n), str(n), each, tasks=(LIFT,), episodes=40) for n, each in enumerate(won)]
    table = contrast_table(contrasts(runs_of(*folders)))
    cells = {row[1]: row[-1] for row in table.rows}
    assert cells["A - C"] == "no difference"
    assert cells["A - D"] == "no difference"  # one won by each alone
    assert cells["A - B"].endswith(" more")
    assert 0 < int(cells["A - B"].split()[0]) < 40


def test_runs_of_other_episodes_are_refused_with_the_keys(tmp_path: Path):
    a = make_run(tmp_path / "a", "a", {0}, tasks=(LIFT,), episodes=4)
    b = make_run(tmp_path / "b", "b", {0}, tasks=(LIFT,), episodes=6)
    c = make_run(tmp_path / "c", "c", {0}, tasks=(LIFT,), episodes=4, split="val")
    says = refusal(a, b)
    assert f"2 episodes of B ({b}) are not in A ({a}), {LIFT}/test/00004 to {LIFT}/test/00005" in says
    assert "of A" not in says
    assert f"4 episodes of A ({a}) are not in C ({c})" in refusal(a, a.parent / "b", c).replace("B (", "")
    assert f"{LIFT}/val/00000 to {LIFT}/val/00003" in refusal(a, c)


def test_other_protocols_are_refused_field_by_field_unless_they_are_what_is_compared(tmp_path: Path):
    other = RolloutProtocol(n_action_steps=8, render=RenderConfig("faithful"))
    a = make_run(tmp_path / "a", "a", {0}, tasks=(LIFT,))
    b = make_run(tmp_path / "b", "a", {0}, tasks=(LIFT,), protocol=other)
    says = refusal(a, b)
    assert f"n_action_steps is 4 in A ({a}) and 8 in B ({b})" in says
    assert "render.mode is fast in A" in says
    assert "post_success_steps" not in says
    assert "render is" not in says
    assert "n_action_steps is" not in refusal(a, b, across=("n_action_steps",))
    check_pairable(runs_of(a, b), ("n_action_steps", "render.mode"))
    check_pairable(runs_of(a, b), ("n_action_steps", "render"))  # all its fields
    assert "--across speed: the protocol has no such field; it has n_action_steps" in refusal(a, b, across=("speed",))


def test_a_partial_run_is_refused(tmp_path: Path):
    a = make_run(tmp_path / "a", "a", {0}, tasks=(LIFT,))
    b = make_run(tmp_path / "b", "b", {0}, tasks=(LIFT,), finished=3)
    assert f"B ({b}) is partial, 3 of 4 episodes: resume it by rollout --out {b}" in refusal(a, b)


def test_one_run_is_no_comparison_and_neither_is_the_same_twice(tmp_path: Path):
    a = make_run(tmp_path / "a", "a", {0}, tasks=(LIFT,))
    with pytest.raises(SimEvalError, match="name 2 to 26 run folders to compare, not 1"):
        runs_of(a)
    with pytest.raises(SimEvalError, match="named twice"):
        runs_of(a, a.parent / "." / "a")


def test_disagreements_of_both_kinds_come_by_turns(tmp_path: Path):
    a = make_run(tmp_path / "a", "a", {0, 1, 2, 7}, tasks=(LIFT,), episodes=8)
    b = make_run(tmp_path / "b", "b", {5, 7}, tasks=(LIFT,), episodes=8)
    assert [key.index for key in disagreements(read_run(a), read_run(b))] == [0, 5, 1, 2]


def test_the_command_prints_and_keeps_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    a = make_run(tmp_path / "a", "a", {0, 1, 2}, tasks=(STACK, LIFT))
    b = make_run(tmp_path / "b", "", {0}, tasks=(STACK, LIFT), protocol=replace(PROTOCOL, n_action_steps=8))
    out = tmp_path / "out"
    assert main(CompareArguments((a, b), out, across="n_action_steps")) == 0
    shown, page = capsys.readouterr().out, (out / "compare.md").read_text()
    assert "| A | policy@61000000 | 4 | 6/8 |" in page
    assert "| B | policy | 8 | 2/8 |" in page
    assert "| all tasks | A - B | 6 - 2 of 8 | 4 : 0 | +50.0 [" in page
    assert "+50.0 [" in shown
    assert max(map(len, shown.splitlines()[:-1])) <= 100  # the last names the folder
    data = json.loads((out / "compare.json").read_text())
    (overall,) = [each for each in data["comparisons"]["Success at any step"] if each["task"] == "all tasks"]
    assert (overall["only_first"], overall["only_second"], overall["p_value"]) == (4, 0, 0.125)
    assert data["runs"]["B"]["protocol"]["n_action_steps"] == 8
    assert data["runs"]["A"]["tasks"][0]["phases"]["none"] == 4
    assert sorted(path.name for path in out.iterdir()) == ["compare.json", "compare.md"]


def test_runs_of_a_suite_that_is_not_installed_are_compared_from_their_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """As LIBERO's runs on a machine without LIBERO: neither tasks nor goals nor phases can be looked up."""
    tasks = ("absent_suite/0", "absent_suite/1")
    a = make_run(tmp_path / "a", "a", {0, 1, 2, 3}, tasks=tasks)
    b = make_run(tmp_path / "b", "b", {0}, tasks=tasks)
    assert main(CompareArguments((a, b), tmp_path / "out", videos=1)) == 0
    data = json.loads((tmp_path / "out" / "compare.json").read_text())
    found = data["comparisons"]["Success at any step"]
    assert [(each["task"], each["goal"], each["only_first"]) for each in found] == [
        ("absent_suite/0", "", 3),
        ("absent_suite/1", "", 3),
        ("all tasks", "", 6),
    ]
    assert data["runs"]["A"]["tasks"][0]["phases"] == {"none": 4}
    assert data["videos"] == []
    assert "no video: " in capsys.readouterr().err  # a video does need the simulator, or a kept one


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere", "there"], "nowhere/manifest.json cannot be read"),
        (["nowhere", "there", "--videos", "2"], "--videos needs --out"),
        (["nowhere", "there", "--videos", "-1"], "--videos: input should be greater than or equal to 0"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], words: str):
    command = [sys.executable, "-m", "sim_eval.compare", *arguments]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert words in done.stderr


@pytest.fixture
def plane(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake task, registered."""
    monkeypatch.setitem(own_tasks(), PLANE.name, PLANE)
    get_task.cache_clear()


def swerve() -> FakePolicy:
    """Other actions at every step, and never at the goal: what is played back wrongly shows."""

    def answer(request: PolicyRequest) -> NDArray[np.float64]:
        return np.stack([np.linspace(-0.3, 0.2, 8) + 0.01 * request.policy_call, np.full(8, 0.4)], axis=1)

    return FakePolicy(answer, PolicySpec("swerve"))


def frames(video: Path) -> NDArray[np.int16]:
    return np.array(imageio.mimread(video, memtest=False)).astype(np.int16)


@pytest.mark.usefixtures("plane")
def test_a_disagreement_is_shown_side_by_side(tmp_path: Path):
    good = play(tmp_path / "good", constant(1.0, 0.0))
    bad = play(tmp_path / "bad", swerve())
    assert main(CompareArguments((good, bad), tmp_path / "out", videos=1)) == 0
    (video,) = (tmp_path / "out" / "videos").iterdir()  # two disagree, one was asked for
    assert video.name == "fake-Plane_test_00000_A-success_B-failure.mp4"
    assert f"(videos/{video.name})" in (tmp_path / "out" / "compare.md").read_text()
    both = frames(video)
    middle = both.shape[2] // 2
    first_success = read_run(good).episodes[0].first_success
    left, right = both[:, :, :middle], both[:, :, middle:]
    high, wide = third_person_size(VIDEO_SIZE)
    edge = (wide - high) // 2 + 1  # of the square picture's frame
    edges = {"left": left[:, high // 2, edge], "right": right[:, high // 2, edge]}
    greener = {side: pixels[:, 1] - pixels[:, 0] > 30 for side, pixels in edges.items()}
    assert greener["left"].argmax() == first_success  # and amber after it has run past the goal
    assert not greener["right"].any()
    assert (edges["right"][:, 0] - edges["right"][:, 1] > 30).tolist() == [
        step >= PLANE.max_episode_steps for step in range(len(both))
    ]
    assert not list(good.rglob("*.mp4"))  # nothing is added to the run


@pytest.mark.usefixtures("plane")
def test_an_episode_that_broke_off_is_played_back_as_far_as_it_came(tmp_path: Path):
    good = play(tmp_path / "good", constant(1.0, 0.0))
    broken = play(tmp_path / "broken", constant(1.0, 0.0), PlaneSimulator(PLANE, breaks_at=5))
    assert main(CompareArguments((good, broken), tmp_path / "out", videos=1)) == 0
    (video,) = (tmp_path / "out" / "videos").iterdir()
    assert video.name.endswith("A-success_B-failure.mp4")


@pytest.mark.usefixtures("plane")
def test_what_cannot_be_shown_is_said_and_the_figures_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    good, bad = play(tmp_path / "good", constant(1.0, 0.0)), play(tmp_path / "bad", swerve())
    (good / "trajectories" / "fake-Plane_test_00000.h5").unlink()
    (good / "trajectories" / "fake-Plane_test_00001.h5").write_bytes(
        (bad / "trajectories" / "fake-Plane_test_00001.h5").read_bytes()
    )
    assert main(CompareArguments((good, bad), tmp_path / "out", videos=2)) == 0
    shown = capsys.readouterr()
    assert "fake-Plane_test_00000.h5" in shown.err
    assert "fake-Plane_test_00001.h5 was recorded with policy name" in shown.err
    assert "0 videos" in shown.out
    assert (tmp_path / "out" / "compare.md").exists()
