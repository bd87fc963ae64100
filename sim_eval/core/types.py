"""The types that all packages share: observations, tasks, episodes, simulators and recorders.

Every package may import this module. Units are metres, radians and seconds; poses are 4x4 matrices that map points of
the named frame into the world; images are upright (row 0 on top).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sim_eval.core.errors import SimEvalError

T = TypeVar("T")
FloatArray: TypeAlias = NDArray[np.float64]
InstructionCondition: TypeAlias = Literal["correct", "counterfactual"]
ControlMode: TypeAlias = Literal[
    "ee_delta_pose",
    "ee_target_delta_pose",
    "ee_pose",
    "ee_delta_position",
    "ee_target_delta_position",
    "ee_position",
    "joint_delta_position",
    "joint_position",
    "joint_velocity",
    "joint_torque",
    "other",
]
ActionFrame: TypeAlias = Literal["base", "world", "end_effector"]
RotationRepresentation: TypeAlias = Literal["axis_angle", "euler_xyz", "quaternion_xyzw", "rot6d"]
GripperConvention: TypeAlias = Literal["closes", "opens"]

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class CameraView:
    """One calibrated RGB-D picture.

    Attributes:
        rgb: uint8 [H, W, 3].
        depth: float32 [H, W], planar z in metres along the optical axis (not the length of the ray).
        intrinsics: float64 [3, 3], pinhole matrix in pixels of this picture.
        camera_to_world: float64 [4, 4], OpenCV axes (x right, y down, z forward).
    """

    rgb: NDArray[np.uint8]
    depth: NDArray[np.float32]
    intrinsics: FloatArray
    camera_to_world: FloatArray


@dataclass(frozen=True)
class WorkspaceBox:
    """Axis-aligned box in the world frame, metres; points outside are not part of the task."""

    lower: tuple[float, float, float]
    upper: tuple[float, float, float]

    def contains(self, points: FloatArray) -> NDArray[np.bool_]:
        """Whether each of the points [..., 3] lies inside; bool [...]."""
        inside: NDArray[np.bool_] = np.all((points >= self.lower) & (points <= self.upper), axis=-1)
        return inside


@dataclass(frozen=True)
class SensorReadings:
    """What a simulator measures at one instant.

    Attributes:
        views: camera name -> picture.
        proprio: field name -> float64 [n]. ``eef_pos`` (3, world, metres) is always included.
    """

    views: Mapping[str, CameraView]
    proprio: Mapping[str, FloatArray]


@dataclass(frozen=True)
class Observation(SensorReadings):
    """What a policy may see: sensor readings and the task.

    Attributes:
        instruction: the sentence to obey.
        workspace: where the task happens, world frame.
    """

    instruction: str
    workspace: WorkspaceBox


def without_derived(proprio: Mapping[str, T]) -> dict[str, T]:
    """Proprio fields without ``gripper_opening`` where it follows from ``gripper_qpos``: recordings may lack it."""
    return {name: part for name, part in proprio.items() if name != "gripper_opening" or "gripper_qpos" not in proprio}


@dataclass(frozen=True)
class TrainingWindow:
    """One example for imitation: an observation and the demonstrator's actions from there on.

    Attributes:
        observation: at the window's first step.
        actions: float64 [chunk size, action dim], labels in the environment's units; zeros after the episode's end.
        valid: bool [chunk size], False after the episode's end.
    """

    observation: Observation
    actions: FloatArray
    valid: NDArray[np.bool_]


@dataclass(frozen=True, order=True)
class EpisodeKey:
    """Seeds everything random in an episode. Keys of different splits never share a random stream."""

    task: str
    split: str
    index: int

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise SimEvalError(f"unknown split '{self.split}': choose one of {', '.join(SPLITS)}")
        if self.index < 0:
            raise SimEvalError(f"episode index must be 0 or more, not {self.index}")

    def rng(self, purpose: str) -> np.random.Generator:
        """A fresh generator for one purpose ("reset", "policy/3", ...), the same in every process."""
        digest = hashlib.sha256(f"{self.task}|{self.split}|{self.index}|{purpose}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:16], "little"))

    @property
    def stem(self) -> str:
        """The beginning of the names of the episode's files: task, split, index."""
        return f"{file_stem(self.task, self.split)}_{self.index:05d}"

    def __str__(self) -> str:
        return f"{self.task}/{self.split}/{self.index:05d}"


def file_stem(task: str, split: str) -> str:
    """The beginning of the names of all files of a task and split, for example ``robosuite-LiftWide_train``."""
    return f"{task.replace('/', '-')}_{split}"


