"""A scene for benchmarks that need a network's inputs and no simulator."""

from __future__ import annotations

import torch

from sim_eval.policies.spatialvla.configuration_spatialvla import SpatialVLAConfig
from sim_eval.policies.spatialvla.modeling_llava3d import IMAGE_TOKEN, Geometry, SpatialVLAInputs


def made_up_scene(
    config: SpatialVLAConfig, prompt: int, patches: int | None = None, views: int = 2
) -> SpatialVLAInputs:
    """One observation of noise pictures on a floor that recedes from 1 m to 4 m; the same at every call.

    Args:
        config: of the network that is to read it.
        prompt: token ids, the image's placeholder among them.
        patches: how many, of all views one after the other, have a known depth; None: all.
        views: cameras, half a metre apart.
    """
    size, grid, patch = config.vision.image_size, config.vision.grid, config.vision.patch_size
    generator = torch.Generator().manual_seed(0)
    every = views * grid**2
    known = torch.arange(every) < (every if patches is None else patches)
    pixels = known.view(views, grid, grid).repeat_interleave(patch, 1).repeat_interleave(patch, 2)
    depths = torch.linspace(4.0, 1.0, size)[:, None].expand(views, size, size) * pixels
    intrinsics = torch.tensor([[size, 0.0, size / 2], [0.0, size, size / 2], [0.0, 0.0, 1.0]])
    poses = torch.eye(4).repeat(views, 1, 1)
    poses[:, 0, 3] = 0.5 * torch.arange(views)
    ids = torch.ones(1, prompt, dtype=torch.long)
    ids[0, prompt // 2] = IMAGE_TOKEN
    return SpatialVLAInputs(
        pixel_values=torch.randn(1, views, 3, size, size, generator=generator),
        geometry=Geometry(
            depths=depths[None],
            intrinsics=intrinsics.expand(1, views, 3, 3),
            poses=poses[None],
            workspace=torch.tensor([[[-10.0] * 3, [10.0] * 3]]),
        ),
        input_ids=ids,
        attention_mask=torch.ones(1, prompt, dtype=torch.bool),
        state=torch.randn(1, config.expert.state_dim, generator=generator),
    )
