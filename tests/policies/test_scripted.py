"""The scripted demonstrators: good enough to learn from, even when pushed, and honest about being privileged."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import EpisodeKey, InstructionCondition, RenderConfig, Simulator
from sim_eval.envs.tasks import get_task, suite_tasks, task_names
from sim_eval.evaluation.engine import EpisodeResult, RolloutProtocol, run_episode
from sim_eval.policies.registry import load_policy
from sim_eval.policies.scripted.waypoints import towards, upright, yaw_error

SMALL = RenderConfig(height=32, width=32)


Play = Callable[..., list[EpisodeResult]]


@pytest.fixture(scope="module")
def play() -> Iterator[Play]:
    """Plays a task's first episodes; a simulator is built once, and the same episodes are not played again."""
    simulators: list[Simulator] = []

    @cache
    def simulator(task: str, steps: int | None) -> Simulator:
        known = get_task(task)
        simulators.append(replace(known, max_episode_steps=steps or known.max_episode_steps).make(SMALL))
        return simulators[-1]

    @cache
    def results(
        task: str,
        episodes: int,
        disturb: bool,
        condition: InstructionCondition = "correct",
        steps: int | None = None,
    ) -> list[EpisodeResult]:
        protocol, policy = RolloutProtocol(instruction_condition=condition), load_policy("scripted")
        keys = [EpisodeKey(task, "val", index) for index in range(episodes)]
        return [run_episode(simulator(task, steps), policy, key, protocol, disturb=disturb) for key in keys]

    yield results
    for made in simulators:
        made.close()


def successes(results: list[EpisodeResult]) -> int:
    assert not any(result.error for result in results)
    return sum(result.success for result in results)


@pytest.mark.parametrize("disturb", [False, True])
@pytest.mark.parametrize(
    ("task", "episodes"), [("robosuite/LiftWide", 6), ("robosuite/Stack", 6), ("robosuite/PickPlaceCan", 3)]
)
def test_demonstrator_succeeds(play: Play, task: str, episodes: int, disturb: bool) -> None:
    assert successes(play(task, episodes, disturb)) >= episodes - 1


@pytest.mark.slow
@pytest.mark.parametrize("task", [name for name in task_names() if name.startswith("robosuite/")])
def test_demonstrator_succeeds_95_times_of_100_while_pushed(play: Play, task: str) -> None:
    assert successes(play(task, 100, True)) >= 95


@pytest.mark.slow
def test_metaworlds_own_demonstrators_succeed_9_times_of_10_while_pushed(play: Play) -> None:
    """They are not ours to mend: undisturbed they succeed in 49 of 50 episodes."""
    pushed = {task: successes(play(task, 3, True)) for task in suite_tasks("metaworld/MT50")}
    assert len(pushed) == 50
    assert sum(pushed.values()) >= 135, pushed


def test_success_follows_the_instruction(play: Play) -> None:
    right = play("robosuite/Stack", 6, False)[:4]
    enough = 2 * max(result.steps for result in right)
    wrong = play("robosuite/Stack", 4, False, "counterfactual", enough)
    assert [result.success for result in right] == [True] * 4
    assert [result.success for result in wrong] == [False] * 4
    # The same scene, the two sentences in turn.
    assert [result.instruction for result in right] == [result.instruction for result in wrong[1:]] + [
        right[3].instruction
    ]


def test_a_task_with_one_goal_has_no_counterfactual_instruction() -> None:
    with pytest.raises(SimEvalError, match="robosuite/Lift has no counterfactual instruction"):
        get_task("robosuite/Lift").instruction(EpisodeKey("robosuite/Lift", "val", 0), "counterfactual")


def test_it_says_that_it_is_privileged() -> None:
    assert load_policy("scripted").spec.privileged
    assert not load_policy("zero").spec.privileged


@pytest.mark.parametrize("degrees", [-80, -30, 0, 30, 44, 46, 170])
def test_yaw_error_brings_fingers_to_the_nearest_face(degrees: float) -> None:
    def turned(angle: float) -> np.ndarray:
        c, s = np.cos(angle), np.sin(angle)
        return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])

    cube, gripper = turned(np.radians(degrees)), turned(0.3) @ np.diag([1.0, -1.0, -1.0])
    error = yaw_error(gripper, cube)
    assert abs(error) <= np.pi / 4 + 1e-9
    after = turned(error) @ gripper
    angle = np.arctan2(after[1, 1], after[0, 1]) - np.radians(degrees)
    assert np.isclose(np.sin(2 * angle), 0, atol=1e-9)  # a multiple of 90 degrees


def test_upright_points_the_gripper_down() -> None:
    tilt = 0.1
    c, s = np.cos(tilt), np.sin(tilt)
    about_x = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    gripper = about_x @ np.diag([1.0, -1.0, -1.0])
    np.testing.assert_allclose(upright(gripper), [-s, 0, 0], atol=1e-12)


def test_actions_stay_in_bounds() -> None:
    action = towards(np.array([1.0, -1.0, 0.01]), np.array([0.0, 0.0, 9.0]), 1.0)
    assert np.all(np.abs(action) <= 1)
    assert action[2] == pytest.approx(0.2)
