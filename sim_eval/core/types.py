"""The ground floor: what an observation, a task, an episode and a simulator are.

Every room may import this module; it imports none of ours. Units are metres, radians and seconds; poses are 4x4
matrices that map points of the named frame into the world; images are upright (row 0 on top).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sim_eval.core.errors import SimEvalError

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
    """Axis-aligned box in the world frame, metres; what lies outside is not part of the task."""

    lower: tuple[float, float, float]
    upper: tuple[float, float, float]

    def contains(self, points: FloatArray) -> NDArray[np.bool_]:
        """Which of the points [..., 3] lie inside; bool [...]."""
        inside: NDArray[np.bool_] = np.all((points >= self.lower) & (points <= self.upper), axis=-1)
        return inside


@dataclass(frozen=True)
class Observation:
    """What a policy may see.

    Attributes:
        views: camera name -> picture.
        proprio: field name -> float64 [n]. ``eef_pos`` (3, world, metres) is always there.
        instruction: the sentence to obey.
        workspace: where the task happens, world frame.
    """

    views: Mapping[str, CameraView]
    proprio: Mapping[str, FloatArray]
    instruction: str
    workspace: WorkspaceBox


@dataclass(frozen=True)
class TrainingWindow:
    """One example for imitation: what was seen, and what the demonstrator did from there on.

    Attributes:
        observation: at the window's first step.
        actions: float64 [horizon, action dim], labels in the environment's units; past the episode's end, zeros.
        valid: bool [horizon], False past the episode's end.
    """

    observation: Observation
    actions: FloatArray
    valid: NDArray[np.bool_]


@dataclass(frozen=True, order=True)
class EpisodeKey:
    """Decides everything random about an episode. Keys of different splits never share a random stream."""

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
        """What the names of the episode's files begin with: task, split, index."""
        return f"{file_stem(self.task, self.split)}_{self.index:05d}"

    def __str__(self) -> str:
        return f"{self.task}/{self.split}/{self.index:05d}"


def file_stem(task: str, split: str) -> str:
    """What the names of all files of a task and split begin with, for example ``robosuite-LiftWide_train``."""
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
    """What an environment offers; a policy is checked against it before the first step.

    Attributes:
        robot: the robot's name.
        cameras: camera name -> (height, width) in pixels.
        proprio: field name -> length.
        action: what actions mean.
    """

    robot: str
    cameras: Mapping[str, tuple[int, int]]
    proprio: Mapping[str, int]
    action: ActionSpec


@dataclass(frozen=True)
class Status:
    """What one control step led to.

    Attributes:
        success: the task's success rule, at this instant.
        phase: how many of the task's phases are fulfilled at this instant, in order.
    """

    success: bool
    phase: int


@dataclass(frozen=True)
class Snapshot:
    """The simulator's full state: float64 [n] and its SHA-256; ``names`` says what each number is, when known."""

    state: FloatArray
    names: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        return hashlib.sha256(np.ascontiguousarray(self.state, dtype=np.float64).tobytes()).hexdigest()


RenderMode: TypeAlias = Literal["fast", "faithful"]


@dataclass(frozen=True)
class RenderConfig:
    """How a task is shown; part of the protocol, since it changes what a policy sees.

    Attributes:
        mode: "fast" (no shadows, decimated robot meshes) or "faithful" (the simulator's own look).
        height, width: pixels of every camera.
        hide_goal: leave out the marks by which a simulator shows where the goal is.
    """

    mode: RenderMode = "fast"
    height: int = 128
    width: int = 128
    hide_goal: bool = False

    def __str__(self) -> str:
        return f"{self.mode} {self.height}x{self.width}{', goal hidden' * self.hide_goal}"


