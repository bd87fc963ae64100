"""Late fusion: the expert is a stock Gemma over [context | suffix], whose context never depends on the suffix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import GemmaConfig, GemmaModel

from sim_eval.policies.spatialvla.configuration_spatialvla import SpatialVLAConfig
from sim_eval.policies.spatialvla.modeling_flow_expert import FlowMatchingActionExpert
from sim_eval.policies.spatialvla.modeling_llava3d import Context, SpatialVLAInputs
from sim_eval.policies.spatialvla.modeling_spatialvla import SpatialVLAForConditionalGeneration as Model

DRAWS = 2


@pytest.fixture(params=["sdpa", "eager"])
def late(
    make_model: Callable[[SpatialVLAConfig], Model], late_config: SpatialVLAConfig, request: pytest.FixtureRequest
) -> Model:
    return make_model(replace(late_config, attention=request.param))


@pytest.fixture
def stock(late: Model) -> GemmaModel:
    """A Gemma with a vocabulary and weights of its own, norms included."""
    gemma = GemmaModel(GemmaConfig(**{**late.action_expert.model.config.to_dict(), "vocab_size": 50}))
    for parameter in gemma.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return gemma.eval()


def joint_sequence(stock: GemmaModel, prefix: Tensor, valid: Tensor, suffix: Tensor) -> tuple[Tensor, ...]:
    """Stock Gemma's hidden states over [context | suffix | suffix | ...], its mask written rule by rule.

    Args:
        prefix: [B, T, width].
        valid: bool [B, T].
        suffix: [B, D, S, width], its first two tokens state and time.
    """
    batch, length = valid.shape
    flow_samples, tokens = suffix.shape[1:3]
    owner = [-1] * length + [draw for draw in range(flow_samples) for _ in range(tokens)]
    is_action = [False] * length + [token >= 2 for _ in range(flow_samples) for token in range(tokens)]
    size = len(owner)
    mask = torch.full((batch, 1, size, size), torch.finfo(torch.float32).min)
    positions = torch.zeros(batch, size, dtype=torch.long)
    for row in range(batch):
        count = int(valid[row].sum())
        for query in range(size):
            own = (query - length) % tokens
            positions[row, query] = count + own if query >= length else int(valid[row, :query].sum())
            for key in range(size):
                if key < length:
                    seen = bool(valid[row, key])
                else:
                    seen = owner[query] == owner[key] and (is_action[query] or not is_action[key])
                if seen:
                    mask[row, 0, query, key] = 0.0
    tokens_in = torch.cat([prefix, suffix.flatten(1, 2)], dim=1)
    output = stock(inputs_embeds=tokens_in, attention_mask=mask, position_ids=positions, output_hidden_states=True)
    return (*output.hidden_states[:-1], output.last_hidden_state)


def test_equals_a_stock_gemma_over_the_joint_sequence(late: Model, stock: GemmaModel, inputs: SpatialVLAInputs) -> None:
    expert, context = late.action_expert, late.vlm(inputs)
    loaded = expert.model.load_state_dict(stock.state_dict(), strict=False)
    assert not loaded.missing_keys
    assert loaded.unexpected_keys == ["embed_tokens.weight"]  # it is handed embeddings
    assert not context.valid.all(), "the fixture must need padding"
    _, inner = expert.read(context, ())
    suffix = torch.randn(3, DRAWS, len(expert.blocks), late.network.expert.width)
    joint = joint_sequence(stock, inner[0], context.valid, suffix)
    length = context.valid.shape[1]
    for found, expected in zip(inner, joint[:-1], strict=True):  # the suffix is there, and the context does not know
        ours, theirs = found[context.valid], expected[:, :length][context.valid]
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    found = expert.decode(suffix.flatten(1, 2), expert.prepare(context, (), DRAWS))
    torch.testing.assert_close(found, joint[-1][:, length:], atol=1e-5, rtol=1e-5)


def test_context_sees_itself_both_ways_and_no_padding(late: Model, inputs: SpatialVLAInputs) -> None:
    context = late.vlm(inputs)
    read = context.hidden_states[-1].detach().requires_grad_()
    _, inner = late.action_expert.read(replace(context, hidden_states=(read,)), ())
    for token in (0, int(context.valid[0].sum()) - 1):
        (by_read,) = torch.autograd.grad(inner[-1][0, token].sum(), read, retain_graph=True)
        assert torch.equal(by_read[0].any(-1), context.valid[0])
        assert not by_read[1:].any()


def test_only_the_last_hidden_states_are_read(late: Model, inputs: SpatialVLAInputs) -> None:
    context, x, time = late.vlm(inputs), torch.randn(3, 1, 4, 7), torch.rand(3, 1)
    alone = replace(context, hidden_states=context.hidden_states[-1:])
    expert = late.action_expert
    found, expected = (expert.velocity(expert.prepare(c, ()), inputs.state, x, time) for c in (alone, context))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("size", [1e-2, 1.0, 1e3])
def test_context_enters_gemma_at_unit_size(late: Model, size: float) -> None:
    hidden = size * torch.randn(2, 5, late.network.text.width)
    context = Context((hidden,), torch.ones(2, 5, dtype=torch.bool), torch.arange(5).expand(2, -1))
    _, inner = late.action_expert.read(context, ())
    torch.testing.assert_close(inner[0].square().mean(-1), torch.ones(2, 5), atol=0.1, rtol=0)


def test_the_last_layer_runs_for_the_suffix_only(late: Model, inputs: SpatialVLAInputs) -> None:
    expert, lengths = late.action_expert, []
    handle = expert.model.layers[-1].mlp.register_forward_hook(lambda _, args, __: lengths.append(args[0].shape[1]))
    late.predict_action(inputs, torch.randn(3, 4, 7), steps=3)
    handle.remove()
    assert lengths == [len(expert.blocks)] * 3


def test_every_parameter_is_trained(
    late: Model, inputs: SpatialVLAInputs, loss_of: Callable[[Model, SpatialVLAInputs], Tensor]
) -> None:
    loss_of(late, inputs).backward()
    for name, parameter in late.named_parameters():
        assert parameter.requires_grad, name
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_a_frozen_vlm_is_read_without_gradient(
    late: Model, inputs: SpatialVLAInputs, loss_of: Callable[[Model, SpatialVLAInputs], Tensor]
) -> None:
    late.vlm.requires_grad_(False)
    loss_of(late, inputs).backward()
    assert all(parameter.grad is None for parameter in late.vlm.parameters())
    assert all(parameter.grad is not None for parameter in late.action_expert.parameters())


def test_it_builds_what_the_plan_says(late: Model) -> None:
    assert isinstance(late.action_expert, FlowMatchingActionExpert)
    assert type(late.action_expert.model) is GemmaModel