@dataclass(frozen=True)
class ActionSpec:
    """What an action vector means. A policy and an environment fit when they agree on every field.

    Attributes:
        names: one name per dimension.
        low, high: bounds per dimension.
        control_mode: what the numbers set. "ee" is the end effector; a "delta" is an offset from the current pose, a
            "target_delta" an offset from the previous target. "other": see ``description``.
        control_hz: actions per second.
        frame: whose axes poses and offsets have: the robot's base, the world, or the end effector; None: of joints.
        metres_per_unit, radians_per_unit: what 1 stands for in translations, and in rotations or joint angles; None:
            the action has none of these.
        rotation: how a rotation is written; None: the action has none.
        gripper: what the largest gripper command does; None: the action has no gripper.
        description: whatever else a policy must know; it is compared word for word.

    Raises:
        SimEvalError: there is not one lower and one upper bound per name, or they are the wrong way round.
    """

    names: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    control_mode: ControlMode
    control_hz: float
    frame: ActionFrame | None = None
    metres_per_unit: float | None = None
    radians_per_unit: float | None = None
    rotation: RotationRepresentation | None = None
    gripper: GripperConvention | None = None
    description: str = ""

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.low) == len(self.high):
            raise SimEvalError(
                f"action has {len(self.names)} names, {len(self.low)} low and {len(self.high)} high bounds: "
                "give one of each per dimension"
            )
        for name, low, high in zip(self.names, self.low, self.high, strict=True):
            if not low <= high:
                raise SimEvalError(
                    f"action '{name}' has the bounds {low} to {high}: the low one must be below the other"
                )

    @property
    def dim(self) -> int:
        return len(self.names)

    def clip(self, actions: FloatArray) -> FloatArray:
        """Actions [..., dim] brought into the bounds."""
        return np.clip(actions, np.array(self.low), np.array(self.high))


@dataclass(frozen=True)
class EnvironmentSpec:
    """The interface of an environment; a policy is checked against it before the first step.

    Attributes:
        robot: the robot's name.
        cameras: camera name -> (height, width) in pixels.
        proprio: field name -> length.
        action: the meaning of actions.
    """

    robot: str
    cameras: Mapping[str, tuple[int, int]]
    proprio: Mapping[str, int]
    action: ActionSpec


@dataclass(frozen=True)
class Status:
    """The state of the task after a control step.

    Attributes:
        success: whether the task's success rule holds at this instant.
        phase: the number of the task's phases, in order, that are fulfilled at this instant.
    """

    success: bool
    phase: int


@dataclass(frozen=True)
class Snapshot:
    """The simulator's full state: float64 [n] and its SHA-256; ``names`` names each number, when known."""

    state: FloatArray
    names: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        return hashlib.sha256(np.ascontiguousarray(self.state, dtype=np.float64).tobytes()).hexdigest()


RenderMode: TypeAlias = Literal["fast", "faithful"]


@dataclass(frozen=True)
class RenderConfig:
    """How a task is rendered; part of the evaluation protocol, since it changes what a policy sees.

    Attributes:
        mode: "fast" (no shadows, decimated robot meshes) or "faithful" (the simulator's own look).
        height, width: pixels of every camera that is not in ``camera_sizes``.
        hide_goal: leave out the marks by which a simulator shows where the goal is.
        camera_sizes: camera name -> (height, width) of the cameras with another size.
    """

    mode: RenderMode = "fast"
    height: int = 128
    width: int = 128
    hide_goal: bool = False
    camera_sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict, hash=False)

    @classmethod
    def for_cameras(
        cls, mode: RenderMode, cameras: Mapping[str, tuple[int, int]], hide_goal: bool = False
    ) -> RenderConfig:
        """Renders each of these cameras at its size, (height, width), and all others at the size of the first."""
        default = next(iter(cameras.values()), (cls.height, cls.width))
        return cls(mode, *default, hide_goal, {name: size for name, size in cameras.items() if size != default})

    def size(self, camera: str) -> tuple[int, int]:
        """(height, width) of a camera in pixels."""
        return self.camera_sizes.get(camera, (self.height, self.width))

    def __str__(self) -> str:
        sizes = "".join(f", {name} {height}x{width}" for name, (height, width) in self.camera_sizes.items())
        return f"{self.mode} {self.height}x{self.width}{sizes}{', goal hidden' * self.hide_goal}"


