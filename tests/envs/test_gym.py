"""The Gymnasium face."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import sim_eval  # noqa: F401  (registers the environments)


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
