"""Any gymnasium.Env of the Dict layout as a simulator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import ActionSpec, EpisodeKey, Status, Task, WorkspaceBox
from sim_eval.envs.gym import SimulatorEnv
from sim_eval.envs.gym_simulator import GymSimulator
from sim_eval.envs.tasks import get_task

BOX = WorkspaceBox((-2.0, -2.0, -1.0), (2.0, 2.0, 1.0))
ACTION = ActionSpec(("dx",), (-1.0,), (1.0,), "ee_delta_position", 10.0)
TASK = Task(
    "acme/Line",
    (("go left", "to the left"), ("go right",)),
    20,
    BOX,
    ("near", "there"),
    lambda task, options: GymSimulator(task, LineEnv(*options.size("top")), "point", ACTION),
)


class LineEnv(gymnasium.Env[Any, Any]):
    """A point on a line that must come to one of its ends; written as a third party would."""

    def __init__(self, height: int = 8, width: int = 12) -> None:
        self.shape = (height, width)
        self.steps_after_the_end, self.success_name = 0, "is_success"
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        view = {
            "rgb": spaces.Box(0, 255, (*self.shape, 3), np.uint8),
            "depth": spaces.Box(0, 10, self.shape, np.float32),
            "intrinsics": spaces.Box(-np.inf, np.inf, (3, 3), np.float64),
            "camera_to_world": spaces.Box(-np.inf, np.inf, (4, 4), np.float64),
        }
        self.observation_space = spaces.Dict(
            {
                "views": spaces.Dict({"top": spaces.Dict(view)}),
                "proprio": spaces.Dict({"eef_pos": spaces.Box(-np.inf, np.inf, (3,), np.float32)}),
                "instruction": spaces.Text(64),
            }
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.goal, self.over = (options or {}).get("goal", 0), False
        self.position = float(self.np_random.uniform(-0.1, 0.1))
        return self.look(), {}

    def look(self) -> dict[str, Any]:
        view = {
            "rgb": np.full((*self.shape, 3), 128 + round(100 * self.position), np.uint8),
            "depth": np.full(self.shape, 1 + self.position, np.float32),
            "intrinsics": np.eye(3),
            "camera_to_world": np.eye(4),
        }
        proprio = {"eef_pos": np.array([self.position, 0, 0], np.float32)}
        return {"views": {"top": view}, "proprio": proprio, "instruction": TASK.goals[self.goal][0]}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.steps_after_the_end += self.over
        self.position += 0.1 * float(action[0])
        self.over = (self.position if self.goal else -self.position) > 0.5
        return self.look(), 0.0, self.over, False, {self.success_name: self.over}


def make(**changes: Any) -> GymSimulator:
    return GymSimulator(replace(TASK, **changes), LineEnv(), "point", ACTION)


def test_ours_behind_gymnasium_and_back_is_the_same_simulator() -> None:
    ours = get_task("robosuite/Lift").make()
    task, env = get_task("robosuite/Lift"), SimulatorEnv("robosuite/Lift")
    back = GymSimulator(task, env, "Panda", ours.spec.action, lambda env: env.unwrapped.simulator.snapshot().state)
    assert back.spec == ours.spec
    key = EpisodeKey(task.name, "test", 3)
    back.reset(key)
    seed = int(key.rng("reset").integers(2**31))
    ours.reset(EpisodeKey(task.name, "train", seed))  # the episode that SimulatorEnv numbers by that seed
    for step in range(3):
        assert back.snapshot().digest == ours.snapshot().digest
        here, there = back.observe(["wrist"]), ours.observe(["wrist"])
        assert list(here.views) == ["wrist"]
        for name, array in vars(there.views["wrist"]).items():
            assert np.array_equal(getattr(here.views["wrist"], name), array)
        assert all(np.array_equal(here.proprio[name], vector) for name, vector in there.proprio.items())
        action = key.rng(f"action/{step}").uniform(-1, 1, 7)
        assert back.act(action) == ours.act(action)
    back.close()
    ours.close()


def test_the_key_decides_the_episode_and_its_goal() -> None:
    simulator, starts = make(), []
    for index in (0, 1, 2, 0):
        simulator.reset(EpisodeKey(TASK.name, "test", index))
        seen = simulator.observe()
        environment = simulator._environment
        assert isinstance(environment, LineEnv)
        assert environment.goal == index % 2
        assert list(seen.views) == ["top"]
        starts.append(simulator.snapshot().digest)
    assert starts[0] == starts[3]
    assert len(set(starts)) == 3


def test_success_ends_an_environment_that_terminates_and_it_is_not_stepped_again() -> None:
    simulator = make()
    simulator.reset(EpisodeKey(TASK.name, "test", 1))
    statuses = [simulator.act(np.ones(1)) for _ in range(8)]
    assert statuses[0] == Status(False, 0)
    assert statuses[-3:] == [Status(True, 2)] * 3
    environment = simulator._environment
    assert isinstance(environment, LineEnv)
    assert environment.steps_after_the_end == 0
    simulator.reset(EpisodeKey(TASK.name, "test", 1))
    assert simulator.act(np.ones(1)) == Status(False, 0)


@pytest.mark.parametrize("name", ["success", "is_success"])
def test_success_has_either_name(name: str) -> None:
    environment = LineEnv()
    environment.success_name = name
    simulator = GymSimulator(TASK, environment, "point", ACTION)
    simulator.reset(EpisodeKey(TASK.name, "test", 1))
    assert [simulator.act(np.ones(1)).success for _ in range(8)][::7] == [False, True]


def test_an_environment_without_success_is_refused() -> None:
    environment = LineEnv()
    environment.success_name = "won"
    simulator = GymSimulator(TASK, environment, "point", ACTION)
    simulator.reset(EpisodeKey(TASK.name, "test", 1))
    with pytest.raises(SimEvalError, match=r"acme/Line: .* neither 'success' nor 'is_success': add one in step"):
        simulator.act(np.ones(1))


def without(*path: str) -> Callable[[LineEnv], None]:
    def change(environment: LineEnv) -> None:
        space: Any = environment.observation_space
        for name in path[:-1]:
            space = space[name]
        del space.spaces[path[-1]]

    return change


def with_shape(name: str, *shape: int) -> Callable[[LineEnv], None]:
    def change(environment: LineEnv) -> None:
        space: Any = environment.observation_space
        place = space["proprio"] if name == "eef_pos" else space["views"]["top"]
        place.spaces[name] = spaces.Box(0, 1, shape, np.float32)

    return change


def with_actions(space: gymnasium.Space[Any]) -> Callable[[LineEnv], None]:
    return lambda environment: setattr(environment, "action_space", space)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("views"), "lacks 'views'"),
        (without("instruction"), "lacks 'instruction'"),
        (without("proprio", "eef_pos"), "lacks 'eef_pos'"),
        (without("views", "top", "depth"), "lacks 'depth'"),
        (with_shape("depth", 12, 8), "camera 'top' has the shapes"),
        (with_shape("rgb", 8), "camera 'top' has the shapes"),
        (with_shape("eef_pos", 3, 1), "proprio 'eef_pos' has the shape"),
        (with_actions(spaces.Discrete(3)), "the action space is Discrete"),
        (with_actions(spaces.Box(-1.0, 2.0, (1,))), "make them equal"),
        (with_actions(spaces.Box(-1.0, 1.0, (2,))), "make them equal"),
    ],
)
def test_another_layout_is_refused_in_one_line(change: Callable[[LineEnv], None], words: str) -> None:
    environment = LineEnv()
    change(environment)
    with pytest.raises(SimEvalError) as told:
        GymSimulator(TASK, environment, "point", ACTION)
    assert words in str(told.value)
    assert str(told.value).startswith("acme/Line: ")
    assert "\n" not in str(told.value)


def test_an_environment_that_asks_for_something_else_is_refused() -> None:
    simulator = make(goals=(("go up",),))
    with pytest.raises(SimEvalError, match="the environment asks for 'go left', the task for 'go up'"):
        simulator.reset(EpisodeKey(TASK.name, "test", 0))
