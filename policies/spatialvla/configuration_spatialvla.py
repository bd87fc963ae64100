"""What a SpatialVLA is made of, as plain frozen dataclasses that survive a round trip through JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from types import MappingProxyType
from typing import Literal, TypeAlias, TypeVar, cast, get_args, get_origin, get_type_hints

from sim_eval.core import old_files
from sim_eval.core.errors import SimEvalError

T = TypeVar("T")

ActionExpertType: TypeAlias = Literal["deep_llama", "late_gemma"]
Attention: TypeAlias = Literal["sdpa", "eager"]
Conditioning: TypeAlias = Literal["prefix", "cross_attention"]
ContextProjection: TypeAlias = Literal["vlm", "expert"]
DepthSampling: TypeAlias = Literal["mean", "center", "corner"]
Frame: TypeAlias = Literal["gripper", "world"]
PositionKind: TypeAlias = Literal["3d", "2d"]


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
    layers: int = 1
    heads: int = 4
    mlp: int = 256
    feature_layer: int = -1
    prune: bool = True

    @property
    def built_layers(self) -> int:
        return self.layers + 1 + self.feature_layer

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch_size


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
    """The flow-matching expert. Its width is free; what deep fusion's attention shares with the VLM is not.

    Attributes:
        context_projection: whose projections make keys and values of the VLM's hidden states, in deep fusion.
        action_dim, state_dim, chunk_size: of the robot and its chunks.
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
    chunk_size: int = 8
    euler_steps: int = 5


@dataclass(frozen=True)
class PositionConfig:
    """The position embedding of patches.

    Attributes:
        kind: "3d" embeds where a patch stands; "2d", an ablation, its place in the picture and which view it is, and
            then pools no voxels. Which patches are kept does not depend on it.
        depth_sampling: a patch stands at the mean of its valid pixels, at its centre pixel, or at its top-left one.
        frequencies: Fourier bands before the MLP; 0 is LLaVA-3D's plain MLP on metres.
        scale: metres that become one unit.
        near: depth below it, in metres, is not read: a wrist camera's view of its own hand says nothing.
        crop: drop what lies outside the workspace: walls and floor cost tokens and say nothing of the task.
        mask_depth: drop pixels of unknown depth, which would otherwise stand in the camera.
        points: how many points of a patch are embedded together (SpatialVLA, Qu et al. 2025), a square number: 4 are
            the means of a patch's four quarters, which say how its surface leans; 1 is the patch's own mean.
    """

    depth_sampling: DepthSampling = "mean"
    frequencies: int = 4
    scale: float = 1.0
    near: float = 0.065
    kind: PositionKind = "3d"
    crop: bool = True
    mask_depth: bool = True
    points: int = 1

    @property
    def points_a_side(self) -> int:
        return math.isqrt(self.points)


