"""What holds for either expert: who sees whom, that caching changes nothing, and that it can be trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from sim_eval.policies.spatialvla import flow_matching
from sim_eval.policies.spatialvla.configuration_spatialvla import SpatialVLAConfig
from sim_eval.policies.spatialvla.modeling_llava3d import Context, SpatialVLAInputs
from sim_eval.policies.spatialvla.modeling_spatialvla import SpatialVLAForConditionalGeneration as Model

STEPS = 500
Make = Callable[[SpatialVLAConfig], Model]
LossOf = Callable[[Model, SpatialVLAInputs], Tensor]
VelocityOf = Callable[[Model, Context, Tensor, Tensor, Tensor], Tensor]


def test_mask_by_gradients(each_model: Model, inputs: SpatialVLAInputs, velocity_of: VelocityOf) -> None:
    context = each_model.vlm(inputs)
    read = context.hidden_states[-1].detach().requires_grad_()
    context = replace(context, hidden_states=(*context.hidden_states[:-1], read))
    state, time = inputs.state.clone().requires_grad_(), torch.rand(3, 2).requires_grad_()
    x = torch.randn(3, 2, 4, 7, requires_grad=True)
    velocity = velocity_of(each_model, context, state, x, time)
    assert not context.valid.all(), "the fixture must need padding"
    for step in range(4):  # every action depends on every other one of its own draw, and on nothing of another draw
        by_x, by_time, by_state, by_read = torch.autograd.grad(
            velocity[0, 1, step].sum(), [x, time, state, read], retain_graph=True
        )
        assert (by_x[0, 1].abs().sum(-1) > 0).all()
        assert not by_x[0, 0].any()
        assert not by_x[1:].any()
        assert by_time[0, 1] != 0
        assert by_time[0, 0] == 0
        assert by_state[0].any()
        assert not by_state[1:].any()
        assert torch.equal(by_read[0].any(-1), context.valid[0])
        assert not by_read[1:].any()


def test_state_and_time_do_not_see_actions(each_model: Model, inputs: SpatialVLAInputs) -> None:
    expert = each_model.action_expert
    prepared = expert.prepare(each_model.vlm(inputs), each_model.vlm.language_model.layers)
    suffix = torch.randn(3, len(expert.blocks), each_model.config.expert.width, requires_grad=True)
    hidden = expert.decode(suffix, prepared)
    (by_suffix,) = torch.autograd.grad(hidden[:, :2].square().sum(), suffix)
    assert (by_suffix[:, :2].abs().sum(-1) > 0).all()
    assert not by_suffix[:, 2:].any()


def test_draws_side_by_side_equal_draws_alone(
    each_model: Model, inputs: SpatialVLAInputs, velocity_of: VelocityOf
) -> None:
    context, x, time = each_model.vlm(inputs), torch.randn(3, 3, 4, 7), torch.rand(3, 3)
    together = velocity_of(each_model, context, inputs.state, x, time)
    for draw in range(3):
        part = slice(draw, draw + 1)
        alone = velocity_of(each_model, context, inputs.state, x[:, part], time[:, part])
        torch.testing.assert_close(together[:, part], alone, atol=1e-5, rtol=1e-5)


def test_cached_sampling_equals_uncached(each_model: Model, inputs: SpatialVLAInputs, velocity_of: VelocityOf) -> None:
    noise = torch.randn(3, 4, 7)
    calls = []
    late = each_model.config.action_expert_type == "late_gemma"
    last = each_model.vlm.language_model.layers[-1].self_attn.k_proj
    handle = (each_model.action_expert.context_projector if late else last).register_forward_hook(
        lambda *_: calls.append(1)
    )
    cached = each_model.predict_action(inputs, noise, steps=5)
    handle.remove()
    assert len(calls) == 1, "keys of the context must be made once, not once an Euler step"
    with torch.no_grad():
        uncached = flow_matching.euler(
            lambda x, t: velocity_of(each_model, each_model.vlm(inputs), inputs.state, x, t), noise[:, None], 5
        )
    torch.testing.assert_close(cached, uncached[:, 0], atol=1e-6, rtol=1e-5)


def test_sampling_leaves_the_context_as_it_was(each_model: Model, inputs: SpatialVLAInputs) -> None:
    expert = each_model.action_expert
    prepared = expert.prepare(each_model.vlm(inputs), each_model.vlm.language_model.layers)
    before = [(keys.clone(), values.clone()) for keys, values in prepared.key_values]
    for _ in range(2):
        expert.velocity(prepared, inputs.state, torch.randn(3, 1, 4, 7), torch.rand(3, 1))
    for found, expected in zip(prepared.key_values, before, strict=True):
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


def test_padded_context_changes_nothing(each_model: Model, inputs: SpatialVLAInputs, velocity_of: VelocityOf) -> None:
    context, x, time = each_model.vlm(inputs), torch.randn(3, 1, 4, 7), torch.rand(3, 1)
    padded = Context(
        tuple(torch.nn.functional.pad(h, (0, 0, 0, 9), value=5.0) for h in context.hidden_states),
        torch.nn.functional.pad(context.valid, (0, 9)),
        torch.nn.functional.pad(context.position_ids, (0, 9), value=77),
    )
    expected = velocity_of(each_model, context, inputs.state, x, time)
    found = velocity_of(each_model, padded, inputs.state, x, time)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_eager_equals_sdpa(
    each_config: SpatialVLAConfig, make_model: Make, inputs: SpatialVLAInputs, loss_of: LossOf
) -> None:
    losses = []
    gradients = []
    for attention in ("sdpa", "eager"):
        model = make_model(replace(each_config, attention=attention))  # type: ignore[arg-type]
        losses.append(loss_of(model, inputs))
        losses[-1].backward()
        gradients.append(model.vlm.mm_projector[0].weight.grad)
    torch.testing.assert_close(losses[0], losses[1], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-3)


def test_gradient_checkpointing_changes_nothing(each_model: Model, inputs: SpatialVLAInputs, loss_of: LossOf) -> None:
    each_model.train()
    plain = loss_of(each_model, inputs)
    plain.backward()
    expected = {name: p.grad.clone() for name, p in each_model.named_parameters() if p.grad is not None}
    each_model.zero_grad()
    for part in (each_model.vlm.vision_tower, each_model.vlm.language_model, each_model.action_expert.model):
        part.activation_checkpointing_enable()
    again = loss_of(each_model, inputs)
    again.backward()
    assert torch.equal(plain, again)
    for name, parameter in each_model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-7, rtol=1e-5)


def test_loss_ignores_what_lies_past_the_end(each_model: Model, inputs: SpatialVLAInputs) -> None:
    noise, time = torch.randn(3, 2, 4, 7), torch.full((3, 2), 1.0)  # x_t is all noise: labels only enter the target
    valid = torch.tensor([[True, True, False, False]] * 3)
    actions = torch.randn(3, 4, 7)
    changed = actions.clone()
    changed[:, 2:] = 1e3
    assert torch.equal(each_model(inputs, actions, valid, noise, time), each_model(inputs, changed, valid, noise, time))


def test_overfitted_batch_is_reproduced_by_sampling(
    each_config: SpatialVLAConfig, make_model: Make, inputs: SpatialVLAInputs
) -> None:
    wide = replace(
        each_config,
        text=replace(each_config.text, width=64, layers=2, mlp=128),
        expert=replace(each_config.expert, width=64, layers=2, head_dim=16, mlp=128),
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


def test_same_noise_same_output(each_model: Model, inputs: SpatialVLAInputs) -> None:
    noise = torch.randn(3, 4, 7)
    assert torch.equal(each_model.predict_action(inputs, noise), each_model.predict_action(inputs, noise))
    assert not torch.equal(each_model.predict_action(inputs, noise), each_model.predict_action(inputs, -noise))
