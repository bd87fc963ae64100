"""The Gymnasium face."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import sim_eval  # noqa: F401  (registers the environments)
from sim_eval.core.errors import SimEvalError
from sim_eval.envs.gym import gym_ids, register_all
from sim_eval.envs.tasks import own_tasks


@pytest.mark.filterwarnings("ignore")
def test_check_env_passes() -> None:
    env = gymnasium.make("sim_eval/LiftWide-v0", render_mode="rgb_array")
    check_env(env.unwrapped)
    env.close()


def test_horizon_truncates_and_nothing_terminates() -> None:
    env = gymnasium.make("sim_eval/Lift-v0", height=32, width=32)
    observation, info = env.reset(seed=7)
    assert info["is_success"] is False
    assert env.observation_space.contains(observation)
    for step in range(1, 201):
        _, reward, terminated, truncated, info = env.step(np.zeros(7))
        assert not terminated
        assert truncated == (step == 200)
        assert reward == float(info["is_success"])
    env.close()


def test_seed_decides_the_episode() -> None:
    env = gymnasium.make("sim_eval/LiftWide-v0", height=32, width=32)
    first, info = env.reset(seed=3)
    other, _ = env.reset(seed=4)
    again, _ = env.reset(seed=3)
    depths = [each["views"]["agentview"]["depth"] for each in (first, other, again)]
    assert np.array_equal(depths[0], depths[2])
    assert not np.array_equal(depths[0], depths[1])
    assert info["key"] == "robosuite/LiftWide/train/00003"
    _, info = env.reset(options={"split": "test", "index": 5})
    assert info["key"] == "robosuite/LiftWide/test/00005"
    env.close()


def test_the_instruction_is_the_tasks_for_the_episode() -> None:
    env = gymnasium.make("sim_eval/Stack-v0", height=32, width=32)
    sentences = [env.reset(seed=index)[0]["instruction"] for index in (0, 1, 2)]
    assert sentences == [
        goal[0] for goal in (*own_tasks()["robosuite/Stack"].goals, own_tasks()["robosuite/Stack"].goals[0])
    ]
    env.close()


@pytest.mark.parametrize(("gym_id", "hertz"), [("sim_eval/Lift-v0", 20), ("sim_eval/reach-v3-v0", 80)])
def test_a_video_of_it_plays_at_the_control_rate(gym_id: str, hertz: int) -> None:
    env = gymnasium.make(gym_id, render_mode="rgb_array", height=32, width=32)
    assert env.metadata["render_fps"] == hertz
    env.close()


def test_every_task_has_an_id_and_two_tasks_never_share_one() -> None:
    ids = gym_ids(own_tasks())
    assert sorted(ids.values()) == sorted(own_tasks())
    assert all(gymnasium.registry[gym_id].kwargs == {"task": name} for gym_id, name in ids.items())
    with pytest.raises(SimEvalError, match=r"robosuite/Lift and acme/Lift would both be sim_eval/Lift-v0"):
        gym_ids(["robosuite/Lift", "acme/Lift"])


def test_an_id_of_another_package_is_left_to_it_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = gymnasium.envs.registration.EnvSpec("sim_eval/Lift-v0", entry_point="acme:Lift")
    monkeypatch.setitem(gymnasium.registry, "sim_eval/Lift-v0", theirs)
    with pytest.warns(UserWarning, match=r"sim_eval/Lift-v0 is registered by another package: make robosuite/Lift by"):
        register_all()
    assert gymnasium.registry["sim_eval/Lift-v0"] is theirs
