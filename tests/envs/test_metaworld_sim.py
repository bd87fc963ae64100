"""Meta-World: keys decide everything, pictures are where they say, and the field's tasks, sentences and groups."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest

from sim_eval.core.cameras import project, unproject
from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import EpisodeKey, RenderConfig, Simulator
from sim_eval.envs.tasks import get_task, suite_tasks, suites
from sim_eval.envs.tasks.metaworld import SENTENCES
from sim_eval.policies.scripted.scripted_policy import find_demonstrator

MT50 = suite_tasks("metaworld/MT50")
SITE_RADIUS = 0.02  # of reach's goal


@pytest.fixture(scope="module")
def reach() -> Iterator[Simulator]:
    with closing(get_task("metaworld/reach-v3").make()) as simulator:
        yield simulator


@pytest.fixture(scope="module")
def reach_hidden() -> Iterator[Simulator]:
    with closing(get_task("metaworld/reach-v3").make(RenderConfig(hide_goal=True))) as simulator:
        yield simulator


def digests(simulator: Simulator, index: int) -> list[str]:
    """Of the states of an episode's first steps under actions that hit things."""
    key = EpisodeKey(simulator.task.name, "train", index)
    simulator.reset(key)
    found = [simulator.snapshot().digest]
    actions = key.rng("actions").uniform(-1, 1, (30, 4)) - np.array([0, 0, 0.5, 0])
    for action in actions:
        simulator.act(action)
        found.append(simulator.snapshot().digest)
    return found


@pytest.mark.parametrize(
    "task", [pytest.param(task, marks=[] if task in MT50[::6] else pytest.mark.slow) for task in MT50]
)
def test_an_episode_does_not_depend_on_what_ran_before_it(task: str):
    with closing(get_task(task).make()) as used, closing(get_task(task).make()) as fresh:
        first, other = digests(used, 0), digests(used, 1)
        assert digests(used, 0) == first == digests(fresh, 0)
        assert other != first


def test_a_state_holds_the_goal_and_where_the_hand_is_going(reach: Simulator):
    states = []
    for index in (0, 1):
        reach.reset(EpisodeKey("metaworld/reach-v3", "train", index))
        states.append(reach.snapshot())
    assert len(states[0].names) == len(states[0].state)
    goal = [states[1].names.index(f"drawn[{place}]") for place in (3, 4, 5)]
    np.testing.assert_array_equal(states[1].state[goal], reach.privileged()["observation"][-3:])
    assert not np.array_equal(states[0].state[goal], states[1].state[goal])
    target = states[1].names.index("mocap_pos[2]")
    reach.act(np.array([0.0, 0.0, 1.0, 0.0]))
    assert reach.snapshot().state[target] - states[1].state[target] == pytest.approx(0.01)


def test_every_camera_sees_the_table_where_it_is(reach: Simulator):
    reach.reset(EpisodeKey("metaworld/reach-v3", "train", 0))
    for name, view in reach.observe().views.items():
        points = unproject(view)
        table = (np.abs(points[..., 0]) < 0.3) & (np.abs(points[..., 1] - 0.7) < 0.2) & (np.abs(points[..., 2]) < 0.01)
        assert table.mean() > 0.02, name
        assert np.quantile(np.abs(points[table][:, 2]), 0.9) < 0.001, name  # the puck's foot is there too


def test_the_goal_is_drawn_where_it_is_and_can_be_hidden(reach: Simulator, reach_hidden: Simulator):
    key = EpisodeKey("metaworld/reach-v3", "train", 1)
    reach.reset(key)
    reach_hidden.reset(key)
    goal = reach.privileged()["observation"][-3:]
    shown, hidden = (each.observe(["agentview"]).views["agentview"] for each in (reach, reach_hidden))
    pixel, distance = project(goal, shown.intrinsics, shown.camera_to_world)
    column, row = np.floor(pixel).astype(int)
    assert shown.depth[row, column] == pytest.approx(distance - SITE_RADIUS, abs=0.01)
    assert hidden.depth[row, column] > distance
    assert shown.rgb[row, column].max() > 1.5 * np.sort(shown.rgb[row, column])[1]  # one plain colour
    assert np.abs(shown.rgb.astype(int) - hidden.rgb).max() > 50


def test_pictures_are_upright(reach: Simulator):
    for view in reach.observe().views.values():
        above, below = (
            project(np.array([0.0, 0.7, height]), view.intrinsics, view.camera_to_world)[0][1] for height in (0.1, 0.0)
        )
        looks_down = abs(view.camera_to_world[2, 2]) > 0.95
        assert above < below or looks_down


def test_a_policy_may_see_the_hand_and_nothing_of_the_objects(reach: Simulator):
    seen = reach.observe(())
    assert {name: len(values) for name, values in seen.proprio.items()} == reach.spec.proprio
    np.testing.assert_array_equal(np.concatenate(list(seen.proprio.values())), reach.privileged()["observation"][:4])


def test_it_steps_past_the_horizon_of_the_package(reach: Simulator):
    reach.reset(EpisodeKey("metaworld/reach-v3", "train", 2))
    for _ in range(reach.task.max_episode_steps + 1):
        reach.act(np.zeros(4))


def test_the_fields_tasks():
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS, MT10_V3

    assert set(SENTENCES) == set(ALL_V3_ENVIRONMENTS)
    assert {f"metaworld/{name}" for name in MT10_V3} == set(suite_tasks("metaworld/MT10"))
    groups = [suites()[f"metaworld/{group}"] for group in ("easy", "medium", "hard", "very_hard")]
    assert [len(group) for group in groups] == [28, 11, 6, 5]
    assert sorted(task for group in groups for task in group) == sorted(MT50)
    assert all(find_demonstrator(task) for task in MT50)
    key = EpisodeKey("metaworld/push-v3", "test", 0)
    assert get_task(key.task).instruction(key) == "Push the puck to a goal"
    assert get_task(key.task).instruction(key, "counterfactual") not in ("Push the puck to a goal", "")


def test_an_unknown_task_is_refused():
    with pytest.raises(SimEvalError, match="unknown task 'metaworld/reach-v2'"):
        get_task("metaworld/reach-v2")
