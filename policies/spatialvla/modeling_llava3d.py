"""LLaVA-3D (Zhu et al. 2024): CLIP patches with a 3-D position embedding, pooled to voxels, read by a causal Llama."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.clip.configuration_clip import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPVisionModel
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaModel

from sim_eval.core.errors import SimEvalError
from sim_eval.policies.spatialvla.configuration_spatialvla import DepthSampling, SpatialVLAConfig
from sim_eval.policies.spatialvla.masks import additive_mask, causal_mask

IMAGE_TOKEN = -200  # LLaVA's placeholder in the token ids
VIEWS_TOGETHER = 8  # views per padded pass of the vision tower


@dataclass(frozen=True)
class TensorGroup:
    """A dataclass of tensors, other groups and anything else, which stays as it is."""

    def changed(self, change: Callable[[Tensor], Tensor]) -> Self:
        """A copy with every tensor changed."""

        def new(value: Any) -> Any:
            if isinstance(value, TensorGroup):
                return value.changed(change)
            return change(value) if isinstance(value, Tensor) else value

        return replace(self, **{name: new(value) for name, value in vars(self).items()})

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        return self.changed(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """For torch's DataLoader: a copy from which a GPU reads while the CPU goes on."""
        return self.changed(Tensor.pin_memory)


@dataclass(frozen=True)
class Geometry(TensorGroup):
    """What places the pixels of B observations with V views each in the frame that the config names.

    Attributes:
        depths: float32 [B, V, H, W], planar metres; 0 or not finite: unknown.
        intrinsics: float32 [B, V, 3, 3], pixels.
        poses: float32 [B, V, 4, 4], OpenCV camera to the frame.
        workspace: float32 [B, 2, 3], lower and upper corner.
    """

    depths: Tensor
    intrinsics: Tensor
    poses: Tensor
    workspace: Tensor


@dataclass(frozen=True)
class SpatialVLAInputs(TensorGroup):
    """The network's inputs: B observations with V views each.

    Attributes:
        pixel_values: float [B, V, 3, H, W], CLIP-normalised.
        geometry: positions of the pixels; None: unknown, the views are plain pictures as in LLaVA.
        input_ids: int64 [B, L], one ``IMAGE_TOKEN`` per row.
        attention_mask: bool [B, L].
        state: float [B, S], normalised proprioception.

    Raises:
        SimEvalError: the tensors differ in their numbers of observations, views or pixels.
    """

    pixel_values: Tensor
    geometry: Geometry | None
    input_ids: Tensor
    attention_mask: Tensor
    state: Tensor

    def __post_init__(self) -> None:
        batch, views, _, height, width = self.pixel_values.shape
        wanted = {"input_ids": (batch,), "attention_mask": tuple(self.input_ids.shape), "state": (batch,)}
        tensors = dict(vars(self))
        if self.geometry is not None:
            tensors |= vars(self.geometry)
            wanted |= {"depths": (batch, views, height, width), "workspace": (batch,)}
            wanted |= {"intrinsics": (batch, views), "poses": (batch, views)}
        for name, shape in wanted.items():
            actual = tuple(tensors[name].shape)
            if actual[: len(shape)] != shape:
                raise SimEvalError(
                    f"{name} of shape {actual} do not go with pixel_values of {batch} observations with {views} views "
                    f"of {height}x{width} pixels each: they must begin with {shape}"
                )


@dataclass(frozen=True)
class Context:
    """The VLM's output for the action expert.

    Attributes:
        hidden_states: one [B, T, width] per layer: the layer's *input*, as in transformers; for late fusion one more,
            the output of the final norm.
        valid: bool [B, T], left-aligned.
        position_ids: int64 [B, T].
    """

    hidden_states: tuple[Tensor, ...]
    valid: Tensor
    position_ids: Tensor