class Simulator(Protocol):
    """One task, running. Observations are rendered when somebody asks, not at every control step."""

    @property
    def task(self) -> Task: ...
    @property
    def spec(self) -> EnvironmentSpec: ...
    def reset(self, key: EpisodeKey) -> None: ...
    def act(self, action: FloatArray) -> Status:
        """One control step with an action [action dim]."""
        ...

    def observe(self, cameras: Sequence[str] | None = None) -> Observation:
        """Renders the named cameras (None: all; empty: proprioception only)."""
        ...

    def snapshot(self) -> Snapshot: ...
    def privileged(self) -> Mapping[str, FloatArray]:
        """Object poses and the like, for those allowed (scripted experts)."""
        ...

    def provenance(self) -> Mapping[str, str]:
        """What a recording must say of the simulator: ``env_args`` (JSON, robomimic's) and ``model_file`` (MJCF)."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Task:
    """A thing to be done, complete: adding one means writing one of these.

    Attributes:
        name: "simulator/Task".
        goals: what can be asked for in the same scene; each goal is the sentences that all ask for it. Consecutive
            keys go round the goals, so that each gets its share of the episodes.
        horizon: control steps until truncation.
        workspace: where the task happens, the table plane left out.
        phases: names of the phases on the way to success, the last being success.
        factory: makes the simulator; heavy imports happen inside.
        others: sentences that ask for something else than a task's only goal, for when it is told wrong.
        render: how it is shown when nobody says; "faithful" where published policies know its own look.
    """

    name: str
    goals: tuple[tuple[str, ...], ...]
    max_episode_steps: int
    workspace: WorkspaceBox
    phases: tuple[str, ...]
    factory: Callable[[Task, RenderConfig], Simulator]
    counterfactuals: tuple[str, ...] = ()
    render: RenderMode = "fast"

    def make(self, options: RenderConfig = RenderConfig()) -> Simulator:
        return self.factory(self, options)

    def goal(self, key: EpisodeKey) -> int:
        """Which goal counts as success in the episode: an index into ``goals``."""
        return key.index % len(self.goals)

    def instruction(self, key: EpisodeKey, instruction_condition: InstructionCondition = "correct") -> str:
        """The sentence that the key draws for its goal; told wrong, one for the goal after it, or of ``others``.

        Raises:
            SimEvalError: told wrong, but the task has one goal and no other sentences.
        """
        sentences = self.goals[self.goal(key)]
        if instruction_condition == "counterfactual":
            sentences = (
                self.counterfactuals if len(self.goals) == 1 else self.goals[(self.goal(key) + 1) % len(self.goals)]
            )
        if not sentences:
            raise SimEvalError(
                f"{self.name} has one goal, so no instruction is wrong: choose a task with several, as robosuite/Stack"
            )
        return sentences[int(key.rng("instruction").integers(len(sentences)))]


@dataclass(frozen=True)
class ActionChunk:
    """A policy's answer.

    Attributes:
        actions: float64 [horizon, action dim], in the environment's units.
        disturbance: standard deviation [action dim] of the noise that a collector may add to what is executed while it
            records ``actions`` as the label (DART, Laskey et al. 2017); None: none.
        disturbed_share: of the control steps on which it does so, in bursts; 1: all the time.
    """

    actions: FloatArray
    disturbance: FloatArray | None = None
    disturbed_share: float = 1.0


class Recorder:
    """Watches an episode; a subclass has what it wants to hear. An episode that is interrupted never finishes: the next
    ``start`` forgets it."""

    def start(self, simulator: Simulator, key: EpisodeKey, instruction: str) -> None:
        """After the reset; the instruction is the sentence that the policy is given."""

    def asked(self, observation: Observation, chunk: ActionChunk) -> None:
        """The policy saw this and answered that; the chunk's actions are within their bounds."""

    def before_act(self, simulator: Simulator, label: FloatArray, executed: FloatArray) -> None:
        """Before a control step: float64 [action dim] each, what the policy wanted and what will move the robot."""

    def after_act(self, simulator: Simulator, status: Status) -> None:
        """After a control step."""

    def finish(self, simulator: Simulator, success: bool) -> None:
        """The episode has come to its end, or has broken off."""
