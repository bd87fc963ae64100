"""The real sizes, on the meta device: shapes and counts as they are published."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from transformers import GemmaConfig, GemmaModel, LlamaConfig, LlamaModel
from transformers.models.clip.configuration_clip import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPVisionModel

from sim_eval.policies.spatialvla.configuration_spatialvla import SIZES, ActionExpertType
from sim_eval.policies.spatialvla.modeling_spatialvla import SpatialVLAForConditionalGeneration

# Published: Llama-7B 6,738,415,616 with a word head of 32,000 x 4,096; gemma-2b 2,506,172,416, whose word embeddings of
# 256,000 x 2,048 no policy reads; CLIP-L/14-336's tower 303,507,456.
LLAMA = 6_738_415_616 - 32_000 * 4_096
GEMMA = 2_506_172_416 - 256_000 * 2_048
CLIP = 303_507_456


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("expert", "decoder"), [("deep_llama", LLAMA - 32_000 * 4_096), ("late_gemma", GEMMA)])
def test_seven_billion_have_the_published_parts(expert: ActionExpertType, decoder: int) -> None:
    with torch.device("meta"):
        model = SpatialVLAForConditionalGeneration(SIZES["llava3d-7b"][expert])
        llama = LlamaModel(LlamaConfig())
        tower = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=1024,
                intermediate_size=4096,
                num_hidden_layers=24,
                num_attention_heads=16,
                image_size=336,
                patch_size=14,
            )
        )
    clip = getattr(tower, "vision_model", tower)  # the level is there up to transformers 5.5
    vlm = model.vlm
    assert count(vlm.language_model) == count(llama) == LLAMA
    assert count(model.action_expert.model) == decoder
    # Of the tower, the layer above the one that is read, and the norm after it, are not built.
    unbuilt = count(clip.encoder.layers[-1]) + count(clip.post_layernorm)
    assert count(clip) == CLIP
    assert count(vlm.vision_tower) == CLIP - unbuilt
    assert count(vlm.mm_projector) == (1024 + 1) * 4096 + (4096 + 1) * 4096
    assert count(vlm.position_embedding) == (3 + 1) * 1024 + 2 * 1024 + (1024 + 1) * 1024
    shapes = Counter(tuple(value.shape) for value in llama.state_dict().values())
    assert Counter(tuple(value.shape) for value in vlm.language_model.state_dict().values()) == shapes


def test_the_late_decoder_is_gemma_2b() -> None:
    with torch.device("meta"):
        model = SpatialVLAForConditionalGeneration(SIZES["llava3d-7b"]["late_gemma"])
        gemma = GemmaModel(
            GemmaConfig(
                hidden_size=2048,
                intermediate_size=16384,
                num_hidden_layers=18,
                num_attention_heads=8,
                num_key_value_heads=1,
                head_dim=256,
            )
        )
    ours = {name: value.shape for name, value in model.action_expert.model.state_dict().items()}
    theirs = {name: value.shape for name, value in gemma.state_dict().items() if not name.startswith("embed_tokens")}
    assert ours == theirs
