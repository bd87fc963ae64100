"""The expert: whose keys it reads, who sees whom, and that caching changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaModel

from sim_eval.envs.contract import SimEvalError
from sim_eval.policies.spatialvla import flow_matching
from sim_eval.policies.spatialvla.configuration_spatialvla import ExpertConfig, SpatialVLAConfig
from sim_eval.policies.spatialvla.masks import additive_mask
from sim_eval.policies.spatialvla.modeling_deep_fusion import key_values
from sim_eval.policies.spatialvla.modeling_llava3d import Context, SpatialVLAInputs
from sim_eval.policies.spatialvla.modeling_spatialvla import SpatialVLAForConditionalGeneration

STEPS = 400
Make = Callable[[SpatialVLAConfig], SpatialVLAForConditionalGeneration]


def loss_of(model: SpatialVLAForConditionalGeneration, inputs: SpatialVLAInputs, draws: int = 2) -> Tensor:
    torch.manual_seed(3)
    batch, horizon = len(inputs.state), model.config.expert.horizon
    noise, time = torch.randn(batch, draws, horizon, 7), flow_matching.sample_time((batch, draws))
    valid = torch.ones(batch, horizon, dtype=torch.bool)
    loss: Tensor = model(inputs, torch.randn(batch, horizon, 7), valid, noise, time)
    return loss


def velocity_of(
    model: SpatialVLAForConditionalGeneration, context: Context, state: Tensor, x: Tensor, time: Tensor
) -> Tensor:
    expert = model.action_expert
    return expert.velocity(expert.prepare(context, model.vlm.language_model.layers, x.shape[1]), state, x, time)


def test_keys_and_values_equal_the_vlms_own_cache(
    model: SpatialVLAForConditionalGeneration, inputs: SpatialVLAInputs
) -> None:
    context = model.vlm(inputs)
    llama = model.vlm.language_model
    cache = DynamicCache(config=llama.config)
    llama(
        inputs_embeds=context.hidden_states[0],
        attention_mask=context.valid.long(),
        position_ids=context.position_ids,
        past_key_values=cache,
        use_cache=True,
    )
    prepared = model.action_expert.prepare(context, llama.layers)
    seen = context.valid[:, None, :, None]
    for (keys, values), layer in zip(prepared.key_values, cache.layers, strict=True):
        torch.testing.assert_close(keys * seen, layer.keys * seen, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(values * seen, layer.values * seen, atol=1e-5, rtol=1e-5)


def test_without_context_it_is_a_stock_llama(config: SpatialVLAConfig, make_model: Make) -> None:
    expert = make_model(config).action_expert
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


def test_mask_by_gradients(model: SpatialVLAForConditionalGeneration, inputs: SpatialVLAInputs) -> None:
    context = model.vlm(inputs)
    state, time = inputs.state.clone().requires_grad_(), torch.rand(3, 2).requires_grad_()
    x = torch.randn(3, 2, 4, 7, requires_grad=True)
    velocity = velocity_of(model, context, state, x, time)
    for step in range(4):  # every action depends on every other one of its own draw, and on nothing of another draw
        by_x, by_time, by_state = torch.autograd.grad(velocity[0, 1, step].sum(), [x, time, state], retain_graph=True)
        assert (by_x[0, 1].abs().sum(-1) > 0).all()
        assert not by_x[0, 0].any()
        assert not by_x[1:].any()
        assert by_time[0, 1] != 0
        assert by_time[0, 0] == 0
        assert by_state[0].any()
        assert not by_state[1:].any()


def test_state_and_time_do_not_see_actions(model: SpatialVLAForConditionalGeneration, inputs: SpatialVLAInputs) -> None:
    expert = model.action_expert
    context = model.vlm(inputs)
    prepared = expert.prepare(context, model.vlm.language_model.layers)
    suffix = torch.randn(3, len(expert.blocks), model.config.expert.width, requires_grad=True)
    hidden = expert.model(suffix, prepared.mask, prepared.position_embeddings, prepared.key_values)
    (by_suffix,) = torch.autograd.grad(hidden[:, :2].square().sum(), suffix)
    assert (by_suffix[:, :2].abs().sum(-1) > 0).all()
    assert not by_suffix[:, 2:].any()


def test_draws_side_by_side_equal_draws_alone(
    model: SpatialVLAForConditionalGeneration, inputs: SpatialVLAInputs
) -> None:
    context, x, time = model.vlm(inputs), torch.randn(3, 3, 4, 7), torch.rand(3, 3)
    together = velocity_of(model, context, inputs.state, x, time)
    for draw in range(3):
        part = slice(draw, draw + 1)
        alone = velocity_of(model, context, inputs.state, x[:, part], time[:, part])
        torch.testing.assert_close(together[:, part], alone, atol=1e-5, rtol=1e-5)


def test_cached_sampling_equals_uncached(model: SpatialVLAForConditionalGeneration, inputs: SpatialVLAInputs) -> None:
    noise = torch.randn(3, 4, 7)
    calls = []
    layer = model.vlm.language_model.layers[-1]
    handle = layer.self_attn.k_proj.register_forward_hook(lambda *_: calls.append(1))
    cached = model.predict_action(inputs, noise, steps=5)
    handle.remove()
    assert len(calls) == 1, "keys of the context must be made once, not once an Euler step"
    with torch.no_grad():
        uncached = flow_matching.euler(
            lambda x, t: velocity_of(model, model.vlm(inputs), inputs.state, x, t), noise[:, None], 5
        )
    torch.testing.assert_close(cached, uncached[:, 0], atol=1e-6, rtol=1e-5)


def test_sampling_leaves_the_context_as_long_as_it_was(
    model: SpatialVLAForConditionalGeneration, inputs: SpatialVLAInputs
) -> None:
    prepared = model.action_expert.prepare(model.vlm(inputs), model.vlm.language_model.layers)
    before = [keys.shape for keys, _ in prepared.key_values]
    for _ in range(2):
        model.action_expert.velocity(prepared, inputs.state, torch.randn(3, 1, 4, 7), torch.rand(3, 1))
    assert [keys.shape for keys, _ in prepared.key_values] == before


def test_padded_context_changes_nothing(model: SpatialVLAForConditionalGeneration, inputs: SpatialVLAInputs) -> None:
    context, x, time = model.vlm(inputs), torch.randn(3, 1, 4, 7), torch.rand(3, 1)
    padded = Context(
        tuple(torch.nn.functional.pad(h, (0, 0, 0, 9), value=5.0) for h in context.hidden_states),
        torch.nn.functional.pad(context.valid, (0, 9)),
        torch.nn.functional.pad(context.position_ids, (0, 9), value=77),
    )
    expected = velocity_of(model, context, inputs.state, x, time)
    torch.testing.assert_close(velocity_of(model, padded, inputs.state, x, time), expected, atol=1e-5, rtol=1e-5)


def test_every_layer_reads_its_own_layer(model: SpatialVLAForConditionalGeneration, inputs: SpatialVLAInputs) -> None:
    context, x, time = model.vlm(inputs), torch.randn(3, 1, 4, 7), torch.rand(3, 1)
    first, second, third = context.hidden_states
    swapped = replace(context, hidden_states=(first, third, second))
    expected = velocity_of(model, context, inputs.state, x, time)
    assert not torch.allclose(velocity_of(model, swapped, inputs.state, x, time), expected, atol=1e-6)


def test_eager_equals_sdpa(config: SpatialVLAConfig, make_model: Make, inputs: SpatialVLAInputs) -> None:
    losses = []
    gradients = []
    for attention in ("sdpa", "eager"):
        model = make_model(replace(config, attention=attention))  # type: ignore[arg-type]
        losses.append(loss_of(model, inputs))
        losses[-1].backward()
        gradients.append(model.vlm.mm_projector[0].weight.grad)
    torch.testing.assert_close(losses[0], losses[1], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-3)


def test_gradient_checkpointing_changes_nothing(
    model: SpatialVLAForConditionalGeneration, inputs: SpatialVLAInputs
) -> None:
    model.train()
    plain = loss_of(model, inputs)
    plain.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for part in (model.vlm.vision_tower, model.vlm.language_model, model.action_expert.model):
        part.activation_checkpointing_enable()
    again = loss_of(model, inputs)
    again.backward()
    assert torch.equal(plain, again)
    for name, parameter in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("projection", ["vlm", "expert"])
def test_every_trainable_parameter_has_a_gradient_and_no_frozen_one(
    config: SpatialVLAConfig, make_model: Make, inputs: SpatialVLAInputs, projection: str
) -> None:
    expert = replace(config.expert, width=32, context_projection=projection)  # type: ignore[arg-type]
    model = make_model(replace(config, expert=expert))
    loss_of(model, inputs).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    frozen = {name.split(".")[-2] for name, p in model.named_parameters() if not p.requires_grad}
    assert {"q_proj", "o_proj", "down_proj", "norm"} <= frozen


def test_expert_projection_reads_a_frozen_vlm(
    config: SpatialVLAConfig, make_model: Make, inputs: SpatialVLAInputs
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


def test_loss_ignores_what_lies_past_the_end(
    model: SpatialVLAForConditionalGeneration, inputs: SpatialVLAInputs
) -> None:
    noise, time = torch.randn(3, 2, 4, 7), torch.full((3, 2), 1.0)  # x_t is all noise: labels only enter the target
    valid = torch.tensor([[True, True, False, False]] * 3)
    actions = torch.randn(3, 4, 7)
    changed = actions.clone()
    changed[:, 2:] = 1e3
    assert torch.equal(model(inputs, actions, valid, noise, time), model(inputs, changed, valid, noise, time))


def test_overfitted_batch_is_reproduced_by_sampling(
    config: SpatialVLAConfig, make_model: Make, inputs: SpatialVLAInputs
) -> None:
    wide = replace(
        config,
        text=replace(config.text, width=64, layers=2, mlp=128),
        expert=replace(config.expert, width=64, layers=2, head_dim=16, mlp=128),
    )
    model = make_model(wide)
    actions, valid = torch.randn(3, 4, 7).clamp(-1.5, 1.5), torch.ones(3, 4, dtype=torch.bool)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, 3e-3, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        loss = model(inputs, actions, valid, torch.randn(3, 8, 4, 7), flow_matching.sample_time((3, 8)))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        schedule.step()
    found = model.predict_action(inputs, torch.randn(3, 4, 7), steps=10)
    assert (found - actions).abs().mean((1, 2)).max() < 0.1  # each observation gets its own actions back


def test_same_noise_same_output(model: SpatialVLAForConditionalGeneration, inputs: SpatialVLAInputs) -> None:
    noise = torch.randn(3, 4, 7)
    assert torch.equal(model.predict_action(inputs, noise), model.predict_action(inputs, noise))
    assert not torch.equal(model.predict_action(inputs, noise), model.predict_action(inputs, -noise))
