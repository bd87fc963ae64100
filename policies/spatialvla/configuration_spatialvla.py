"""The configuration of a SpatialVLA: plain frozen dataclasses that survive a round trip through JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Annotated, Literal, TypeAlias, get_args

from annotated_types import Ge, Gt
from pydantic import AllowInfNan

from sim_eval.core import old_files
from sim_eval.core.decoding import decode
from sim_eval.core.errors import SimEvalError

ActionExpertType: TypeAlias = Literal["deep_llama", "late_gemma"]
Attention: TypeAlias = Literal["sdpa", "eager"]
Conditioning: TypeAlias = Literal["prefix", "cross_attention"]
ContextProjection: TypeAlias = Literal["vlm", "expert"]
DepthSampling: TypeAlias = Literal["mean", "center", "corner"]
Frame: TypeAlias = Literal["gripper", "world"]
PositionKind: TypeAlias = Literal["3d", "2d"]
Count: TypeAlias = Annotated[int, Ge(1)]
Size: TypeAlias = Annotated[int, Ge(0)]
Positive: TypeAlias = Annotated[float, Gt(0), AllowInfNan(False)]


@dataclass(frozen=True)
class VisionConfig:
    """The CLIP vision tower.

    Attributes:
        image_size: side of the square picture, in pixels; 0 in a training's configuration: that of the cameras.
        patch_size: side of a patch, in pixels.
        width: of the hidden states.
        layers: number of the full tower's layers.
        heads: number of attention heads.
        mlp: width of the MLPs.
        feature_layer: which of CLIP's hidden states is read, counted from the end; layers above it are not built.
        prune: drop patches outside the workspace before the encoder, not after it.
    """

    image_size: Size = 128
    patch_size: Count = 8
    width: Count = 128
    layers: Count = 1
    heads: Count = 4
    mlp: Count = 256
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
    """The causal Llama that reads voxels and instruction.

    Attributes:
        width: of the hidden states.
        layers: number of layers.
        heads: number of attention heads.
        kv_heads: number of heads of keys and values, which groups of attention heads share.
        mlp: width of the MLPs.
        rope_theta: base of the rotary position embedding.
        norm_eps: added to the variance in the normalization layers.
        vocab_size: number of tokens.
    """

    width: Count = 128
    layers: Count = 2
    heads: Count = 4
    kv_heads: Count = 4
    mlp: Count = 256
    rope_theta: Positive = 10_000.0
    norm_eps: Positive = 1e-6
    vocab_size: Count = 384

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True)
class ExpertConfig:
    """The flow-matching action expert. Its width is free; deep fusion's attention shares its heads with the VLM.

    Attributes:
        width: of the hidden states.
        layers: number of layers.
        heads: number of attention heads.
        kv_heads: number of heads of keys and values.
        head_dim: width of a head.
        mlp: width of the MLPs.
        rope_theta: base of the rotary position embedding.
        norm_eps: added to the variance in the normalization layers.
        context_projection: in deep fusion, whose projections make keys and values of the VLM's hidden states.
        action_dim: numbers in an action; 0 in a training's configuration: as the demonstrations have it.
        state_dim: numbers in the proprioceptive state; 0 likewise.
        chunk_size: actions in a chunk.
        euler_steps: steps of the sampler.
    """

    width: Count = 128
    layers: Count = 2
    heads: Count = 4
    kv_heads: Count = 4
    head_dim: Count = 32
    mlp: Count = 256
    rope_theta: Positive = 10_000.0
    norm_eps: Positive = 1e-6
    context_projection: ContextProjection = "vlm"
    action_dim: Size = 7
    state_dim: Size = 9
    chunk_size: Count = 8
    euler_steps: Count = 5


@dataclass(frozen=True)
class PositionConfig:
    """The position embedding of patches.

    Attributes:
        depth_sampling: a patch's position is the mean of its valid pixels, its center pixel, or its top-left one.
        frequencies: Fourier bands before the MLP; 0 is LLaVA-3D's plain MLP on metres.
        scale: metres that become one unit.
        near: depth below it, in metres, is ignored: a wrist camera's view of its own hand carries no information.
        kind: "3d" embeds the position in space; "2d", an ablation, embeds the place in the picture and the number of
            the view, and pools no voxels. Which patches are kept does not depend on it.
        crop: drop what lies outside the workspace: walls and floor cost tokens and say nothing of the task.
        mask_depth: drop pixels of unknown depth, which would otherwise lie at the camera.
        points: how many points of a patch are embedded together (SpatialVLA, Qu et al. 2025), a square number: 4 are
            the means of a patch's four quarters, which show how its surface is inclined; 1 is the patch's own mean.
    """

    depth_sampling: DepthSampling = "mean"
    frequencies: Size = 4
    scale: Positive = 1.0
    near: Annotated[float, Ge(0), AllowInfNan(False)] = 0.065
    kind: PositionKind = "3d"
    crop: bool = True
    mask_depth: bool = True
    points: Count = 1

    @property
    def points_a_side(self) -> int:
        return math.isqrt(self.points)


@dataclass(frozen=True)
class SpatialVLAConfig:
    """The shape of the network and the meaning of its numbers.

    Attributes:
        vision: the vision tower.
        text: the language model.
        expert: the action expert.
        position: the position embedding.
        voxel_size: metres; None: every patch is its own token.
        max_tokens: scene tokens an observation at most, the rest thinned out evenly; None: all; 0: a blind policy.
        frame: origin of positions, "gripper" (axes stay the world's) or "world".
        action_expert_type: which of the two fusion experts.
        attention: which attention kernel runs.
        conditioning: of late fusion: the context stands before the suffix in the Gemma, or, an ablation, each layer of
            the Gemma reads it through a cross-attention of its own.

    Raises:
        SimEvalError: a field out of its bounds, or parts that do not fit each other.
    """

    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    expert: ExpertConfig = field(default_factory=ExpertConfig)
    position: PositionConfig = field(default_factory=PositionConfig)
    voxel_size: Positive | None = 0.02
    max_tokens: Size | None = None
    frame: Frame = "gripper"
    action_expert_type: ActionExpertType = "deep_llama"
    attention: Attention = "sdpa"
    conditioning: Conditioning = "prefix"

    def __post_init__(self) -> None:
        vision, text, expert, position = self.vision, self.text, self.expert, self.position
        for name, part in (("vision", vision), ("text", text), ("expert", expert), ("position", position)):
            decode(type(part), part, name)
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
        side, several = position.points_a_side, position.points > 1
        _demand(
            side**2 == position.points,
            f"position.points must be a square number, such as 1, 4 or 16, not {position.points}",
        )
        _demand(
            not several or position.kind == "3d",
            "position.points above 1 are points in space: leave position.kind '3d'",
        )
        _demand(
            not several or position.depth_sampling == "mean",
            "position.points above 1 are means of a patch's cells: leave position.depth_sampling 'mean'",
        )
        _demand(
            vision.patch_size % side == 0,
            f"position.points {position.points} divide a patch into {side} x {side} cells: "
            f"make vision.patch_size {vision.patch_size} a multiple of {side}",
        )
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
                "conditioning is an option of late_gemma: leave it 'prefix' for deep_llama",
            )
        else:
            _demand(
                expert.context_projection == "vlm",
                "expert.context_projection is an option of deep_llama: leave it 'vlm' for late_gemma",
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
        return decode(cls, old_files.network(data), "network")


def _demand(holds: bool, message: str) -> None:
    if not holds:
        raise SimEvalError(message)


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