def full_precision(tensor: Tensor) -> AbstractContextManager[object]:
    """Switches autocast off on the tensor's device: bfloat16 resolves a metre to four millimetres only."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def unproject(depths: Tensor, intrinsics: Tensor, poses: Tensor) -> Tensor:
    """Converts pixels to points, in float32 (bfloat16 would be wrong by millimetres).

    Args:
        depths: [N, H, W], planar metres.
        intrinsics: [N, 3, 3]; pixel (row, column) has its centre at (column + 0.5, row + 0.5).
        poses: [N, 4, 4], OpenCV camera to frame.

    Returns:
        Points in that frame, metres, [N, 3, H, W].
    """
    _, height, width = depths.shape
    device = depths.device
    u = torch.arange(width, device=device, dtype=torch.float32) + 0.5
    v = torch.arange(height, device=device, dtype=torch.float32) + 0.5
    poses = poses.float()
    rays = poses[:, :3, :3] @ torch.linalg.inv(intrinsics.float())
    columns = rays[:, :, 0, None, None] * u + rays[:, :, 2, None, None]
    directions = columns + rays[:, :, 1, None, None] * v[:, None]
    # In place: for a million pixels, allocating memory takes longer than the arithmetic.
    points: Tensor = directions.mul_(depths.float()[:, None]).add_(poses[:, :3, 3, None, None])
    return points


def patch_positions(
    points: Tensor, depths: Tensor, workspace: Tensor, patch_size: int, sampling: DepthSampling
) -> tuple[Tensor, Tensor]:
    """The position of each patch, and whether it shows anything in the workspace.

    A pixel is valid if its depth is finite and positive and its point lies in the workspace. A patch is kept if one of
    the pixels that give its position is valid: any of its pixels for "mean", one certain pixel for "center", "corner".

    Args:
        points: [N, 3, H, W].
        depths: [N, H, W].
        workspace: [N, 2, 3], lower and upper corner.
        patch_size: pixels.
        sampling: which pixels give the position.

    Returns:
        Positions [N, P, 3] (0 where not kept), and kept bool [N, P]; patches row by row.
    """
    if sampling != "mean":
        # "corner" is the nearest resize of LLaVA-3D, "center" torch's nearest-exact.
        first = patch_size // 2 if sampling == "center" else 0
        points = points[:, :, first::patch_size, first::patch_size]
        depths = depths[:, first::patch_size, first::patch_size]
        patch_size = 1
    lower, upper = workspace[:, 0, :, None, None], workspace[:, 1, :, None, None]
    valid = (depths > 0) & (depths < math.inf)
    for axis in range(3):  # one axis at a time: the results for a million pixels and three axes exceed the cache
        valid &= points[:, axis] >= lower[:, axis]
        valid &= points[:, axis] <= upper[:, axis]
    seen = valid[:, None]
    total, number = (
        F.avg_pool2d(values, patch_size, divisor_override=1)
        for values in (torch.where(seen, points, 0.0), seen.to(points.dtype))
    )
    return (total / number.clamp(min=1)).flatten(2).transpose(1, 2), (number > 0).flatten(1)


def cell_positions(
    points: Tensor, depths: Tensor, workspace: Tensor, patch_size: int, side: int, patches: Tensor
) -> Tensor:
    """The positions of the ``side`` x ``side`` cells of each patch: means of their valid pixels.

    Args:
        points, depths, workspace, patch_size: as for :func:`patch_positions`.
        side: cells along a patch's side.
        patches: [N, P, 3], positions of the whole patches, for cells without valid pixels.

    Returns:
        [N, P, 3 * side * side]; patches and cells row by row.
    """
    count, height, width = depths.shape
    cells, seen = patch_positions(points, depths, workspace, patch_size // side, "mean")
    grid = (count, height // patch_size, side, width // patch_size, side, -1)
    cells, seen = (
        part.reshape(grid).transpose(2, 3).reshape(*patches.shape[:2], side**2, -1) for part in (cells, seen)
    )
    return torch.where(seen, cells, patches[:, :, None]).flatten(2)


def pool_voxels(features: Tensor, positions: Tensor, owner: Tensor, voxel_size: float) -> tuple[Tensor, Tensor]:
    """Averages the features in each voxel of each observation.

    Args:
        features: [M, C].
        positions: finite, [M, 3], metres.
        owner: int64 [M], the observation of each.
        voxel_size: metres.

    Returns:
        Features [K, C] and owners [K], ordered by observation and then by voxel, x-major.
    """
    if len(features) == 0:
        return features, owner
    voxel = torch.round(positions / voxel_size).long()
    voxel = voxel - voxel.amin(0)
    _, y_count, z_count = (voxel.amax(0) + 1).unbind()
    x_count = voxel[:, 0].amax() + 1
    key = ((owner * x_count + voxel[:, 0]) * y_count + voxel[:, 1]) * z_count + voxel[:, 2]
    unique, inverse, counts = torch.unique(key, return_inverse=True, return_counts=True)
    total = features.new_zeros(len(unique), features.shape[1]).index_add(0, inverse, features)
    return total / counts[:, None], unique // (x_count * y_count * z_count)


def thin_out(owner: Tensor, limit: int) -> Tensor:
    """Which tokens are kept when an observation may have at most ``limit``; they are spread evenly over their order.

    LLaVA-3D drops tokens at random, even in evaluation; here the same observation must always give the same answer.

    Args:
        owner: int64 [K], the observation of each token, ascending.
        limit: tokens per observation.

    Returns:
        Indices of the tokens that are kept, ascending.
    """
    count = torch.bincount(owner)
    rank = torch.arange(len(owner), device=owner.device) - (count.cumsum(0) - count)[owner]
    share = limit * rank
    # Of n tokens, the k-th is kept if k * limit / n passes a whole number: this holds for exactly ``limit`` of them.
    stays = (count[owner] <= limit) | ((share + limit) // count[owner] > share // count[owner])
    return stays.nonzero()[:, 0]


def picture_places(views: int, rows: int, columns: int) -> Tensor:
    """View, row and column of each patch as (u, v, view), the middles of equal cells of [-1, 1].

    Returns:
        [V, P, 3], patches row by row.
    """
    view, v, u = ((torch.arange(count) + 0.5) * 2 / count - 1 for count in (views, rows, columns))
    grid = torch.meshgrid(view, v, u, indexing="ij")
    return torch.stack(grid[::-1], dim=-1).flatten(1, 2)


class PositionEmbedding3D(nn.Module):
    """Positions [M, 3 * points] -> [M, width]: optional Fourier bands, then LLaVA-3D's MLP."""

    def __init__(self, width: int, frequencies: int, scale: float, points: int = 1) -> None:
        super().__init__()
        self.scale = scale
        self.frequencies = frequencies
        exact = torch.float32  # whatever the model's type: bfloat16 resolves a metre to four millimetres only
        self.position_embedding_head = nn.Sequential(
            nn.Linear(points * (3 + 6 * frequencies), width, dtype=exact),
            nn.LayerNorm(width, dtype=exact),
            nn.ReLU(),
            nn.Linear(width, width, dtype=exact),
        )
        for parameter in self.position_embedding_head.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, positions: Tensor) -> Tensor:
        inputs = positions.float() / self.scale
        if self.frequencies:
            bands = math.pi * 2.0 ** torch.arange(self.frequencies, device=positions.device)
            angles = (inputs[:, :, None] * bands).flatten(1)
            inputs = torch.cat([inputs, angles.sin(), angles.cos()], dim=1)
        with full_precision(positions):
            embedding: Tensor = self.position_embedding_head(inputs)
        return embedding


