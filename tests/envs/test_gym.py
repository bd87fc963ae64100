"""The Gymnasium face."""

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import RecordVideo

import sim_eval  # noqa: F401  (registers the environments)
from sim_eval.core.errors import SimEvalError
from sim_eval.envs.gym import RenamedEnv, SimulatorEnv, gym_id, old_gym_id, register_all
from sim_eval.envs.tasks import own_tasks

LIFT, REACH = "sim_eval/robosuite-Lift-v0", "sim_eval/metaworld-reach-v3"
SMALL = {"height": 32, "width": 32}
VECTORS = """
import gymnasium, numpy as np, sim_eval
if __name__ == "__main__":
    alone = gymnasium.make(ID, height=32, width=32)
    view = alone.reset(seed=4)[0]["views"]["agentview"]  # the parent has rendered
    for mode, options in (("sync", {}), ("async", {"context": "fork"}), ("async", {"context": "spawn"})):
        envs = gymnasium.make_vec(ID, 2, vectorization_mode=mode, vector_kwargs=options, height=32, width=32)
        seen, info = envs.reset(seed=4)
        assert all(np.array_equal(seen["views"]["agentview"][part][0], view[part]) for part in view)
        assert seen["instruction"] == ("Reach a goal position",) * 2, seen["instruction"]
        assert [key[-2:] for key in info["key"]] == ["04", "05"]
        _, rewards, terminated, truncated, info = envs.step(np.zeros((2, 4)))
        assert not (rewards.any() or terminated.any() or truncated.any() or info["success"].any())
        envs.close()
        print("done", flush=True)
""".replace("ID", repr(REACH))


def checked(name: str) -> object:
    """In the default tests: robosuite's tasks and one of Meta-World's."""
    return (
        name if name.startswith("robosuite/") or gym_id(name) == REACH else pytest.param(name, marks=pytest.mark.slow)
    )


def sampled(name: str) -> bool:
    """Every fifth of LIBERO's 130 tasks, which differ in nothing but the scene, and all others."""
    suite, _, number = name.partition("/")
    return not suite.startswith("libero") or int(number) % 5 == 0


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("task", [checked(name) for name in own_tasks() if sampled(name)])
def test_check_env_has_nothing_to_say(task: str) -> None:
    env = gymnasium.make(gym_id(task), **SMALL)
    # Each rendering mode builds the environment again, which takes longest.
    rendered = task in ("robosuite/LiftWide", "metaworld/reach-v3", "libero_goal/0")
    check_env(env.unwrapped, skip_render_check=not rendered)
    env.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("task", [name for name in own_tasks() if name.startswith("robosuite/")])
def test_check_env_has_nothing_to_say_of_rendering_either(task: str) -> None:
    env = gymnasium.make(gym_id(task), **SMALL)
    check_env(env.unwrapped)
    env.close()


def test_the_id_has_the_tasks_horizon_and_another_can_be_given() -> None:
    assert gymnasium.spec(LIFT).max_episode_steps == own_tasks()["robosuite/Lift"].max_episode_steps == 200
    for horizon, given in ((500, {}), (3, {"max_episode_steps": 3}), (None, {"max_episode_steps": -1})):
        env = gymnasium.make(REACH, cameras=(), **given)
        assert env.spec is not None
        assert env.spec.max_episode_steps == horizon
        env.reset(seed=0)
        ends = [env.step(np.zeros(4))[2:4] for _ in range(horizon or 510)]
        assert ends == [(False, False)] * (len(ends) - 1) + [(False, horizon is not None)]
        env.close()


def test_success_has_both_names_is_the_reward_and_ends_an_episode_on_request() -> None:
    for terminate in (False, True):
        env = gymnasium.make(REACH, cameras=(), terminate_on_success=terminate)
        _, info = env.reset(seed=0)
        assert info["success"] is info["is_success"] is False
        while not info["success"]:
            seen = env.unwrapped.simulator.privileged()["observation"]  # type: ignore[attr-defined]
            _, reward, terminated, truncated, info = env.step(np.append(10 * (seen[36:39] - seen[:3]), 0.0))
            assert reward == float(info["success"]) == float(info["is_success"])
            assert terminated == (terminate and info["success"])
            assert not truncated
        env.close()


def test_seed_decides_the_episode() -> None:
    env = gymnasium.make("sim_eval/robosuite-LiftWide-v0", **SMALL)
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
    env = gymnasium.make("sim_eval/robosuite-Stack-v0", cameras=())
    sentences = [env.reset(seed=index)[0]["instruction"] for index in (0, 1, 2)]
    assert sentences == [
        goal[0] for goal in (*own_tasks()["robosuite/Stack"].goals, own_tasks()["robosuite/Stack"].goals[0])
    ]
    env.close()


def test_another_robot_has_its_own_observation_and_episodes() -> None:
    env = gymnasium.make(LIFT, robot="UR5e", cameras=())
    assert env.observation_space["proprio"]["joint_pos"].shape == (6,)
    observation, info = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    assert info["key"] == "robosuite/Lift@UR5e/train/00000"
    env.close()
    with pytest.raises(SimEvalError, match="has one robot: leave @UR5e out"):
        SimulatorEnv("metaworld/reach-v3", robot="UR5e")


