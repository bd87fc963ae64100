"""Gymnasium environments of all tasks: ``gymnasium.make("sim_eval/robosuite-LiftWide-v0")`` after ``import sim_eval``.

``step`` is one control step and one rendered observation. The task's ``max_episode_steps`` is the id's: Gymnasium
truncates. ``info["success"]``, also named ``info["is_success"]``, is the task's rule at this instant; the reward is 1
while it holds.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, SupportsFloat, TypeAlias

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import read_from_shared_memory
from numpy.typing import NDArray

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import (
    EpisodeKey,
    FloatArray,
    Observation,
    RenderConfig,
    RenderMode,
    Simulator,
    Status,
    observe_task,
)
from sim_eval.envs.tasks import choose_render, get_task, own_tasks

# Nested dicts as in the observation space; Gymnasium's own type for a Dict space is not more precise.
GymObservation: TypeAlias = dict[str, object]

# Spaces need bounds; nothing in a scene is farther away, and no focal length is longer.
MAX_METRES = 1e3
MAX_PIXELS = 1e6
PRINTABLE = "".join(chr(code) for code in range(32, 127))


class Sentence(spaces.Text):
    """A text that ``AsyncVectorEnv`` shows as it is now. Of a plain Text it shows what memory held at its creation."""


class _SharedTexts(Sequence[str]):
    """The texts in a memory that other processes write; a copy is a tuple."""

    def __init__(self, read: Callable[[], tuple[str, ...]]) -> None:
        self._read = read

    def __getitem__(self, index: Any) -> Any:
        return self._read()[index]

    def __len__(self) -> int:
        return len(self._read())

    def __deepcopy__(self, memo: object) -> tuple[str, ...]:
        return self._read()


@read_from_shared_memory.register(Sentence)
def _read_sentences(space: Sentence, shared_memory: Any, n: int = 1) -> Any:
    read: Any = read_from_shared_memory.dispatch(spaces.Text)
    return _SharedTexts(lambda: read(space, shared_memory, n))


class SimulatorEnv(gymnasium.Env[GymObservation, FloatArray]):
    """A simulator as a Gymnasium environment.

    Observation: ``views`` {camera: rgb, depth, intrinsics, camera_to_world}, ``proprio`` {field: vector} and
    ``instruction``, as in :class:`sim_eval.core.types.Observation`. ``metadata["render_fps"]`` is the control rate.

    Attributes:
        simulator: the running task; its ``privileged()`` gives the poses of objects, for rewards of your own.
    """

    metadata = {"render_modes": ["rgb_array", "depth_array"]}  # noqa: RUF012  (Gymnasium declares it so)

    def __init__(
        self,
        task: str,
        render_mode: str | None = None,
        robot: str | None = None,
        render: RenderMode | None = None,
        height: int = 128,
        width: int = 128,
        hide_goal: bool = False,
        cameras: Sequence[str] | None = None,
        camera_name: str | None = None,
        split: str = "train",
        terminate_on_success: bool = False,
    ) -> None:
        """``render`` to ``hide_goal`` are those of :class:`sim_eval.core.types.RenderConfig`, for all pictures.

        Args:
            task: the task's name, as ``robosuite/Lift``.
            render_mode: what :meth:`render` returns: ``rgb_array`` or ``depth_array``.
            robot: another arm of robosuite's, as ``UR5e``; None: the task's.
            render: the look, ``fast`` or ``faithful``; None: the task's default.
            cameras: of the observation; None: all; empty: the observation has no ``views``, and no step renders.
            camera_name: of :meth:`render`; None: the task's first.
            split: of the episodes that seeds number, see :meth:`reset`.
            terminate_on_success: otherwise ``terminated`` is always False.

        Raises:
            SimEvalError: there is no such task, robot, camera or render mode.
        """
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise SimEvalError(f"render_mode is '{render_mode}': choose rgb_array or depth_array")
        task = f"{task}@{robot}" if robot else task
        self.render_mode = render_mode
        self._split, self._terminate_on_success = split, terminate_on_success
        config = RenderConfig(choose_render(render, [task]), height, width, hide_goal)
        self.simulator: Simulator = get_task(task).make(config)
        self._instruction = ""
        spec = self.simulator.spec
        self._cameras = list(spec.cameras) if cameras is None else list(cameras)
        self._camera_name = camera_name or next(iter(spec.cameras))
        for name in (*self._cameras, self._camera_name):
            if name not in spec.cameras:
                self.close()
                raise SimEvalError(f"{task} has no camera '{name}': choose from {', '.join(spec.cameras)}")
        self.metadata = {**self.metadata, "render_fps": spec.action.control_hz}
        self.action_space = spaces.Box(np.array(spec.action.low), np.array(spec.action.high), dtype=np.float64)
        parts: dict[str, spaces.Space[Any]] = {
            "views": spaces.Dict({name: self._view_space(*spec.cameras[name]) for name in self._cameras}),
            "proprio": spaces.Dict({name: _box(MAX_METRES, length) for name, length in spec.proprio.items()}),
            "instruction": Sentence(max_length=256, charset=PRINTABLE),
        }
        if not self._cameras:  # Gymnasium allows no empty Dict
            del parts["views"]
        self.observation_space = spaces.Dict(parts)  # type: ignore[assignment]  # Gymnasium's Dict is invariant

    @staticmethod
    def _view_space(height: int, width: int) -> spaces.Dict:
        return spaces.Dict(
            {
                "rgb": spaces.Box(0, 255, (height, width, 3), np.uint8),
                "depth": spaces.Box(0, MAX_METRES, (height, width), np.float32),
                "intrinsics": _box(MAX_PIXELS, 3, 3),
                "camera_to_world": _box(MAX_METRES, 4, 4),
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
        task = self.simulator.task
        key = EpisodeKey(task.name, str(options.get("split", self._split)), int(str(index)))
        self._instruction = task.instruction(key)
        self.simulator.reset(key)
        return self._observe(), {**_info(Status(success=False, phase=0)), "key": str(key)}

    def step(self, action: FloatArray) -> tuple[GymObservation, SupportsFloat, bool, bool, dict[str, object]]:
        status = self.simulator.act(self.simulator.spec.action.clip(np.asarray(action, np.float64)))
        terminated = self._terminate_on_success and status.success
        return self._observe(), float(status.success), terminated, False, _info(status)

    def render(self) -> NDArray[Any] | None:
        """A camera's picture: ``rgb_array``: uint8 [H, W, 3]; ``depth_array``: float32 [H, W], planar metres."""
        if self.render_mode is None:
            return None
        view = self.simulator.observe([self._camera_name]).views[self._camera_name]
        return np.array(view.rgb if self.render_mode == "rgb_array" else view.depth)

    def close(self) -> None:
        self.simulator.close()

    def _observe(self) -> GymObservation:
        return as_dict(observe_task(self.simulator, self._instruction, self._cameras))


