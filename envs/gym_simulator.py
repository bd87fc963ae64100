"""A ``gymnasium.Env`` with the observation layout of :mod:`sim_eval.envs.gym` as a Simulator.

PUSH = Task("acme/Push", goals=(("push the block",),), max_episode_steps=100, workspace=BOX, phases=("push",),
            factory=lambda task, render: GymSimulator(task, PushEnv(*render.size("top")), "UR5", ACTION))
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import gymnasium
import numpy as np
from gymnasium import spaces

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import (
    ActionSpec,
    CameraView,
    EnvironmentSpec,
    EpisodeKey,
    FloatArray,
    SensorReadings,
    Snapshot,
    Status,
    Task,
)

VIEW_PARTS = {"rgb": np.uint8, "depth": np.float32, "intrinsics": np.float64, "camera_to_world": np.float64}
AnyEnv: TypeAlias = gymnasium.Env[Any, Any]


class GymSimulator:
    """See :class:`sim_eval.core.types.Simulator`.

    The seed given to ``reset`` comes from the episode's key and must decide everything random. For a task with several
    goals, ``options["goal"]`` is the goal's index, and the environment's instruction must be one of that goal's.
    Success is ``info["success"]`` or ``info["is_success"]``; ``info["phase"]`` is optional and counts the fulfilled
    phases. An environment that has terminated or truncated is not stepped again: its last observation and status stay.

    Args:
        environment: its observations are ``views`` {camera: rgb, depth, intrinsics, camera_to_world}, ``proprio``
            {field: vector; eef_pos is required} and ``instruction``, in the units and frames of
            :mod:`sim_eval.core.types`.
        robot: its name.
        action: the meaning of actions; its bounds are those of the action space.
        state: returns the environment's full state [n], for snapshots. Without it a snapshot holds proprioception only,
            and a replay verifies no more than that.

    Raises:
        SimEvalError: the environment's spaces differ; says where.
    """

    def __init__(
        self,
        task: Task,
        environment: AnyEnv,
        robot: str,
        action: ActionSpec,
        state: Callable[[AnyEnv], FloatArray] | None = None,
    ) -> None:
        self.task, self._environment, self._state = task, environment, state
        self.spec = EnvironmentSpec(robot, *_layout(task.name, environment.observation_space), action)
        box = environment.action_space
        if (
            not isinstance(box, spaces.Box)
            or box.shape != (action.dim,)
            or not (np.array_equal(box.low, action.low) and np.array_equal(box.high, action.high))
        ):
            raise SimEvalError(
                f"{task.name}: the action space is {box}, the action's {action.dim} names have bounds {action.low} to "
                f"{action.high}: make them equal"
            )
        self._readings: SensorReadings | None = None
        self._last: Status | None = None  # after the end; None: it goes on

    def reset(self, key: EpisodeKey) -> None:
        goal = self.task.goal(key)
        options = {"goal": goal} if len(self.task.goals) > 1 else None
        observation, _ = self._environment.reset(seed=int(key.rng("reset").integers(2**31)), options=options)
        self._last = None
        self._readings = _readings(observation)
        if (instruction := str(observation["instruction"])) not in self.task.goals[goal]:
            raise SimEvalError(
                f"{self.task.name}: the environment asks for '{instruction}', the task for "
                f"'{self.task.goals[goal][0]}': give the task the environment's sentences"
            )

    def act(self, action: FloatArray) -> Status:
        if self._last is not None:
            return self._last
        space = self._environment.action_space
        observation, _, terminated, truncated, info = self._environment.step(np.asarray(action, space.dtype))
        self._readings = _readings(observation)
        success = _success(self.task.name, info)
        status = Status(success, int(info.get("phase", len(self.task.phases) if success else 0)))
        if terminated or truncated:
            self._last = status
        return status

    def observe(self, cameras: Sequence[str] | None = None) -> SensorReadings:
        """The readings of the last step: Gymnasium's environments render at every step."""
        views = self._now().views
        return SensorReadings(
            {name: views[name] for name in (views if cameras is None else cameras)}, self._now().proprio
        )

    def snapshot(self) -> Snapshot:
        if self._state is not None:
            return Snapshot(np.asarray(self._state(self._environment), np.float64))
        return Snapshot(np.concatenate(list(self._now().proprio.values())))

    def privileged(self) -> Mapping[str, FloatArray]:
        """Nothing: Gymnasium does not provide it."""
        return {}

    def provenance(self) -> Mapping[str, str]:
        known = self._environment.spec
        name = known.id if known else type(self._environment.unwrapped).__name__
        return {"env_args": json.dumps({"env_name": name, "env_kwargs": {}}), "model_file": ""}

    def close(self) -> None:
        self._environment.close()

    def _now(self) -> SensorReadings:
        if self._readings is None:
            raise SimEvalError(f"{self.task.name}: reset it before the first observation")
        return self._readings


def _success(task: str, info: Mapping[str, Any]) -> bool:
    for name in ("success", "is_success"):
        if name in info:
            return bool(info[name])
    raise SimEvalError(f"{task}: the environment's info has neither 'success' nor 'is_success': add one in step")


def _readings(observation: Any) -> SensorReadings:
    return SensorReadings(
        views={
            name: CameraView(**{part: np.array(view[part], kind) for part, kind in VIEW_PARTS.items()})
            for name, view in observation["views"].items()
        },
        proprio={name: np.array(vector, np.float64) for name, vector in observation["proprio"].items()},
    )


def _layout(task: str, space: gymnasium.Space[Any]) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
    """Camera sizes and proprio lengths of an observation space."""
    views, proprio = _part(task, space, "views"), _part(task, space, "proprio")
    _part(task, space, "instruction")
    _part(task, proprio, "eef_pos")
    cameras = {}
    for name in _keys(views):
        shapes = [_part(task, _part(task, views, name), part).shape for part in VIEW_PARTS]
        height, width = (*(shapes[0] or ()), 0, 0)[:2]
        wanted = [(height, width, 3), (height, width), (3, 3), (4, 4)]
        if shapes != wanted:
            raise SimEvalError(
                f"{task}: camera '{name}' has the shapes {shapes} for {', '.join(VIEW_PARTS)}: [H, W, 3], [H, W], "
                "[3, 3] and [4, 4] are needed"
            )
        cameras[name] = (height, width)
    lengths = {}
    for name in _keys(proprio):
        shape = _part(task, proprio, name).shape
        if shape is None or len(shape) != 1:
            raise SimEvalError(f"{task}: proprio '{name}' has the shape {shape}: a vector is needed")
        lengths[name] = shape[0]
    return cameras, lengths


def _keys(space: gymnasium.Space[Any]) -> list[str]:
    return list(space.spaces) if isinstance(space, spaces.Dict) else []


def _part(task: str, space: gymnasium.Space[Any], name: str) -> gymnasium.Space[Any]:
    if not isinstance(space, spaces.Dict) or name not in space.spaces:
        raise SimEvalError(f"{task}: the observation space lacks '{name}'; see sim_eval.envs.gym for the layout")
    return space.spaces[name]
