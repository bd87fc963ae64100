"""What a SpatialVLA is made of, as plain frozen dataclasses that survive a round trip through JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from types import MappingProxyType
from typing import Literal, TypeAlias, TypeVar, get_args

from sim_eval.envs.contract import SimEvalError

T = TypeVar("T")

ActionExpertType: TypeAlias = Literal["deep_llama"]
Attention: TypeAlias = Literal["sdpa", "eager"]
ContextProjection: TypeAlias = Literal["vlm", "expert"]
DepthSampling: TypeAlias = Literal["mean", "center", "corner"]
Frame: TypeAlias = Literal["gripper", "world"]


@dataclass(frozen=True)
class VisionConfig:
    """The CLIP tower.

    Attributes:
        image_size, patch_size: pixels, square.
        width, layers, heads, mlp: CLIP's; ``layers`` counts those of the full tower.
        feature_layer: which of CLIP's hidden states is read, from the end; layers above it are not built.
        prune: drop patches outside the workspace before the encoder, not after it.
    """

    image_size: int = 128
    patch_size: int = 8
    width: int = 128
    layers: int = 2
    heads: int = 4
    mlp: int = 256
    feature_layer: int = -1
    prune: bool = True

    @property
    def built_layers(self) -> int:
        return self.layers + 1 + self.feature_layer


@dataclass(frozen=True)
class TextConfig:
    """The causal Llama that reads voxels and instruction."""

    width: int = 128
    layers: int = 2
    heads: int = 4
    kv_heads: int = 4
    mlp: int = 256
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    vocab_size: int = 384

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True)
class ExpertConfig:
    """The flow-matching expert. Its width is free; what its attention shares with the VLM is not.

    Attributes:
        context_projection: whose projections make keys and values of the VLM's hidden states.
        action_dim, state_dim, horizon: of the robot and its chunks.
        euler_steps: steps of the sampler.
    """

    width: int = 128
    layers: int = 2
    heads: int = 4
    kv_heads: int = 4
    head_dim: int = 32
    mlp: int = 256
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    context_projection: ContextProjection = "vlm"
    action_dim: int = 7
    state_dim: int = 9
    horizon: int = 8
    euler_steps: int = 5


@dataclass(frozen=True)
class PositionConfig:
    """The 3-D position embedding.

    Attributes:
        depth_sampling: a patch stands at the mean of its valid pixels, at its centre pixel, or at its top-left one.
        frequencies: Fourier bands before the MLP; 0 is LLaVA-3D's plain MLP on metres.
        scale: metres that become one unit.
        near: depth below it, in metres, is not read: a wrist camera's view of its own hand says nothing.
    """

    depth_sampling: DepthSampling = "mean"
    frequencies: int = 4
    scale: float = 1.0
    near: float = 0.065


@dataclass(frozen=True)
class SpatialVLAConfig:
    """Everything that decides the network's shape and what its numbers mean.

    Attributes:
        voxel_size: metres; None: every patch is its own token.
        frame: where positions are measured from, "gripper" (axes stay the world's) or "world".
        attention: which attention kernel runs.

    Raises:
        SimEvalError: parts that do not fit each other.
    """

    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    expert: ExpertConfig = field(default_factory=ExpertConfig)
    position: PositionConfig = field(default_factory=PositionConfig)
    voxel_size: float | None = 0.02
    frame: Frame = "gripper"
    action_expert_type: ActionExpertType = "deep_llama"
    attention: Attention = "sdpa"

    def __post_init__(self) -> None:
        vision, text, expert = self.vision, self.text, self.expert
        _choice("action_expert_type", self.action_expert_type, ActionExpertType)
        _choice("attention", self.attention, Attention)
        _choice("frame", self.frame, Frame)
        _choice("position.depth_sampling", self.position.depth_sampling, DepthSampling)
        _choice("expert.context_projection", expert.context_projection, ContextProjection)
        for name, count in (
            ("vision.patch_size", vision.patch_size),
            ("vision.heads", vision.heads),
            ("text.layers", text.layers),
            ("text.heads", text.heads),
            ("text.kv_heads", text.kv_heads),
            ("expert.kv_heads", expert.kv_heads),
            ("expert.horizon", expert.horizon),
            ("expert.action_dim", expert.action_dim),
            ("expert.state_dim", expert.state_dim),
            ("expert.euler_steps", expert.euler_steps),
        ):
            _demand(count >= 1, f"{name} must be at least 1, not {count}")
        _demand(
            vision.image_size % vision.patch_size == 0,
            f"vision.image_size {vision.image_size} must be a multiple of vision.patch_size {vision.patch_size}",
        )
        _demand(
            vision.feature_layer < 0 <= vision.built_layers,
            f"vision.feature_layer {vision.feature_layer} must lie between -{vision.layers + 1} and -1",
        )
        for name, width, heads in (("vision", vision.width, vision.heads), ("text", text.width, text.heads)):
            _demand(width % heads == 0, f"{name}.width {width} must be a multiple of {name}.heads {heads}")
        for name, heads, shared in (("text", text.heads, text.kv_heads), ("expert", expert.heads, expert.kv_heads)):
            _demand(heads % shared == 0, f"{name}.heads {heads} must be a multiple of {name}.kv_heads {shared}")
        _demand(text.head_dim % 2 == 0, f"text.width / text.heads must be even for RoPE, not {text.head_dim}")
        _demand(expert.width % 2 == 0, f"expert.width must be even for the time embedding, not {expert.width}")
        _demand(self.position.scale > 0, f"position.scale must be positive metres, not {self.position.scale}")
        _demand(self.position.near >= 0, f"position.near must be 0 or more metres, not {self.position.near}")
        _demand(self.position.frequencies >= 0, "position.frequencies must be 0 or more")
        _demand(
            self.voxel_size is None or self.voxel_size > 0,
            f"voxel_size must be positive metres or null, not {self.voxel_size}",
        )
        # The expert's attention concatenates the VLM's rotated keys with its own, layer by layer.
        for name in ("layers", "kv_heads", "head_dim", "rope_theta"):
            mine, theirs = getattr(expert, name), getattr(text, name)
            _demand(mine == theirs, f"expert.{name} {mine} must equal text.{name} {theirs} for deep fusion")
        _demand(
            expert.context_projection == "vlm" or expert.width == text.width,
            f"context_projection 'expert' needs expert.width {expert.width} equal to text.width {text.width}",
        )

    def to_dict(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> SpatialVLAConfig:
        """Reads what :meth:`to_dict` wrote.

        Raises:
            SimEvalError: a field is missing, unknown or unfit.
        """
        parts: dict[str, type] = {
            "vision": VisionConfig,
            "text": TextConfig,
            "expert": ExpertConfig,
            "position": PositionConfig,
        }
        values = dict(data)
        for name, part in parts.items():
            values[name] = _build(part, values.get(name), name)
        return _build(cls, values, "config")


def _build(kind: type[T], values: object, name: str) -> T:
    if not isinstance(values, Mapping):
        raise SimEvalError(f"{name}: expected a table of fields, found {values!r}")
    known = {entry.name for entry in fields(kind)}  # type: ignore[arg-type]
    if missing := known - values.keys():
        raise SimEvalError(f"{name}: missing {', '.join(sorted(missing))}")
    if unknown := values.keys() - known:
        raise SimEvalError(f"{name}: unknown {', '.join(sorted(unknown))}; written by another version of sim_eval?")
    try:
        return kind(**values)
    except TypeError as error:
        raise SimEvalError(f"{name}: a field has the wrong type ({error})") from error


def _demand(holds: bool, message: str) -> None:
    if not holds:
        raise SimEvalError(message)


def _choice(name: str, value: str, options: object) -> None:
    _demand(value in get_args(options), f"{name} must be one of {', '.join(get_args(options))}, not {value!r}")


EXPERTS: tuple[ActionExpertType, ...] = get_args(ActionExpertType)
SIZES: Mapping[str, SpatialVLAConfig] = MappingProxyType({"tiny": SpatialVLAConfig()})