class Simulator(Protocol):
    """One running task. It knows no instructions, and renders only when it is asked to, not at every control step."""

    @property
    def task(self) -> Task: ...
    @property
    def spec(self) -> EnvironmentSpec: ...
    def reset(self, key: EpisodeKey) -> None: ...
    def act(self, action: FloatArray) -> Status:
        """One control step with an action [action dim]."""
        ...

    def observe(self, cameras: Sequence[str] | None = None) -> SensorReadings:
        """Renders the named cameras (None: all; empty: proprioception only)."""
        ...

    def snapshot(self) -> Snapshot: ...
    def privileged(self) -> Mapping[str, FloatArray]:
        """Object poses and the like, for policies that may see them (scripted demonstrators)."""
        ...

    def provenance(self) -> Mapping[str, str]:
        """The simulator's part of a recording: ``env_args`` (JSON, as robomimic's) and ``model_file`` (MJCF)."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class Rerenderable(Protocol):
    """What a :class:`Simulator` may offer besides: an episode is rendered again after its end, as large as one likes.

    Videos of other simulators enlarge the pictures that the policy sees.
    """

    def pose(self) -> object:
        """All that moves or changes colour in the scene, at this instant."""
        ...

    def rerender(
        self, poses: Iterable[Any], mode: RenderMode, size: tuple[int, int], cameras: Sequence[str]
    ) -> Generator[tuple[NDArray[np.uint8], Mapping[str, CameraView]], None, None]:
        """For each pose of this episode: a third-person picture, uint8 [*size, 3], and the named cameras' views.

        The third-person picture is rendered in the given mode, the cameras as in the episode. When the generator has
        ended or is closed, the simulator goes on as if nothing had been rendered.
        """
        ...


@dataclass(frozen=True)
class Task:
    """The complete definition of a task.

    Attributes:
        name: "simulator/Task".
        goals: the goals that can be asked for in the same scene; each is a tuple of sentences that all ask for it.
            Consecutive keys cycle through the goals, so that each gets its share of the episodes.
        max_episode_steps: control steps until truncation.
        workspace: where the task happens, without the table's plane.
        phases: names of the phases on the way to success; the last is success.
        factory: makes the simulator; heavy imports happen inside.
        counterfactuals: sentences that ask for something else, for a task with one goal. They are used when a wrong
            instruction is given.
        render: the default rendering mode; "faithful" where published policies were trained on the simulator's look.
        robot: its robot; the task with another one is called ``NAME@ROBOT``. Empty: there is no choice.
    """

    name: str
    goals: tuple[tuple[str, ...], ...]
    max_episode_steps: int
    workspace: WorkspaceBox
    phases: tuple[str, ...]
    factory: Callable[[Task, RenderConfig], Simulator]
    counterfactuals: tuple[str, ...] = ()
    render: RenderMode = "fast"
    robot: str = ""

    def make(self, options: RenderConfig = RenderConfig()) -> Simulator:
        return self.factory(self, options)

    def goal(self, key: EpisodeKey) -> int:
        """The goal that counts as success in the episode: an index into ``goals``."""
        return key.index % len(self.goals)

    def instruction(self, key: EpisodeKey, instruction_condition: InstructionCondition = "correct") -> str:
        """A sentence for the key's goal, drawn by the key.

        Counterfactual sentences ask for the goal after it, or are among ``counterfactuals`` if there is one goal.

        Raises:
            SimEvalError: a counterfactual sentence is asked for, and the task has none.
        """
        sentences = self.goals[self.goal(key)]
        if instruction_condition == "counterfactual":
            sentences = (
                self.counterfactuals if len(self.goals) == 1 else self.goals[(self.goal(key) + 1) % len(self.goals)]
            )
        if not sentences:
            raise SimEvalError(
                f"{self.name} has no counterfactual instruction: choose a task with several goals, as robosuite/Stack"
            )
        return sentences[int(key.rng("instruction").integers(len(sentences)))]


def observe_task(simulator: Simulator, instruction: str, cameras: Sequence[str] | None = None) -> Observation:
    """What a policy sees that is given the instruction.

    Args:
        cameras: are rendered (None: all; empty: proprioception only).
    """
    readings = simulator.observe(cameras)
    return Observation(readings.views, readings.proprio, instruction, simulator.task.workspace)


@dataclass(frozen=True)
class ActionChunk:
    """The actions that a policy plans.

    Attributes:
        actions: float64 [chunk size, action dim], in the environment's units.
        disturbance: standard deviation [action dim] of the noise that a collector may add to the executed actions while
            it records ``actions`` as labels (DART, Laskey et al. 2017); None: no noise.
        disturbed_share: share of the control steps with noise, in bursts; 1: every step.
    """

    actions: FloatArray
    disturbance: FloatArray | None = None
    disturbed_share: float = 1.0


class Recorder:
    """Observes an episode; a subclass overrides the events that it needs. An interrupted episode has no ``finish``, and
    the next ``start`` discards it."""

    def start(self, simulator: Simulator, key: EpisodeKey, instruction: str) -> None:
        """After the reset.

        Args:
            instruction: is given to the policy.
        """

    def asked(self, observation: Observation, chunk: ActionChunk) -> None:
        """The policy was called.

        Args:
            observation: its input.
            chunk: its output, clipped to the action's bounds.
        """

    def before_act(self, simulator: Simulator, label: FloatArray, executed: FloatArray) -> None:
        """Before a control step.

        Args:
            label: the policy's action, float64 [action dim].
            executed: the action that the robot will execute, float64 [action dim].
        """

    def after_act(self, simulator: Simulator, status: Status) -> None:
        """After a control step."""

    def finish(self, simulator: Simulator, success: bool) -> None:
        """After the episode.

        Args:
            success: the task's rule held at some step, and the episode did not break off.
        """

    def still_working(self) -> None:
        """Another recorder's work after the episode, such as rendering a video, goes on."""
