"""Every registered task: a key decides its episode, its phases come in order, and only what is real is seen."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest

from sim_eval.core.cameras import unproject
from sim_eval.core.types import EpisodeKey, observe_task
from sim_eval.envs.robosuite_sim import RobosuiteSimulator
from sim_eval.envs.tasks import get_task, task_names
from sim_eval.envs.tasks.stack import phase
from sim_eval.policies.policy import PolicyRequest
from sim_eval.policies.registry import load_policy

if TYPE_CHECKING:
    from robosuite.environments.manipulation.stack import Stack

CAN = "robosuite/PickPlaceCan"


@pytest.fixture(scope="module", params=["robosuite/Stack", CAN])
def simulator(request: pytest.FixtureRequest) -> Iterator[RobosuiteSimulator]:
    made = get_task(request.param).make()
    assert isinstance(made, RobosuiteSimulator)
    yield made
    made.close()


def test_a_key_alone_decides_the_episode(simulator: RobosuiteSimulator) -> None:
    def trajectory(index: int) -> list[str]:
        key = EpisodeKey(simulator.task.name, "test", index)
        simulator.reset(key)
        rng = key.rng("test")
        digests = [simulator.snapshot().digest]
        for _ in range(10):
            simulator.act(rng.uniform(-1, 1, 7))
            digests.append(simulator.snapshot().digest)
        return digests

    forward = [trajectory(index) for index in (0, 1, 2)]
    assert [trajectory(index) for index in (2, 0, 1)] == [forward[index] for index in (2, 0, 1)]
    assert len({digests[0] for digests in forward}) == 3


def test_phases_come_in_order_and_the_last_is_success(simulator: RobosuiteSimulator) -> None:
    task, expert = simulator.task, load_policy("scripted")
    key = EpisodeKey(task.name, "val", 0)
    simulator.reset(key)
    assert simulator.act(np.zeros(7)).phase == 0
    reached = [0]
    for step in range(task.max_episode_steps):
        seen = observe_task(simulator, task.instruction(key), ())
        request = PolicyRequest(seen, key, step, simulator.spec.action, simulator.privileged())
        status = simulator.act(expert.predict([request])[0].actions[0])
        reached.append(max(reached[-1], status.phase))
        assert status.success == (status.phase == len(task.phases))
        if status.success:
            break
    assert sorted(set(reached)) == list(range(len(task.phases) + 1))


def test_everything_that_moves_starts_in_the_workspace_and_is_seen(simulator: RobosuiteSimulator) -> None:
    for index in range(8):
        simulator.reset(EpisodeKey(simulator.task.name, "train", index))
        seen, state = simulator.observe(["agentview"]), simulator.privileged()
        points = unproject(seen.views["agentview"]).reshape(-1, 3)
        for name in {"red", "green"} if "red_pos" in state else {"can"}:
            assert simulator.task.workspace.contains(state[f"{name}_pos"])
            assert np.sum(np.linalg.norm(points - state[f"{name}_pos"], axis=1) < 0.05) >= 4


def test_the_phantoms_of_pick_place_are_nowhere() -> None:
    simulator = get_task(CAN).make()
    assert isinstance(simulator, RobosuiteSimulator)
    model = simulator._model
    phantoms = [index for index in range(model.ngeom) if model.geom(index).name.startswith("Visual")]
    assert len(phantoms) == 4
    simulator.reset(EpisodeKey(CAN, "val", 0))
    assert not np.isin(simulator.segmentation("agentview"), phantoms).any()
    points = unproject(simulator.observe(["agentview"]).views["agentview"]).reshape(-1, 3)
    where = simulator._scene_camera.data.xpos[model.body("VisualCan_main").id]
    inside = np.linalg.norm((points - where)[:, :2], axis=1) < 0.02
    assert inside.any()
    assert points[inside, 2].max() < 0.825  # the bin's floor, not the can that is drawn there
    simulator.close()


@pytest.mark.parametrize("name", task_names())
def test_consecutive_keys_share_the_goals_out(name: str) -> None:
    task = get_task(name)
    keys = [EpisodeKey(name, "test", index) for index in range(2 * len(task.goals))]
    assert [task.goal(key) for key in keys] == 2 * list(range(len(task.goals)))
    assert all(task.instruction(key) in task.goals[task.goal(key)] for key in keys)


@pytest.mark.parametrize("upper", ["red", "green"])
def test_a_lifted_tower_is_stacked_in_its_own_order_only(upper: str) -> None:
    simulator = get_task("robosuite/Stack").make()
    assert isinstance(simulator, RobosuiteSimulator)
    simulator.reset(EpisodeKey("robosuite/Stack", "val", 0))
    env = cast("Stack", simulator._env)
    cubes = (env.cubeA, env.cubeB) if upper == "red" else (env.cubeB, env.cubeA)
    # They touch, and the lower one is in the air too: there robosuite's rule holds for both orders.
    heights = 1.0 + cubes[0].size[2] + cubes[1].size[2] - 0.0005, 1.0
    for cube, height in zip(cubes, heights, strict=True):
        env.sim.data.set_joint_qpos(cube.joints[0], np.array([0.1, 0.1, height, 1, 0, 0, 0]))
    env.sim.forward()
    assert env.check_contact(*cubes)
    assert [phase(env, goal) == 4 for goal in (0, 1)] == [upper == "red", upper == "green"]
    simulator.close()
