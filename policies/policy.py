"""The interface of a policy, what a policy needs, and whether it fits an environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Literal, Protocol, TypeAlias

from annotated_types import Ge

from sim_eval.core import old_files
from sim_eval.core.decoding import decode
from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import (
    ActionChunk,
    ActionSpec,
    EnvironmentSpec,
    EpisodeKey,
    FloatArray,
    Observation,
    RenderMode,
)

Weights: TypeAlias = Literal["float32", "bfloat16", "int8", "nf4"]
Size: TypeAlias = Annotated[int, Ge(1)]
REQUIRED = ("name", "robot", "cameras", "proprio", "action", "tasks")  # of a spec in a file or message


@dataclass(frozen=True)
class PolicySpec:
    """What a policy needs and what its actions mean.

    Attributes:
        name: its name in tables.
        robot: the robot that it was trained for; None: any.
        cameras: camera name -> (height, width) of the pictures that it needs; empty: it is blind, and nothing is
            rendered for it.
        proprio: field name -> length of each field that it needs.
        action: what its actions mean; None: it adapts to the environment.
        tasks: the tasks that it was trained on; empty: any.
        privileged: it sees the simulator's state, so its score is not comparable with that of other policies.
        digest: SHA-256 of the weights; empty when there are none.
        variant: how it differs from its checkpoint, such as "2 Euler steps"; empty: not at all.
        render: the rendering mode that it was trained on, which is the default for its evaluation; None: unknown.
    """

    name: str
    robot: str | None = None
    cameras: Mapping[str, tuple[Size, Size]] = field(default_factory=dict)
    proprio: Mapping[str, Size] = field(default_factory=dict)
    action: ActionSpec | None = None
    tasks: tuple[str, ...] = ()
    privileged: bool = False
    digest: str = ""
    variant: str = ""
    render: RenderMode | None = None

    @classmethod
    def from_dict(cls, data: object) -> PolicySpec:
        """Reads the output of :func:`dataclasses.asdict`; fields that are not :data:`REQUIRED` may be missing.

        Raises:
            SimEvalError: a field is missing, unknown or invalid; names it.
        """
        if isinstance(data, Mapping):
            if missing := [name for name in REQUIRED if name not in data]:
                raise SimEvalError(f"missing field '{missing[0]}'")
            data = {**data, "action": old_files.action(data["action"])}
        return decode(cls, data)


@dataclass(frozen=True)
class PolicyRequest:
    """One request for a chunk of actions.

    Attributes:
        observation: what the policy may see.
        key: the episode.
        policy_call: the number of earlier calls in this episode; together with the key it seeds the policy's noise.
        action: what the environment's actions mean.
        privileged: the simulator's state, for policies whose spec says ``privileged``; otherwise None.
    """

    observation: Observation
    key: EpisodeKey
    policy_call: int
    action: ActionSpec
    privileged: Mapping[str, FloatArray] | None = None


@dataclass(frozen=True)
class InferenceConfig:
    """Overrides of a checkpoint's saved inference settings.

    Attributes:
        euler_steps: steps of the sampler; None: as saved.
        weights: float32, bfloat16 (all but the position embedding), or 8 or 4 bits (int8, nf4) in the layers of vision
            tower, language model and action expert.
        compile: compile the Euler step by torch.compile; the first chunk is then slow.
    """

    euler_steps: int | None = None
    weights: Weights = "float32"
    compile: bool = False


AS_SAVED = InferenceConfig()


class Policy(Protocol):
    """Answers requests of several episodes at once. It keeps no state between calls: episodes cannot influence each
    other."""

    @property
    def spec(self) -> PolicySpec: ...
    def predict(self, requests: Sequence[PolicyRequest]) -> list[ActionChunk]: ...


def is_foreign(policy: PolicySpec, environment: EnvironmentSpec) -> bool:
    """Whether the policy was trained for another robot."""
    return policy.robot is not None and policy.robot != environment.robot


def differences(policy: PolicySpec, environment: EnvironmentSpec, other_robot: bool = False) -> list[str]:
    """Why the policy cannot run in the environment, one sentence per reason; empty when it can.

    Args:
        other_robot: the robot's name may differ.
    """
    reasons = []
    if is_foreign(policy, environment) and not other_robot:
        reasons.append(f"robot: the policy was trained for {policy.robot}, the environment has {environment.robot}")
    for name, size in policy.cameras.items():
        offered = environment.cameras.get(name)
        if offered is None:
            reasons.append(f"camera '{name}' is needed, the environment has {', '.join(environment.cameras) or 'none'}")
        elif tuple(offered) != tuple(size):
            reasons.append(
                f"camera '{name}' must be {size[0]}x{size[1]} pixels, the environment renders {offered[0]}x{offered[1]}"
            )
    for name, length in policy.proprio.items():
        have = environment.proprio.get(name)
        if have != length:
            reasons.append(f"proprio '{name}' of length {length} is needed, the environment has {have or 'none'}")
    if policy.action is not None:
        for part in fields(ActionSpec):
            mine, theirs = getattr(policy.action, part.name), getattr(environment.action, part.name)
            if mine != theirs:
                reasons.append(f"action {part.name}: the policy commands {mine}, the environment takes {theirs}")
    return reasons


def check_fit(policy: PolicySpec, environment: EnvironmentSpec, other_robot: bool = False) -> None:
    """Refuses a policy that does not fit the environment.

    Args:
        other_robot: the robot's name may differ.

    Raises:
        SimEvalError: names every difference.
    """
    if reasons := differences(policy, environment, other_robot):
        if not differences(policy, environment, other_robot=True):
            reasons.append("rollout --other-robot scores it all the same")
        raise SimEvalError(f"policy '{policy.name}' does not fit this environment: " + "; ".join(reasons))