@dataclass(frozen=True)
class SpatialVLAConfig:
    """Everything that decides the network's shape and what its numbers mean.

    Attributes:
        voxel_size: metres; None: every patch is its own token.
        max_tokens: scene tokens an observation at most, the rest thinned out evenly; None: all; 0: a blind policy.
        frame: where positions are measured from, "gripper" (axes stay the world's) or "world".
        attention: which attention kernel runs.
        conditioning: of late fusion: the context stands before the suffix in the Gemma, or, an ablation, each layer of
            the Gemma looks at it through a cross-attention of its own.

    Raises:
        SimEvalError: parts that do not fit each other.
    """

    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    expert: ExpertConfig = field(default_factory=ExpertConfig)
    position: PositionConfig = field(default_factory=PositionConfig)
    voxel_size: float | None = 0.02
    max_tokens: int | None = None
    frame: Frame = "gripper"
    action_expert_type: ActionExpertType = "deep_llama"
    attention: Attention = "sdpa"
    conditioning: Conditioning = "prefix"

    def __post_init__(self) -> None:
        vision, text, expert = self.vision, self.text, self.expert
        _choice("action_expert_type", self.action_expert_type, ActionExpertType)
        _choice("attention", self.attention, Attention)
        _choice("frame", self.frame, Frame)
        _choice("conditioning", self.conditioning, Conditioning)
        _choice("position.kind", self.position.kind, PositionKind)
        _choice("position.depth_sampling", self.position.depth_sampling, DepthSampling)
        _choice("expert.context_projection", expert.context_projection, ContextProjection)
        for part, values in (("vision", vision), ("text", text), ("expert", expert)):
            for name, value in vars(values).items():
                if isinstance(value, int) and name not in ("feature_layer", "prune"):
                    _demand(value >= 1, f"{part}.{name} must be at least 1, not {value}")
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
        _demand(expert.head_dim % 2 == 0, f"expert.head_dim must be even for RoPE, not {expert.head_dim}")
        _demand(expert.width % 2 == 0, f"expert.width must be even for the time embedding, not {expert.width}")
        _demand(self.position.scale > 0, f"position.scale must be positive metres, not {self.position.scale}")
        _demand(self.position.near >= 0, f"position.near must be 0 or more metres, not {self.position.near}")
        _demand(self.position.frequencies >= 0, "position.frequencies must be 0 or more")
        _demand_points(self.position, vision.patch_size)
        _demand(
            self.voxel_size is None or self.voxel_size > 0,
            f"voxel_size must be positive metres or null, not {self.voxel_size}",
        )
        _demand(self.max_tokens is None or self.max_tokens >= 0, f"max_tokens must be 0 or more, not {self.max_tokens}")
        if self.action_expert_type == "deep_llama":
            # The expert's attention concatenates the VLM's rotated keys with its own, layer by layer.
            for name in ("layers", "kv_heads", "head_dim", "rope_theta"):
                mine, theirs = getattr(expert, name), getattr(text, name)
                _demand(mine == theirs, f"expert.{name} {mine} must equal text.{name} {theirs} for deep fusion")
            _demand(
                expert.context_projection == "vlm" or expert.width == text.width,
                f"context_projection 'expert' needs expert.width {expert.width} equal to text.width {text.width}",
            )
            _demand(
                self.conditioning == "prefix",
                "conditioning is a choice of late_gemma's: leave it 'prefix' for deep_llama",
            )
        else:
            _demand(
                expert.context_projection == "vlm",
                "expert.context_projection is a choice of deep_llama's: leave it 'vlm' for late_gemma",
            )

    def to_dict(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> SpatialVLAConfig:
        """Reads what :meth:`to_dict` wrote.

        Raises:
            SimEvalError: a field is unknown or unfit. One that is missing has its default, so that checkpoints outlive
                new fields.
        """
        values = old_files.network(data)
        for name, kind in get_type_hints(cls).items():
            if isinstance(kind, type) and is_dataclass(kind):
                values[name] = _build(kind, values.get(name, {}), name)
        return _build(cls, values, "config")


def _build(kind: type[T], values: object, name: str) -> T:
    if not isinstance(values, Mapping):
        raise SimEvalError(f"{name}: expected a table of fields, found {values!r}")
    if unknown := values.keys() - get_type_hints(kind).keys():
        raise SimEvalError(f"{name}: unknown {', '.join(sorted(unknown))}; written by another version of sim_eval?")
    try:
        return kind(**values)
    except TypeError as error:
        raise SimEvalError(f"{name}: a field has the wrong type ({error})") from error


def _demand(holds: bool, message: str) -> None:
    if not holds:
        raise SimEvalError(message)


def _demand_points(position: PositionConfig, patch_size: int) -> None:
    side = math.isqrt(max(position.points, 0))
    _demand(
        position.points >= 1 and side**2 == position.points,
        f"position.points must be a square number, such as 1, 4 or 16, not {position.points}",
    )
    if position.points == 1:
        return
    _demand(position.kind == "3d", "position.points above 1 are points in space: leave position.kind '3d'")
    _demand(
        position.depth_sampling == "mean",
        "position.points above 1 are means of a patch's cells: leave position.depth_sampling 'mean'",
    )
    _demand(
        patch_size % side == 0,
        f"position.points {position.points} cut a patch into {side} x {side} cells: "
        f"make vision.patch_size {patch_size} a multiple of {side}",
    )


def _choice(name: str, value: str, options: object) -> None:
    _demand(value in get_args(options), f"{name} must be one of {', '.join(get_args(options))}, not {value!r}")


def with_overrides(config: SpatialVLAConfig, assignments: Iterable[str]) -> SpatialVLAConfig:
    """The config with fields set anew; only the result has to fit together, so the order does not matter.

    Args:
        config: left as it is.
        assignments: ``field=value``, a field of a part as ``part.field``; ``null`` is None.

    Raises:
        SimEvalError: an unknown field, a value that it cannot take, or fields that do not fit each other.
    """
    kinds = _field_types(SpatialVLAConfig)
    data = config.to_dict()
    for assignment in assignments:
        name, equals, text = (part.strip() for part in assignment.partition("="))
        _demand(bool(equals), f"'{assignment}' is not of the form field=value")
        if name not in kinds:
            part = name.split(".")[0] + "."
            known = [other for other in kinds if other.startswith(part)] or list(kinds)
            raise SimEvalError(f"unknown field '{name}': choose one of {', '.join(known)}")
        *path, last = name.split(".")
        table = data
        for part in path:
            table = cast(dict[str, object], table[part])
        table[last] = _parse(name, text, kinds[name])
    return SpatialVLAConfig.from_dict(data)


def _field_types(kind: type, prefix: str = "") -> dict[str, object]:
    """Dotted name -> annotated type of every field, those of parts included."""
    found: dict[str, object] = {}
    for name, annotation in get_type_hints(kind).items():
        if isinstance(annotation, type) and is_dataclass(annotation):
            found |= _field_types(annotation, f"{prefix}{name}.")
        else:
            found[prefix + name] = annotation
    return found


def _parse(name: str, text: str, kind: object) -> object:
    if get_origin(kind) is Literal:
        _choice(name, text, kind)
        return text
    if kind is bool:
        _demand(text in ("true", "false"), f"{name} must be true or false, not '{text}'")
        return text == "true"
    if text == "null" and type(None) in get_args(kind):
        return None
    try:
        if kind is int or int in get_args(kind):
            return int(text)
        number = float(text)
        _demand(math.isfinite(number), f"{name} must be a finite number, not '{text}'")
        return number
    except ValueError:
        expected = "a whole number" if kind is int or int in get_args(kind) else "a number"
        if type(None) in get_args(kind):
            expected += " or null"
        raise SimEvalError(f"{name} must be {expected}, not '{text}'") from None


ACTION_EXPERTS: tuple[ActionExpertType, ...] = get_args(ActionExpertType)

# LLaVA-3D-7B as published: it reads every patch of every view, wherever it stands.
LLAVA3D_7B = SpatialVLAConfig(
    vision=VisionConfig(
        image_size=336, patch_size=14, width=1024, layers=24, heads=16, mlp=4096, feature_layer=-2, prune=False
    ),
    text=TextConfig(width=4096, layers=32, heads=32, kv_heads=32, mlp=11008, norm_eps=1e-5, vocab_size=32_000),
    # The Llama's own sizes, which deep fusion starts from.
    expert=ExpertConfig(width=4096, layers=32, heads=32, kv_heads=32, head_dim=128, mlp=11008, norm_eps=1e-5),
    position=PositionConfig(depth_sampling="corner", frequencies=0, near=0.0, crop=False, mask_depth=False),
    voxel_size=0.2,
    max_tokens=2560,
    frame="world",
)
GEMMA_2B = ExpertConfig(width=2048, layers=18, heads=8, kv_heads=1, head_dim=256, mlp=16384)
SIZES: Mapping[str, Mapping[ActionExpertType, SpatialVLAConfig]] = MappingProxyType(
    {
        "tiny": {expert: SpatialVLAConfig(action_expert_type=expert) for expert in ACTION_EXPERTS},
        "llava3d-7b": {
            "deep_llama": LLAVA3D_7B,
            "late_gemma": replace(LLAVA3D_7B, action_expert_type="late_gemma", expert=GEMMA_2B),
        },
    }
)
