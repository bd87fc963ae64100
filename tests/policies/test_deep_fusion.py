"""Deep fusion: whose keys the expert reads, and that it is the VLM's lockstep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaModel

from sim_eval.core.errors import SimEvalError
from sim_eval.policies.spatialvla.configuration_spatialvla import Attention, ExpertConfig, SpatialVLAConfig
from sim_eval.policies.spatialvla.masks import additive_mask
from sim_eval.policies.spatialvla.modeling_action_expert import key_values
from sim_eval.policies.spatialvla.modeling_llava3d import Context, SpatialVLAInputs
from sim_eval.policies.spatialvla.modeling_spatialvla import SpatialVLAForConditionalGeneration

Make = Callable[[SpatialVLAConfig], SpatialVLAForConditionalGeneration]
LossOf = Callable[[SpatialVLAForConditionalGeneration, SpatialVLAInputs], Tensor]
VelocityOf = Callable[[SpatialVLAForConditionalGeneration, Context, Tensor, Tensor, Tensor], Tensor]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_keys_and_values_equal_the_vlms_own_cache(
    config: SpatialVLAConfig, make_model: Make, inputs: SpatialVLAInputs, attention: Attention
) -> None:
    model = make_model(replace(config, attention=attention))
    context = model.vlm(inputs)
    llama = model.vlm.language_model
    cache = DynamicCache(config=llama.config)
    llama(None, context.valid.long(), context.position_ids, cache, inputs_embeds=context.hidden_states[0])
    prepared = model.action_expert.prepare(context, llama.layers)
    seen = context.valid[:, None, :, None]
    for (keys, values), layer in zip(prepared.key_values, cache.layers, strict=True):
        torch.testing.assert_close(keys * seen, layer.keys * seen, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(values * seen, layer.values * seen, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_without_context_it_is_a_stock_llama(config: SpatialVLAConfig, make_model: Make, attention: Attention) -> None:
    expert = make_model(replace(config, attention=attention)).action_expert
    ours = expert.model
    stock = LlamaModel(LlamaConfig(**{**ours.config.to_dict(), "vocab_size": 2}))
    assert stock.load_state_dict(ours.state_dict(), strict=False).missing_keys == ["embed_tokens.weight"]
    tokens, visible = torch.randn(2, 6, 24), torch.rand(2, 6, 6) < 0.5
    visible |= torch.eye(6, dtype=torch.bool)
    mask, positions = additive_mask(visible, torch.float32), torch.arange(3, 9).expand(2, -1)
    empty = torch.zeros(2, config.expert.kv_heads, 0, config.expert.head_dim)
    found = ours(tokens, mask, ours.rotary_emb(tokens, positions), ((empty, empty),) * config.expert.layers)
    expected = stock(inputs_embeds=tokens, attention_mask=mask, position_ids=positions).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_equals_one_joint_sequence(config: SpatialVLAConfig) -> None:
    """Lockstep by definition: VLM and expert with the same weights are one Llama over [context | suffix]."""
    torch.manual_seed(0)
    same = replace(config, expert=replace(config.expert, width=32, mlp=config.text.mlp))
    model = SpatialVLAForConditionalGeneration(same)
    llama, expert = model.vlm.language_model, model.action_expert
    expert.model.load_state_dict(llama.state_dict(), strict=False)
    length, suffix = 5, len(expert.blocks)
    context_tokens, suffix_tokens = torch.randn(2, length, 32), torch.randn(2, suffix, 32)
    visible = torch.ones(length + suffix, length + suffix, dtype=torch.bool).tril()
    visible[length:, length:] = expert.blocks[None] <= expert.blocks[:, None]
    joint = llama(
        inputs_embeds=torch.cat([context_tokens, suffix_tokens], 1),
        attention_mask=additive_mask(visible.expand(2, -1, -1), torch.float32),
        output_hidden_states=True,
    )
    context = Context(
        tuple(hidden[:, :length] for hidden in joint.hidden_states[:-1]),
        torch.ones(2, length, dtype=torch.bool),
        torch.arange(length).expand(2, -1),
    )
    prepared = expert.prepare(context, llama.layers)
    found = expert.model(suffix_tokens, prepared.mask, prepared.position_embeddings, prepared.key_values)
    torch.testing.assert_close(found, joint.last_hidden_state[:, length:], atol=1e-5, rtol=1e-5)


def test_every_layer_reads_its_own_layer(
    model: SpatialVLAForConditionalGeneration, inputs: SpatialVLAInputs, velocity_of: VelocityOf
) -> None:
    context, x, time = model.vlm(inputs), torch.randn(3, 1, 4, 7), torch.rand(3, 1)
    first, second, third = context.hidden_states
    swapped = replace(context, hidden_states=(first, third, second))
    expected = velocity_of(model, context, inputs.state, x, time)
    assert not torch.allclose(velocity_of(model, swapped, inputs.state, x, time), expected, atol=1e-6)


@pytest.mark.parametrize("projection", ["vlm", "expert"])
def test_every_trainable_parameter_has_a_gradient_and_no_frozen_one(
    config: SpatialVLAConfig, make_model: Make, inputs: SpatialVLAInputs, loss_of: LossOf, projection: str
) -> None:
    expert = replace(config.expert, width=32, context_projection=projection)  # type: ignore[arg-type]
    model = make_model(replace(config, expert=expert))
    loss_of(model, inputs).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    frozen = {name.split(".")[-2] for name, p in model.named_parameters() if not p.requires_grad}
    assert {"q_proj", "o_proj", "down_proj", "norm"} <= frozen


def test_expert_projection_reads_a_frozen_vlm(
    config: SpatialVLAConfig, make_model: Make, inputs: SpatialVLAInputs, loss_of: LossOf
) -> None:
    model = make_model(replace(config, expert=replace(config.expert, width=32, context_projection="expert")))
    model.vlm.requires_grad_(False)
    loss_of(model, inputs).backward()
    assert all(parameter.grad is None for parameter in model.vlm.parameters())
    layer = model.action_expert.model.layers[0]
    context = model.vlm(inputs)
    places = model.action_expert.model.rotary_emb(context.hidden_states[0], context.position_ids)
    keys, _ = key_values(layer, context.hidden_states[0], places)
    found = model.action_expert.prepare(context, model.vlm.language_model.layers).key_values[0][0]
    assert torch.equal(found, keys)


@pytest.mark.parametrize(
    "change", [{"layers": 2}, {"kv_heads": 4}, {"head_dim": 16}, {"rope_theta": 5e5}, {"context_projection": "expert"}]
)
def test_mismatched_experts_are_refused(config: SpatialVLAConfig, change: dict[str, object]) -> None:
    with pytest.raises(SimEvalError, match=r"must equal|equal to"):
        replace(config, expert=ExpertConfig(**{**vars(config.expert), **change}))  # type: ignore[arg-type]