def test_cameras_of_the_observation_and_of_the_picture_are_chosen_apart() -> None:
    with closing(SimulatorEnv("metaworld/reach-v3", "rgb_array", cameras=("wrist",), camera_name="corner2")) as env:
        seen, _ = env.reset(seed=0)
        assert list(seen["views"]) == ["wrist"]  # type: ignore[call-overload]
        assert env.observation_space.contains(seen)
        picture = env.render()
        assert np.array_equal(picture, env.simulator.observe(["corner2"]).views["corner2"].rgb)
        assert not np.array_equal(picture, env.simulator.observe(["wrist"]).views["wrist"].rgb)
    with closing(SimulatorEnv("metaworld/reach-v3", cameras=())) as env:
        seen, _ = env.reset(seed=0)
        assert list(seen) == ["proprio", "instruction"]
        assert env.observation_space.contains(seen)
    for wrong in ({"cameras": ["front"]}, {"camera_name": "front"}):
        with pytest.raises(SimEvalError, match=r"no camera 'front': choose from agentview, wrist, corner2"):
            SimulatorEnv("metaworld/reach-v3", **wrong)  # type: ignore[arg-type]


def test_render_gives_a_picture_or_depth_or_all_since_the_last_call() -> None:
    env = gymnasium.make(REACH, render_mode="depth_array", **SMALL)
    seen, _ = env.reset(seed=0)
    depth = env.render()
    assert isinstance(depth, np.ndarray)
    assert np.array_equal(depth, seen["views"]["agentview"]["depth"])
    assert 0.1 < depth.min() < depth.max()
    depth[:] = 0
    assert seen["views"]["agentview"]["depth"].all(), "a frame that a user draws on is his own"
    env.close()
    env = gymnasium.make(REACH, render_mode="rgb_array_list", **SMALL)
    env.reset(seed=0)
    env.step(np.ones(4))
    frames = env.render()
    assert isinstance(frames, list)
    assert [frame.shape for frame in frames] == [(32, 32, 3)] * 2
    env.close()
    with pytest.raises(SimEvalError, match=r"render_mode is 'ansi': choose rgb_array or depth_array"):
        SimulatorEnv("robosuite/Lift", "ansi")


@pytest.mark.parametrize(("name", "hertz"), [(LIFT, 20), (REACH, 80)])
def test_a_video_of_it_plays_at_the_control_rate(name: str, hertz: int) -> None:
    env = gymnasium.make(name, render_mode="rgb_array", **SMALL)
    assert env.metadata["render_fps"] == hertz
    env.close()


def test_record_video_writes_a_film(tmp_path: Path) -> None:
    pytest.importorskip("moviepy", reason="needs the extra 'video'")
    import imageio

    env = gymnasium.make(REACH, render_mode="rgb_array", max_episode_steps=40, **SMALL)
    env = RecordVideo(env, str(tmp_path / "films"), episode_trigger=lambda episode: True, disable_logger=True)
    env.reset(seed=0)
    while not env.step(np.ones(4))[3]:
        pass
    env.close()
    (film,) = (tmp_path / "films").glob("*.mp4")
    with imageio.get_reader(film) as reader:
        assert reader.get_meta_data()["fps"] == 80
        assert reader.get_meta_data()["duration"] == pytest.approx(0.5, abs=0.05)


def test_vector_environments_in_one_process_and_in_forked_and_spawned_ones(tmp_path: Path) -> None:
    (tmp_path / "vectors.py").write_text(VECTORS)
    unset = ("LP_NUM_THREADS", "MUJOCO_GL")  # with Mesa's threads a fork is hardest
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    path = os.pathsep.join([os.getcwd(), environment.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(tmp_path / "vectors.py")],
        env={**environment, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.split() == ["done"] * 3, done.stderr[-2000:]
    assert "Error" not in done.stderr


def test_every_task_has_an_id_of_its_own_that_names_its_suite() -> None:
    ids = {gym_id(name): name for name in own_tasks()}
    assert list(ids.values()) == list(own_tasks())
    assert {LIFT, REACH} <= set(ids)
    assert gym_id("libero_object/3") == old_gym_id("libero_object/3") == "sim_eval/libero_object-3-v0"
    for name, task in ids.items():
        assert gymnasium.spec(name).kwargs == {"task": task}
        assert gymnasium.spec(name).entry_point == "sim_eval.envs.gym:SimulatorEnv"


def test_an_id_of_version_0_2_still_works_and_names_todays() -> None:
    with pytest.warns(FutureWarning, match=r"sim_eval/reach-v3-v0 is now sim_eval/metaworld-reach-v3"):
        env = gymnasium.make("sim_eval/reach-v3-v0", cameras=())
    assert isinstance(env.unwrapped, RenamedEnv)
    assert env.reset(seed=1)[1]["key"] == "metaworld/reach-v3/train/00001"
    env.close()
    assert all(old_gym_id(name) in gymnasium.registry for name in own_tasks())


def test_an_id_of_another_package_is_left_to_it_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = gymnasium.envs.registration.EnvSpec(LIFT, entry_point="acme:Lift")
    monkeypatch.setitem(gymnasium.registry, LIFT, theirs)
    with pytest.warns(UserWarning, match=rf"{LIFT} is registered by another package: make robosuite/Lift by"):
        register_all()
    assert gymnasium.registry[LIFT] is theirs