def _box(bound: float, *shape: int) -> spaces.Box:
    return spaces.Box(-bound, bound, shape, np.float64)


def _info(status: Status) -> dict[str, object]:
    return {"success": status.success, "is_success": status.success, "phase": status.phase}


def as_dict(observation: Observation) -> GymObservation:
    """The observation as nested dicts, as in the observation space; depth is clipped to the space."""
    views = {
        name: {**vars(view), "depth": np.clip(view.depth, 0, MAX_METRES)} for name, view in observation.views.items()
    }
    rest: GymObservation = {"proprio": dict(observation.proprio), "instruction": observation.instruction}
    return {"views": views, **rest} if views else rest


class RenamedEnv(SimulatorEnv):
    """A task by the id that it had before ids named the suite."""

    def __init__(self, task: str, **arguments: Any) -> None:
        warnings.warn(f"{old_gym_id(task)} is now {gym_id(task)}", FutureWarning, stacklevel=2)
        super().__init__(task, **arguments)


def gym_id(task: str) -> str:
    """A task's id: ``sim_eval/robosuite-Lift-v0`` for ``robosuite/Lift``, ``sim_eval/metaworld-reach-v3``."""
    name = task.replace("/", "-")
    return f"sim_eval/{name}" if re.search(r"-v\d+$", name) else f"sim_eval/{name}-v0"


def old_gym_id(task: str) -> str:
    """The id before suites were in it, or the same where they always were."""
    name = task.split("/")[-1]
    return gym_id(task) if name.isdigit() else f"sim_eval/{name}-v0"


def register_all() -> None:
    """Registers our tasks; a simulator is imported only when an environment is made.

    Warns of an id that another package has registered, and leaves it to that package.
    """
    for name, task in own_tasks().items():
        # The id of today comes last, and stays where both are the same.
        for registered, kind in {old_gym_id(name): RenamedEnv, gym_id(name): SimulatorEnv}.items():
            existing = gymnasium.registry.get(registered)
            if existing is None:
                gymnasium.register(
                    registered,
                    entry_point=f"{__name__}:{kind.__name__}",
                    max_episode_steps=task.max_episode_steps,
                    kwargs={"task": name},
                )
            elif existing.kwargs != {"task": name}:
                warnings.warn(
                    f"{registered} is registered by another package: make {name} by "
                    f"sim_eval.envs.gym.SimulatorEnv('{name}')",
                    stacklevel=2,
                )
