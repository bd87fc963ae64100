"""Gymnasium environments of all tasks: ``gymnasium.make("sim_eval/LiftWide-v0")`` after ``import sim_eval``.

``step`` is one control step and one rendered observation. ``terminated`` is always False; ``truncated`` is True after
the task's ``max_episode_steps``. ``info["is_success"]`` is the task's rule at this instant; the reward is 1
while it holds.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import TypeAlias

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import EpisodeKey, FloatArray, Observation, RenderConfig, RenderMode, observe_task
from sim_eval.envs.tasks import choose_render, get_task, own_tasks

# Nested dicts as in the observation space; Gymnasium's own type for a Dict space is not more precise.
GymObservation: TypeAlias = dict[str, object]

# Spaces need bounds; nothing in a scene is farther away.
MAX_DEPTH_METRES = 1e3
PRINTABLE = "".join(chr(code) for code in range(32, 127))


class SimulatorEnv(gymnasium.Env[GymObservation, FloatArray]):
    """A simulator as a Gymnasium environment.

    Observation: ``views`` {camera: rgb, depth, intrinsics, camera_to_world}, ``proprio`` {field: vector} and
    ``instruction``, as in :class:`sim_eval.core.types.Observation`. ``metadata["render_fps"]`` is the control rate.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012  (Gymnasium declares it so)

    def __init__(
        self,
        task: str,
        render_mode: str | None = None,
        render: RenderMode | None = None,
        height: int = 128,
        width: int = 128,
        split: str = "train",
    ) -> None:
        """Arguments are those of :class:`sim_eval.core.types.RenderConfig` and Gymnasium.

        Args:
            render: the rendering mode; None: the task's default.
            split: of the episodes that seeds number, see :meth:`reset`.
        """
        self.render_mode = render_mode
        self._split = split
        self._simulator = get_task(task).make(RenderConfig(choose_render(render, [task]), height, width))
        self._steps = 0
        self._instruction = ""
        spec = self._simulator.spec
        self.metadata = {**self.metadata, "render_fps": spec.action.control_hz}
        self.action_space = spaces.Box(np.array(spec.action.low), np.array(spec.action.high), dtype=np.float64)
        self.observation_space = spaces.Dict(  # type: ignore[assignment]  # Gymnasium's Dict is invariant
            {
                "views": spaces.Dict({name: self._view_space(*size) for name, size in spec.cameras.items()}),
                "proprio": spaces.Dict(
                    {name: spaces.Box(-np.inf, np.inf, (length,), np.float64) for name, length in spec.proprio.items()}
                ),
                "instruction": spaces.Text(max_length=256, charset=PRINTABLE),
            }
        )

    @staticmethod
    def _view_space(height: int, width: int) -> spaces.Dict:
        return spaces.Dict(
            {
                "rgb": spaces.Box(0, 255, (height, width, 3), np.uint8),
                "depth": spaces.Box(0, MAX_DEPTH_METRES, (height, width), np.float32),
                "intrinsics": spaces.Box(-np.inf, np.inf, (3, 3), np.float64),
                "camera_to_world": spaces.Box(-np.inf, np.inf, (4, 4), np.float64),
            }
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, object] | None = None
    ) -> tuple[GymObservation, dict[str, object]]:
        """Starts the episode (task, split, index).

        The index is ``options["index"]``, or the seed, or else random; ``options["split"]`` overrides the split.
        """
        super().reset(seed=seed)
        options = options or {}
        index = options.get("index", seed if seed is not None else int(self.np_random.integers(2**31)))
        key = EpisodeKey(self._simulator.task.name, str(options.get("split", self._split)), int(str(index)))
        self._instruction = self._simulator.task.instruction(key)
        self._simulator.reset(key)
        self._steps = 0
        return self._observe(), {"is_success": False, "key": str(key)}

    def step(self, action: FloatArray) -> tuple[GymObservation, float, bool, bool, dict[str, object]]:
        status = self._simulator.act(self._simulator.spec.action.clip(np.asarray(action, np.float64)))
        self._steps += 1
        truncated = self._steps >= self._simulator.task.max_episode_steps
        info: dict[str, object] = {"is_success": status.success, "phase": status.phase}
        return self._observe(), float(status.success), False, truncated, info

    def render(self) -> NDArray[np.uint8] | None:
        """The first camera's picture, uint8 [H, W, 3]."""
        if self.render_mode != "rgb_array":
            return None
        (view,) = self._simulator.observe([next(iter(self._simulator.spec.cameras))]).views.values()
        return view.rgb

    def close(self) -> None:
        self._simulator.close()

    def _observe(self) -> GymObservation:
        return as_dict(observe_task(self._simulator, self._instruction))


def as_dict(observation: Observation) -> GymObservation:
    """The observation as nested dicts, as in the observation space; depth is clipped to the space."""
    return {
        "views": {
            name: {**vars(view), "depth": np.clip(view.depth, 0, MAX_DEPTH_METRES)}
            for name, view in observation.views.items()
        },
        "proprio": dict(observation.proprio),
        "instruction": observation.instruction,
    }


def gym_ids(tasks: Iterable[str]) -> dict[str, str]:
    """Gymnasium id -> task: ``sim_eval/<Task>-v0``, or ``sim_eval/libero_object-3-v0`` for a task named by a number.

    Raises:
        SimEvalError: two tasks would have the same id; names them.
    """
    ids: dict[str, str] = {}
    for name in tasks:
        task = name.split("/")[-1]
        gym_id = f"sim_eval/{name.replace('/', '-') if task.isdigit() else task}-v0"
        if gym_id in ids:
            raise SimEvalError(f"{ids[gym_id]} and {name} would both be {gym_id} in Gymnasium: rename one of them")
        ids[gym_id] = name
    return ids


def register_all() -> None:
    """Registers our tasks; a simulator is imported only when an environment is made.

    Warns of an id that another package has registered, and leaves it to that package.
    """
    for gym_id, name in gym_ids(own_tasks()).items():
        existing = gymnasium.registry.get(gym_id)
        if existing is None:
            gymnasium.register(gym_id, entry_point="sim_eval.envs.gym:SimulatorEnv", kwargs={"task": name})
        elif existing.kwargs != {"task": name}:
            warnings.warn(
                f"{gym_id} is registered by another package: make {name} by sim_eval.envs.gym.SimulatorEnv('{name}')",
                stacklevel=2,
            )
