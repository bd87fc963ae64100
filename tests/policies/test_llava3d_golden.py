"""What LLaVA-3D's own code computed from raw views, stage by stage; see golden/llava3d/README.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from sim_eval.core.types import CameraView, Observation, WorkspaceBox
from sim_eval.policies.spatialvla.configuration_spatialvla import (
    ExpertConfig,
    PositionConfig,
    SpatialVLAConfig,
    TextConfig,
    VisionConfig,
)
from sim_eval.policies.spatialvla.image_processing_llava3d import PIXEL_CENTRE, aligned_view
from sim_eval.policies.spatialvla.modeling_llava3d import LLaVA3DModel, SpatialVLAInputs
from sim_eval.policies.spatialvla.processing_spatialvla import SpatialVLAProcessor

GOLDEN = Path(__file__).parent / "golden" / "llava3d"
POSITION_KEYS = "model.video_tower.video_tower.positional_embedding."
CONFIG = SpatialVLAConfig(
    vision=VisionConfig(image_size=112, patch_size=14, width=32, layers=3, mlp=64, feature_layer=-2, prune=False),
    text=TextConfig(width=48, layers=3, heads=4, kv_heads=2, mlp=96, norm_eps=1e-5, vocab_size=320),
    expert=ExpertConfig(),
    position=PositionConfig(depth_sampling="corner", frequencies=0, near=0.0, crop=False, mask_depth=False),
    voxel_size=0.2,
    frame="world",
    action_expert_type="late_gemma",  # so that the last layer and the final norm are run
)


@dataclass(frozen=True)
class Case:
    """One golden folder: what went in, what came out, and the weights by their names in our model (and lm_head)."""

    data: Mapping[str, NDArray[np.generic]]
    inputs: SpatialVLAInputs
    weights: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self.data[name])


@pytest.fixture(params=["square", "landscape"])
def case(request: pytest.FixtureRequest, processor: SpatialVLAProcessor) -> Case:
    folder = GOLDEN / request.param
    data = dict(np.load(folder / "case.npz"))
    published = load_file(folder / "model.safetensors")
    tower = load_file(folder / "vision_tower" / "model.safetensors")
    weights = {f"vision_tower.{name}": value for name, value in tower.items()}
    for name, value in published.items():
        if name.startswith(POSITION_KEYS):
            weights["position_embedding." + name.removeprefix(POSITION_KEYS)] = value
        elif name.startswith("model.mm_projector."):
            weights[name.removeprefix("model.")] = value
        elif name.startswith(("model.embed_tokens.", "model.layers.", "model.norm.")):
            weights["language_model." + name.removeprefix("model.")] = value
    return Case(data, inputs_of(data, processor), {**weights, "lm_head": published["lm_head.weight"]})


def load_model(config: SpatialVLAConfig, weights: Mapping[str, Tensor]) -> LLaVA3DModel:
    model = LLaVA3DModel(config).eval()
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    return model


def inputs_of(data: Mapping[str, NDArray[np.generic]], processor: SpatialVLAProcessor) -> SpatialVLAInputs:
    """Raw views through the processor; only the prompt's ids are the golden ones."""
    intrinsics = data["intrinsics"][:3, :3].astype(np.float64)
    intrinsics[:2, 2] += PIXEL_CENTRE
    views = {
        f"view{number}": aligned_view(CameraView(rgb, depth, intrinsics, pose), data["axis_align"])
        for number, (rgb, depth, pose) in enumerate(
            zip(data["rgb"], (data["depth_mm"] / 1000).astype(np.float32), data["camera_to_world"], strict=True)
        )
    }
    spec = replace(processor.spec, cameras={name: view.depth.shape for name, view in views.items()})
    ours = SpatialVLAProcessor(CONFIG, spec, processor.stats, processor.tokenizer)
    proprio = {name: np.zeros(length) for name, length in spec.proprio.items()}
    nowhere = WorkspaceBox((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))  # the settings say that nothing is cropped
    ids = torch.from_numpy(data["input_ids"])
    made = ours([Observation(views, proprio, "", nowhere)])
    return replace(made, input_ids=ids, attention_mask=torch.ones_like(ids, dtype=torch.bool))


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_pictures_and_their_geometry(case: Case) -> None:
    geometry = case.inputs.geometry
    assert geometry is not None
    close(case.inputs.pixel_values[0], case["pixel_values"])
    assert torch.equal(geometry.depths[0], case["depth_m"])
    close(geometry.poses[0], case["poses_preprocessed"])
    intrinsics = geometry.intrinsics[0].clone()
    intrinsics[:, :2, 2] -= PIXEL_CENTRE
    close(intrinsics, case["intrinsics_preprocessed"][:, :3, :3])


@torch.no_grad()
def test_features_tokens_hidden_states_and_logits(case: Case) -> None:
    model, pixels = load_model(CONFIG, case.weights), case.inputs.pixel_values[0]
    features = model.encode_patches(pixels, torch.ones(len(pixels), CONFIG.vision.grid**2, dtype=torch.bool))
    close(features.view_as(case["clip_features"]), case["clip_features"])
    close(model.embed_scene(case.inputs)[0], case["visual_tokens"])
    context = model(case.inputs)
    assert context.valid.all()
    for number, hidden in enumerate(context.hidden_states):
        close(hidden, case[f"hidden_{number}"])
    assert number == CONFIG.text.layers
    close(hidden[:, -1] @ case.weights["lm_head"].T, case["logits"])


@torch.no_grad()
@pytest.mark.parametrize("feature_layer", [-1, -2])
def test_one_plain_picture(case: Case, feature_layer: int) -> None:
    """Without depth there is neither position nor pooling.

    The golden hidden states are of the tower's last layer, although the configuration says -2: in transformers 5.23 a
    tower inside a model that has recorded hidden states records each of its layers twice from then on, and the original
    was run on the picture after the views. So -1 is compared with them, and -2 with the golden features of the view.
    """
    picture = replace(case.inputs, pixel_values=case.inputs.pixel_values[:, :1], geometry=None)
    model = load_model(replace(CONFIG, vision=replace(CONFIG.vision, feature_layer=feature_layer)), case.weights)
    if feature_layer == -1:
        close(model(picture).hidden_states[-1], case["image_only_hidden_last"])
    else:
        tokens, owner = model.embed_scene(picture)
        close(tokens, model.mm_projector(case["clip_features"][0]))
        assert not owner.any()
