"""What a policy is, what it needs, and how one is found by name or folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias, cast, get_args

from sim_eval.core.errors import SimEvalError, reading
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


@dataclass(frozen=True)
class PolicySpec:
    """What a policy needs and what its actions mean.

    Attributes:
        name: how it is called in tables.
        robot: the robot it was made for; None: any.
        cameras: camera name -> (height, width) it must be given; empty: it is blind and nothing is rendered for it.
        proprio: field name -> length it must be given.
        action: what its actions mean; None: whatever the environment asks for.
        tasks: the tasks it was trained on; empty: any.
        privileged: it sees the simulator's state, so its score is not a policy's score.
        digest: SHA-256 of the weights; empty when there are none.
        variant: how it is run otherwise than its checkpoint says, such as "2 Euler steps"; empty: as it says.
        render: the look that it was trained on, and is shown unless somebody says otherwise; None: it is not known.
    """

    name: str
    robot: str | None = None
    cameras: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    proprio: Mapping[str, int] = field(default_factory=dict)
    action: ActionSpec | None = None
    tasks: tuple[str, ...] = ()
    privileged: bool = False
    digest: str = ""
    variant: str = ""
    render: RenderMode | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> PolicySpec:
        """Reads what :func:`dataclasses.asdict` made; all from ``privileged`` on may be left out.

        Raises:
            SimEvalError: another field is missing, or one is damaged.
        """
        with reading():
            action = cast(Mapping[str, object] | None, data["action"])
            spec = cls(
                name=str(data["name"]),
                robot=None if data["robot"] is None else str(data["robot"]),
                cameras={
                    name: (int(height), int(width))
                    for name, (height, width) in cast(Mapping[str, tuple[int, int]], data["cameras"]).items()
                },
                proprio={name: int(length) for name, length in cast(Mapping[str, int], data["proprio"]).items()},
                action=None if action is None else ActionSpec.from_dict(action),
                tasks=tuple(cast(Sequence[str], data["tasks"])),
                privileged=bool(data.get("privileged", False)),
                digest=str(data.get("digest", "")),
                variant=str(data.get("variant", "")),
                render=cast(RenderMode | None, data.get("render")),
            )
            if spec.render not in (None, *get_args(RenderMode)):
                raise ValueError(f"render must be one of {', '.join(get_args(RenderMode))}, not {spec.render!r}")
            if any(length < 1 for length in (*sum(spec.cameras.values(), ()), *spec.proprio.values())):
                raise ValueError("sizes of cameras and lengths of proprio must be 1 or more")
        return spec


@dataclass(frozen=True)
class PolicyRequest:
    """One question to a policy.

    Attributes:
        observation: what it may see.
        key: the episode.
        replan: how many times this episode has asked before; with the key it seeds the policy's noise.
        action: what the answer must be in.
        privileged: the simulator's state, only for policies whose spec says so.
    """

    observation: Observation
    key: EpisodeKey
    policy_call: int
    action: ActionSpec
    privileged: Mapping[str, FloatArray] | None = None


@dataclass(frozen=True)
class InferenceConfig:
    """How a checkpoint's network is run, where that is otherwise than it was saved.

    Attributes:
        euler_steps: of its sampler; None: its own number.
        weights: float32, bfloat16 (all but the position embedding), or 8 or 4 bits (int8, nf4) in the layers of vision
            tower, language model and expert.
        compile: run the Euler step through torch.compile, which takes its time at the first chunk.
    """

    euler_steps: int | None = None
    weights: Weights = "float32"
    compile: bool = False


AS_SAVED = InferenceConfig()


class Policy(Protocol):
    """Answers several episodes at once and keeps nothing between calls, so that no episode can influence another."""

    @property
    def spec(self) -> PolicySpec: ...
    def predict(self, requests: Sequence[PolicyRequest]) -> list[ActionChunk]: ...


def differences(policy: PolicySpec, environment: EnvironmentSpec) -> list[str]:
    """Why the policy cannot run in the environment, one sentence each; empty when it can."""
    found = []
    if policy.robot is not None and policy.robot != environment.robot:
        found.append(f"robot: the policy was made for {policy.robot}, the environment has {environment.robot}")
    for name, size in policy.cameras.items():
        offered = environment.cameras.get(name)
        if offered is None:
            found.append(f"camera '{name}' is needed, the environment has {', '.join(environment.cameras) or 'none'}")
        elif tuple(offered) != tuple(size):
            found.append(
                f"camera '{name}' must be {size[0]}x{size[1]} pixels, the environment renders {offered[0]}x{offered[1]}"
            )
    for name, length in policy.proprio.items():
        have = environment.proprio.get(name)
        if have != length:
            found.append(f"proprio '{name}' of length {length} is needed, the environment has {have or 'none'}")
    if policy.action is not None:
        for part in ("names", "low", "high", "controller", "control_hz"):
            mine, theirs = getattr(policy.action, part), getattr(environment.action, part)
            if mine != theirs:
                found.append(f"action {part}: the policy means {mine}, the environment takes {theirs}")
    return found


def check_fit(policy: PolicySpec, environment: EnvironmentSpec) -> None:
    """Refuses a policy that does not fit.

    Raises:
        SimEvalError: names every difference.
    """
    if found := differences(policy, environment):
        raise SimEvalError(f"policy '{policy.name}' does not fit this environment: " + "; ".join(found))