class LLaVA3DModel(nn.Module):
    """Posed RGB-D views and an instruction -> the hidden states of a causal Llama.

    It computes only what the action expert reads: the last layer and the final norm run for late fusion only.
    """

    def __init__(self, config: SpatialVLAConfig) -> None:
        super().__init__()
        self.config = config
        vision, text = config.vision, config.text
        tower = CLIPVisionModel(
            CLIPVisionConfig(
                image_size=vision.image_size,
                patch_size=vision.patch_size,
                hidden_size=vision.width,
                num_hidden_layers=vision.built_layers,
                num_attention_heads=vision.heads,
                intermediate_size=vision.mlp,
                attn_implementation=config.attention,
            )
        )
        # Up to transformers 5.5 a CLIPVisionModel holds the tower and is not itself one. The tower's names go to disk.
        self.vision_tower = getattr(tower, "vision_model", tower)
        self.vision_tower.post_layernorm = nn.Identity()  # patch features are read before it
        position = config.position
        self.position_embedding = PositionEmbedding3D(
            vision.width, position.frequencies, position.scale if position.kind == "3d" else 1.0, position.points
        )
        self.mm_projector = nn.Sequential(
            nn.Linear(vision.width, text.width), nn.GELU(), nn.Linear(text.width, text.width)
        )
        self.language_model = LlamaModel(
            LlamaConfig(
                vocab_size=text.vocab_size,
                hidden_size=text.width,
                intermediate_size=text.mlp,
                num_hidden_layers=text.layers,
                num_attention_heads=text.heads,
                num_key_value_heads=text.kv_heads,
                rms_norm_eps=text.norm_eps,
                rope_parameters={"rope_type": "default", "rope_theta": text.rope_theta},
                attn_implementation=config.attention,
            )
        )

    def forward(self, inputs: SpatialVLAInputs) -> Context:
        ((_, context),) = self.contexts(inputs, len(inputs.input_ids))
        return context

    def contexts(self, inputs: SpatialVLAInputs, together: int) -> list[tuple[Tensor, Context]]:
        """Runs the batch in groups of ``together`` observations of similar length, because padding costs time.

        Returns:
            For each group, its rows of the batch, int64 [b], and their context. A group that is the whole batch keeps
            its order.
        """
        tokens, owner = self.embed_scene(inputs)
        groups = self.splice(tokens, owner, inputs.input_ids, inputs.attention_mask, together)
        return [(rows, self.read(embeddings, valid)) for rows, embeddings, valid in groups]

    def read(self, embeddings: Tensor, valid: Tensor) -> Context:
        """Runs the Llama over embeddings [B, T, width]; valid bool [B, T] is False for padding."""
        position_ids = (valid.cumsum(1) - 1).clamp(min=0)
        model = self.language_model
        mask = causal_mask(valid, embeddings.dtype)
        rotary = model.rotary_emb(embeddings, position_ids)
        hidden_states = [embeddings]
        for layer in model.layers[:-1]:
            hidden_states.append(layer(hidden_states[-1], attention_mask=mask, position_embeddings=rotary))
        if self.config.action_expert_type == "late_gemma":
            last = model.layers[-1](hidden_states[-1], attention_mask=mask, position_embeddings=rotary)
            hidden_states.append(model.norm(last))
        return Context(tuple(hidden_states), valid, position_ids)

    def embed_scene(self, inputs: SpatialVLAInputs) -> tuple[Tensor, Tensor]:
        """The scene tokens of all observations, [K, text width], and the observation of each, ascending, [K]."""
        batch, views = inputs.pixel_values.shape[:2]
        pixel_values = inputs.pixel_values.flatten(0, 1)
        if inputs.geometry is None:  # LLaVA's way with plain pictures
            every_patch = inputs.input_ids.new_ones(len(pixel_values), self.config.vision.grid**2, dtype=torch.bool)
            features = self.encode_patches(pixel_values, every_patch)
            owner = torch.arange(batch, device=pixel_values.device).repeat_interleave(len(features) // batch)
            return self.mm_projector(features), owner
        position, vision = self.config.position, self.config.vision
        pixels = self.locate_pixels(inputs.geometry)
        positions, kept = patch_positions(*pixels, vision.patch_size, position.depth_sampling)
        if self.config.max_tokens == 0:
            kept = torch.zeros_like(kept)
        features = self.encode_patches(pixel_values, kept)
        if position.kind == "2d":
            positions = picture_places(views, vision.grid, vision.grid).to(positions).repeat(batch, 1, 1)
        embedded = positions
        if position.points > 1:
            embedded = cell_positions(*pixels, vision.patch_size, position.points_a_side, positions)
        positions = positions[kept]
        features = features + self.position_embedding(embedded[kept]).to(features.dtype)
        owner = kept.nonzero()[:, 0] // views
        if position.kind == "3d" and self.config.voxel_size is not None:
            features, owner = pool_voxels(features, positions, owner, self.config.voxel_size)
        if self.config.max_tokens:
            few = thin_out(owner, self.config.max_tokens)
            features, owner = features[few], owner[few]
        return self.mm_projector(features), owner

    def locate_patches(self, geometry: Geometry) -> tuple[Tensor, Tensor]:
        """Positions [N, P, 3] of the patches of all N = B * V views, and which are kept, bool [N, P]."""
        sampling = self.config.position.depth_sampling
        return patch_positions(*self.locate_pixels(geometry), self.config.vision.patch_size, sampling)

    def locate_pixels(self, geometry: Geometry) -> tuple[Tensor, Tensor, Tensor]:
        """Points [N, 3, H, W] of all N = B * V views, and the depths [N, H, W] and boxes [N, 2, 3] that validate them.

        Without ``position.mask_depth`` all pixels of finite depth are valid, even those of depth 0.
        """
        position = self.config.position
        views = geometry.depths.shape[1]
        depths, workspace = geometry.depths.flatten(0, 1), geometry.workspace.repeat_interleave(views, 0)
        finite = depths.isfinite()
        depths = depths.masked_fill(depths < position.near, 0.0)
        with full_precision(depths):
            points = unproject(depths, geometry.intrinsics.flatten(0, 1), geometry.poses.flatten(0, 1))
        if not position.mask_depth:
            depths = finite.to(depths.dtype)
        if not position.crop:
            workspace = workspace.new_tensor([[-math.inf] * 3, [math.inf] * 3]).expand_as(workspace)
        return points, depths, workspace

    def encode_patches(self, pixel_values: Tensor, kept: Tensor) -> Tensor:
        """CLIP features of the M kept patches, in their order: [N, 3, H, W], bool [N, P] -> [M, vision width]."""
        tower = self.vision_tower
        seen = kept if self.config.vision.prune else torch.ones_like(kept)
        image, patch = seen.nonzero(as_tuple=True)
        embeddings = tower.embeddings
        weight = embeddings.patch_embedding.weight
        size = embeddings.patch_size
        # The convolution's stride is its kernel, so a patch's embedding is one matrix product.
        patches = pixel_values.unfold(2, size, size).unfold(3, size, size).permute(0, 2, 3, 1, 4, 5)
        grid = patches.shape[2]
        pixels = patches[image, patch // grid, patch % grid].flatten(1).to(weight.dtype)
        place = embeddings.position_embedding.weight
        tokens = F.linear(pixels, weight.flatten(1)) + place[1 + patch]
        first = embeddings.class_embedding + place[0]
        length = seen.sum(1)
        ends = length.cumsum(0)
        # Views of similar length run together, because padding costs time; at the end the order is restored.
        order = length.argsort(stable=True)
        parts, origins = [], []
        for views in torch.split(order, VIEWS_TOGETHER):
            columns = int(length[views[-1]])
            slots = torch.arange(columns, device=seen.device)
            valid = slots < length[views, None]
            source = ((ends - length)[views, None] + slots).clamp(max=max(len(tokens) - 1, 0))
            hidden = torch.cat([first.expand(len(views), 1, -1), tokens[source]], dim=1)
            mask = additive_mask(F.pad(valid, (1, 0), value=True)[:, None], hidden.dtype)
            hidden = tower.pre_layrnorm(hidden)
            for layer in tower.encoder.layers:
                hidden = layer(hidden, mask)
            parts.append(hidden[:, 1:][valid])
            origins.append(source[valid])
        features = torch.cat(parts)[torch.cat(origins).argsort()]
        return features if self.config.vision.prune else features[kept.flatten()]

    def splice(
        self, tokens: Tensor, owner: Tensor, input_ids: Tensor, attention_mask: Tensor, together: int
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Replaces each prompt's placeholder by its scene tokens, left-aligned and padded.

        Args:
            tokens: [K, width].
            owner: [K], the row of each, ascending.
            input_ids: [B, L] with one ``IMAGE_TOKEN`` per row.
            attention_mask: bool [B, L].
            together: rows per group, see :meth:`contexts`.

        Returns:
            For each group: its rows [b], embeddings [b, T, width] and valid bool [b, T].
        """
        batch = len(input_ids)
        is_image = input_ids == IMAGE_TOKEN
        is_text = attention_mask.bool() & ~is_image
        scene_count = torch.bincount(owner, minlength=batch)
        text_rank = is_text.cumsum(1) - 1
        after = is_image.cumsum(1) > 0
        text_column = text_rank + after * scene_count[:, None]
        text_before = (is_text & ~after).sum(1)
        start = scene_count.cumsum(0) - scene_count
        scene_column = torch.arange(len(owner), device=owner.device) - start[owner] + text_before[owner]
        length = scene_count + is_text.sum(1)
        order = length.argsort(stable=True) if together < batch else torch.arange(batch, device=owner.device)
        groups = torch.split(order, together)
        shapes = [(len(rows), int(length[rows].max())) for rows in groups]
        columns = torch.cat([length.new_full((count,), width) for count, width in shapes])
        begin = torch.empty_like(columns).index_copy(0, order, columns.cumsum(0) - columns)
        words = self.language_model.embed_tokens(input_ids[is_text])
        place = torch.cat([(begin[:, None] + text_column)[is_text], begin[owner] + scene_column])
        sizes = [count * width for count, width in shapes]
        embeddings = words.new_zeros(sum(sizes), words.shape[1])
        embeddings = embeddings.index_copy(0, place, torch.cat([words, tokens.to(words.dtype)]))
        return [
            (rows, part.view(*shape, -1), torch.arange(shape[1], device=owner.device) < length[rows, None])
            for rows, shape, part in zip(groups, shapes, embeddings.split(sizes), strict=True)
        ]
