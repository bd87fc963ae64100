"""Collecting demonstrations through the command line: what is written can be trusted, resumed and replayed."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sim_eval.collect import main
from sim_eval.configs import CollectConfig
from sim_eval.core.decoding import decode
from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import RenderConfig
from sim_eval.datasets.checks import check_episode
from sim_eval.datasets.episode_file import episode_files, read_episode, read_header
from sim_eval.envs.tasks import get_task

TASK = "robosuite/LiftWide"


def arguments(out: Path, **changes: object) -> CollectConfig:
    return CollectConfig(**{"task": TASK, "out": out, "episodes": 2, "size": 64, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demonstrations")
    assert main(arguments(out)) == 0
    return out


def test_files_are_sound_and_labels_are_clean(collected: Path) -> None:
    assert [read_header(file).success for file in episode_files(collected)] == [True, True]
    assert [check_episode(file) for file in episode_files(collected)] == [[], []]
    episode = read_episode(episode_files(collected)[0])
    assert not np.array_equal(episode.actions, episode.executed_actions)  # it was pushed, the label was not
    assert set(episode.observations[0].views) == {"agentview", "wrist"}
    assert episode.observations[0].views["wrist"].depth.shape == (64, 64)


def test_executed_actions_replay_bit_for_bit(collected: Path) -> None:
    simulator = get_task(TASK).make(RenderConfig(height=64, width=64))
    for file in episode_files(collected):
        episode = read_episode(file)
        simulator.reset(episode.key)
        for step, action in enumerate(episode.executed_actions):
            assert np.array_equal(simulator.snapshot().state, episode.states[step])
            if step % 10 == 0:
                seen, recorded = simulator.observe(), episode.observations[step]
                assert np.array_equal(seen.views["wrist"].depth, recorded.views["wrist"].depth)
                assert np.array_equal(seen.proprio["eef_pos"], recorded.proprio["eef_pos"])
            status = simulator.act(action)
            assert status.success == episode.success[step]
    simulator.close()


def test_what_is_recorded_after_success_is_as_long_as_asked(collected: Path, tmp_path: Path) -> None:
    assert main(arguments(tmp_path, episodes=1, post_success_steps=25)) == 0
    (short, *_), (long,) = episode_files(collected), episode_files(tmp_path)
    usual, more = read_episode(short), read_episode(long)
    for episode, post_success_steps in ((usual, 10), (more, 25)):
        assert len(episode.actions) == np.argmax(episode.success) + 1 + post_success_steps
    assert np.array_equal(usual.actions, more.actions[: len(usual.actions)])


def test_the_target_is_a_total_and_what_is_there_stays(collected: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file: file.read_bytes() for file in episode_files(collected)}
    assert main(arguments(collected, episodes=3)) == 0
    after = {file: file.read_bytes() for file in episode_files(collected)}
    assert len(after) == 3
    assert all(after[file] == content for file, content in before.items())
    assert "3 episodes" in capsys.readouterr().out
    assert main(replace(arguments(collected, episodes=3), json=True)) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["episodes"], told["before"], told["written"]) == (3, 3, 0)
    assert told["tasks"] == [{"task": "robosuite/LiftWide", "episodes": 3, "successes": 0, "attempts": 0, "errors": 0}]


def test_a_damaged_file_is_collected_again(collected: Path) -> None:
    victim = episode_files(collected)[0]
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2])
    assert main(arguments(collected, episodes=len(episode_files(collected)))) == 0
    assert [check_episode(file) for file in episode_files(collected)] == [[]] * len(episode_files(collected))


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"post_success_steps": 25}, "post_success_steps was 10, is now 25"),
        ({"disturb": False}, "disturb was True, is now False"),
        ({"policy": "random"}, "policy was scripted, is now random"),
    ],
)
def test_episodes_of_another_configuration_are_not_mixed_in(
    collected: Path, other: dict[str, object], says: str
) -> None:
    with pytest.raises(SimEvalError, match=says):
        main(arguments(collected, episodes=9, **other))


@pytest.mark.parametrize("other", [{"size": 32}, {"render": "faithful"}, {"hide_goal": True}])
def test_other_renderings_are_not_mixed_in(collected: Path, other: dict[str, object]) -> None:
    with pytest.raises(SimEvalError, match="--size and --hide-goal"):
        main(arguments(collected, episodes=9, **other))


def test_a_folder_without_a_log_does_not_take_on_other_post_success_steps(collected: Path, tmp_path: Path) -> None:
    # As the first versions collected, or where somebody deleted a log.
    for file in episode_files(collected)[:1]:
        shutil.copy(file, tmp_path)
    with pytest.raises(SimEvalError, match=r"10 steps after its success: .* --post-success-steps 10"):
        main(arguments(tmp_path, episodes=1, post_success_steps=25))
    assert main(arguments(tmp_path, episodes=1)) == 0
    with pytest.raises(SimEvalError, match="post_success_steps was 10, is now 25"):
        main(arguments(tmp_path, episodes=1, post_success_steps=25))


def test_the_configuration_is_the_first_line_of_the_log(collected: Path) -> None:
    (log,) = collected.glob("*.attempts.jsonl")
    first = json.loads(log.read_text().splitlines()[0])
    assert decode(CollectConfig, first["config"]) == arguments(collected, workers=1)


def test_how_the_task_was_rendered_is_written_down(collected: Path) -> None:
    assert read_episode(episode_files(collected)[0]).render_config == RenderConfig("fast", 64, 64)


def test_workers_write_the_same_bytes(collected: Path, tmp_path: Path) -> None:
    assert main(arguments(tmp_path, workers=2)) == 0
    written = {file.name: file.read_bytes() for file in episode_files(tmp_path)}
    assert written == {file.name: file.read_bytes() for file in episode_files(collected) if file.name in written}
    assert len(written) == 2


def test_a_policy_that_cannot_demonstrate_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim_eval.evaluation.scheduler.ATTEMPTS_BEFORE_GIVING_UP", 2)
    with pytest.raises(SimEvalError, match="cannot demonstrate"):
        main(arguments(tmp_path / "out", policy="random", size=16))
    assert episode_files(tmp_path / "out") == []


def test_failures_can_be_what_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim_eval.evaluation.scheduler.ATTEMPTS_BEFORE_GIVING_UP", 1)
    assert main(arguments(tmp_path, policy="random", episodes=1, size=32, keep_failures=True)) == 0
    (file,) = episode_files(tmp_path)
    assert (read_header(file).success, check_episode(file)) == (False, [])
    (log,) = tmp_path.glob("*.attempts.jsonl")
    assert 'failed"' not in log.read_text()  # it has a file of its own


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--task", "robosuite/Lft"], "robosuite/Lift"),
        (["--task", ","], "--task names nothing"),
        (["--workers", "0"], "--workers: input should be auto or a whole number from 1 on, not 0"),
        (["--episodes", "0"], "--episodes: input should be greater than or equal to 1"),
        (["--size", "8"], "--size: input should be greater than or equal to 16"),
        (["--post-success-steps", "-1"], "--post-success-steps: input should be greater than or equal to 0"),
        (["--policy", "nobody"], "unknown policy 'nobody'"),
        (["--split", "test"], "split"),
        (["--out", "pyproject.toml/below"], "cannot be written"),
    ],
)
def test_bad_input_is_one_line(options: list[str], says: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sim_eval.collect", "--task", TASK, "--out", str(tmp_path), *options]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert len(answer.stderr.strip().splitlines()) == 1
    assert answer.stderr.startswith("error: ")
    assert says in answer.stderr
