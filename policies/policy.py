"""What a policy is, what it needs, and how one is found by name or folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

from sim_eval.envs.contract import ActionSpec, EnvironmentSpec, EpisodeKey, FloatArray, Observation, SimEvalError

CHECKPOINTS = Path(__file__).parent / "checkpoints"
BASELINES = ("zero", "random")

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
    replan: int
    action: ActionSpec
    privileged: Mapping[str, FloatArray] | None = None


@dataclass(frozen=True)
class ActionChunk:
    """A policy's answer.

    Attributes:
        actions: float64 [horizon, action dim], in the environment's units.
        disturbance: standard deviation [action dim] of the noise that a collector may add to what is executed while it
            records ``actions`` as the label (DART, Laskey et al. 2017); None: none.
    """

    actions: FloatArray
    disturbance: FloatArray | None = None


@dataclass(frozen=True)
class Inference:
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


AS_SAVED = Inference()


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


def shipped_checkpoints() -> list[str]:
    """Names of the checkpoints that come with the package."""
    return sorted(folder.parent.name for folder in CHECKPOINTS.glob("*/config.json"))


def load_policy(reference: str, device: str = "auto", inference: Inference = AS_SAVED) -> Policy:
    """A policy by name (``scripted``, ``zero``, ``random``, a shipped checkpoint) or by checkpoint folder.

    Args:
        device: of a checkpoint's network.
        inference: of a checkpoint's network.

    Raises:
        SimEvalError: no such name or folder, the folder is damaged, or a policy has no network to run otherwise.
    """
    told = [entry.name for entry in fields(Inference) if getattr(inference, entry.name) != entry.default]
    if told and reference in ("scripted", *BASELINES):
        raise SimEvalError(f"policy '{reference}' has no network: leave --{told[0].replace('_', '-')} out")
    if reference in BASELINES:
        from sim_eval.policies.baselines import RandomPolicy, ZeroPolicy

        return ZeroPolicy() if reference == "zero" else RandomPolicy()
    if reference == "scripted":
        from sim_eval.policies.scripted.expert import ScriptedPolicy

        return ScriptedPolicy()
    shipped = reference in shipped_checkpoints()
    folder = CHECKPOINTS / reference if shipped else Path(reference)
    if not folder.is_dir():
        names = ", ".join([*shipped_checkpoints(), "scripted", *BASELINES])
        raise SimEvalError(f"unknown policy '{reference}': use one of {names}, or the folder of a checkpoint")
    from sim_eval.policies.spatialvla.checkpoint import load_checkpoint

    return load_checkpoint(folder, device, inference)
