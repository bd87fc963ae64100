"""What holds for either expert: who sees whom, that caching changes nothing, and that it can be trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sim_eval.core.types import Observation
from sim_eval.policies.spatialvla import flow_matching, modeling_spatialvla
from sim_eval.policies.spatialvla.configuration_spatialvla import SpatialVLAConfig
from sim_eval.policies.spatialvla.modeling_llava3d import Context
from sim_eval.policies.spatialvla.modeling_llava3d import SpatialVLAInputs as Inputs
from sim_eval.policies.spatialvla.modeling_spatialvla import SpatialVLAForConditionalGeneration as Model
from sim_eval.policies.spatialvla.modeling_spatialvla import checkpoint_layers
from sim_eval.policies.spatialvla.processing_spatialvla import SpatialVLAProcessor

STEPS, RATE, DRAWS = 250, 1e-2, 16
Make = Callable[[SpatialVLAConfig], Model]
Observe = Callable[[int], Observation]
LossOf = Callable[[Model, Inputs], Tensor]
VelocityOf = Callable[[Model, Context, Tensor, Tensor, Tensor], Tensor]


@pytest.fixture(params=["sdpa", "eager"])
def any_model(each_config: SpatialVLAConfig, make_model: Make, request: pytest.FixtureRequest) -> Model:
    """Every expert, with either kernel."""
    return make_model(replace(each_config, attention=request.param))


@pytest.fixture(params=[1, 3], ids=["one", "padded"])
def some(processor: SpatialVLAProcessor, observe: Observe, request: pytest.FixtureRequest) -> Inputs:
    """One observation, or three whose prompts and numbers of scene tokens differ."""
    return processor([observe(seed) for seed in range(request.param)])


def test_mask_by_gradients(any_model: Model, some: Inputs, velocity_of: VelocityOf) -> None:
    context = any_model.vlm(some)
    read = context.hidden_states[-1].detach().requires_grad_()
    context = replace(context, hidden_states=(*context.hidden_states[:-1], read))
    state, time = some.state.clone().requires_grad_(), torch.rand(len(some.state), 2).requires_grad_()
    x = torch.randn(len(some.state), 2, 4, 7, requires_grad=True)
    velocity = velocity_of(any_model, context, state, x, time)
    assert context.valid.all() == (len(some.state) == 1), "three must need padding"
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


def test_state_and_time_do_not_see_actions(any_model: Model, some: Inputs) -> None:
    expert = any_model.action_expert
    prepared = expert.prepare(any_model.vlm(some), any_model.vlm.language_model.layers)
    suffix = torch.randn(len(some.state), len(expert.blocks), any_model.network.expert.width, requires_grad=True)
    hidden = expert.decode(suffix, prepared)
    (by_suffix,) = torch.autograd.grad(hidden[:, :2].square().sum(), suffix)
    assert (by_suffix[:, :2].abs().sum(-1) > 0).all()
    assert not by_suffix[:, 2:].any()


def test_draws_side_by_side_equal_draws_alone(any_model: Model, some: Inputs, velocity_of: VelocityOf) -> None:
    context, x, time = any_model.vlm(some), torch.randn(len(some.state), 3, 4, 7), torch.rand(len(some.state), 3)
    together = velocity_of(any_model, context, some.state, x, time)
    for draw in range(3):
        part = slice(draw, draw + 1)
        alone = velocity_of(any_model, context, some.state, x[:, part], time[:, part])
        torch.testing.assert_close(together[:, part], alone, atol=1e-5, rtol=1e-5)


def test_cached_sampling_equals_uncached(any_model: Model, some: Inputs, velocity_of: VelocityOf) -> None:
    noise = torch.randn(len(some.state), 4, 7)
    calls = []
    late = any_model.network.action_expert_type == "late_gemma"
    last = any_model.vlm.language_model.layers[-1].self_attn.k_proj
    handle = (any_model.action_expert.context_projector if late else last).register_forward_hook(
        lambda *_: calls.append(1)
    )
    cached = any_model.predict_action(some, noise, steps=5)
    handle.remove()
    assert len(calls) == 1, "keys of the context must be made once, not once an Euler step"
    with torch.no_grad():
        uncached = flow_matching.euler(
            lambda x, t: velocity_of(any_model, any_model.vlm(some), some.state, x, t), noise[:, None], 5
        )
    torch.testing.assert_close(cached, uncached[:, 0], atol=1e-6, rtol=1e-5)


def test_sampling_leaves_the_context_as_it_was(any_model: Model, some: Inputs) -> None:
    expert = any_model.action_expert
    prepared = expert.prepare(any_model.vlm(some), any_model.vlm.language_model.layers)
    before = [(keys.clone(), values.clone()) for keys, values in prepared.key_values]
    for _ in range(2):
        expert.velocity(prepared, some.state, torch.randn(len(some.state), 1, 4, 7), torch.rand(len(some.state), 1))
    for found, expected in zip(prepared.key_values, before, strict=True):
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


def test_padded_context_changes_nothing(any_model: Model, some: Inputs, velocity_of: VelocityOf) -> None:
    context, x, time = any_model.vlm(some), torch.randn(len(some.state), 1, 4, 7), torch.rand(len(some.state), 1)
    padded = Context(
        tuple(torch.nn.functional.pad(h, (0, 0, 0, 9), value=5.0) for h in context.hidden_states),
        torch.nn.functional.pad(context.valid, (0, 9)),
        torch.nn.functional.pad(context.position_ids, (0, 9), value=77),
    )
    expected = velocity_of(any_model, context, some.state, x, time)
    found = velocity_of(any_model, padded, some.state, x, time)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_eager_equals_sdpa(each_config: SpatialVLAConfig, make_model: Make, inputs: Inputs, loss_of: LossOf) -> None:
    losses = []
    gradients = []
    for attention in ("sdpa", "eager"):
        model = make_model(replace(each_config, attention=attention))  # type: ignore[arg-type]
        losses.append(loss_of(model, inputs))
        losses[-1].backward()
        gradients.append(model.vlm.mm_projector[0].weight.grad)
    torch.testing.assert_close(losses[0], losses[1], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-3)


def test_gradient_checkpointing_changes_nothing(any_model: Model, some: Inputs, loss_of: LossOf) -> None:
    any_model.train()
    plain = loss_of(any_model, some)
    plain.backward()
    expected = {name: p.grad.clone() for name, p in any_model.named_parameters() if p.grad is not None}
    any_model.zero_grad()
    for part in (any_model.vlm.vision_tower, any_model.vlm.language_model, any_model.action_expert.model):
        checkpoint_layers(part)
    again = loss_of(any_model, some)
    again.backward()
    assert torch.equal(plain, again)
    for name, parameter in any_model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("together", [1, 2])
def test_groups_of_like_length_change_neither_loss_nor_gradients(
    any_model: Model, inputs: Inputs, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    noise, time, actions = torch.randn(3, 2, 4, 7), torch.rand(3, 2), torch.randn(3, 4, 7)
    valid = torch.arange(4) < torch.tensor([[1], [4], [2]])  # a mean of the groups' means would be another loss
    found: list[tuple[Tensor, dict[str, Tensor]]] = []
    for size in (3, together):
        monkeypatch.setattr(modeling_spatialvla, "TOGETHER", size)
        any_model.zero_grad()
        loss = any_model(inputs, actions, valid, noise, time)
        loss.backward()
        found.append((loss, {name: p.grad for name, p in any_model.named_parameters() if p.grad is not None}))
    (whole, expected), (grouped, gradients) = found
    torch.testing.assert_close(grouped, whole, atol=1e-6, rtol=1e-6)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4, msg=name)


def test_loss_ignores_what_lies_past_the_end(any_model: Model, some: Inputs) -> None:
    noise = torch.randn(len(some.state), 2, 4, 7)
    time = torch.ones(len(some.state), 2)  # x_t is all noise: labels only enter the target
    valid = torch.tensor([[True, True, False, False]] * len(some.state))
    actions = torch.randn(len(some.state), 4, 7)
    changed = actions.clone()
    changed[:, 2:] = 1e3
    assert torch.equal(any_model(some, actions, valid, noise, time), any_model(some, changed, valid, noise, time))


@pytest.mark.slow
def test_overfitted_batch_is_reproduced_by_sampling(
    each_config: SpatialVLAConfig, make_model: Make, inputs: Inputs
) -> None:
    wide = replace(
        each_config,
        text=replace(each_config.text, width=64, layers=2, mlp=128),
        expert=replace(each_config.expert, width=64, layers=2, head_dim=16, mlp=128),
    )
    model = make_model(wide)
    actions, valid = torch.randn(3, 4, 7).clamp(-1.5, 1.5), torch.ones(3, 4, dtype=torch.bool)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, RATE, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, STEPS, pct_start=0.1)
    for _ in range(STEPS):
        loss = model(inputs, actions, valid, torch.randn(3, DRAWS, 4, 7), flow_matching.sample_time((3, DRAWS)))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        schedule.step()
    found = model.predict_action(inputs, torch.randn(3, 4, 7), steps=10)
    assert (found - actions).abs().mean((1, 2)).max() < 0.1  # each observation gets its own actions back


def test_same_noise_same_output(any_model: Model, some: Inputs) -> None:
    noise = torch.randn(len(some.state), 4, 7)
    assert torch.equal(any_model.predict_action(some, noise), any_model.predict_action(some, noise))
    assert not torch.equal(any_model.predict_action(some, noise), any_model.predict_action(some, -noise))


@pytest.mark.parametrize("steps", [1, 5, 10])
def test_an_oracles_velocity_is_integrated_to_the_actions(
    any_model: Model, some: Inputs, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """Of all x at time t on the way to one chunk the velocity is (x - actions) / t, whatever the noise was."""
    actions = torch.randn(len(some.state), 4, 7)
    expert = any_model.action_expert
    monkeypatch.setattr(expert, "velocity", lambda _, __, x, t: (x - actions[:, None]) / t[..., None, None])
    found = any_model.predict_action(some, torch.randn(len(some.state), 4, 7), steps)
    torch.testing.assert_close(found, actions, atol=1e-5, rtol=1e-5)


def test_a_padded_batch_equals_singles(any_model: Model, processor: SpatialVLAProcessor, observe: Observe) -> None:
    noise = torch.randn(3, 4, 7)
    together = any_model.predict_action(processor([observe(seed) for seed in range(3)]), noise)
    for seed in range(3):
        alone = any_model.predict_action(processor([observe(seed)]), noise[seed : seed + 1])
        torch.testing.assert_close(together[seed : seed + 1], alone, atol=1e-5, rtol=1e-5)
