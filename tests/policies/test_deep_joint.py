"""Deep fusion against pi0's lockstep written out: one attention over [context | suffix], two sets of weights.

Nothing here calls our modules or transformers' layers: norms, rotary embedding, grouped heads, softmax and MLP are
written from their formulas, head by head and token by token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sim_eval.policies.spatialvla.configuration_spatialvla import Attention, SpatialVLAConfig
from sim_eval.policies.spatialvla.modeling_llava3d import Context
from sim_eval.policies.spatialvla.modeling_spatialvla import SpatialVLAForConditionalGeneration

VALID = (7, 4)  # context tokens of the two observations; the second is padded
DRAWS = 2


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def rotated(head: Tensor, place: int, theta: float) -> Tensor:
    """One head's vector [head dim] turned by its place: number i and number i + half are a plane's x and y."""
    half = len(head) // 2
    angle = torch.tensor([place / theta ** (i / half) for i in range(half)])
    x, y = head[:half], head[half:]
    return torch.cat([x * angle.cos() - y * angle.sin(), y * angle.cos() + x * angle.sin()])


def mlp(x: Tensor, weights: Mapping[str, Tensor], layer: str) -> Tensor:
    gate, up = x @ weights[f"{layer}mlp.gate_proj.weight"].T, x @ weights[f"{layer}mlp.up_proj.weight"].T
    return (gate * torch.sigmoid(gate) * up) @ weights[f"{layer}mlp.down_proj.weight"].T


def lockstep(
    vlm: Mapping[str, Tensor], expert: Mapping[str, Tensor], context: Tensor, suffix: Tensor, config: SpatialVLAConfig
) -> tuple[list[Tensor], Tensor]:
    """Both models over one sequence, layer by layer.

    Args:
        vlm, expert: weights by their names in a Llama.
        context: [T, VLM width], without padding.
        suffix: [D, S, expert width], the first two tokens of each draw state and time.

    Returns:
        Input of each of the VLM's layers [T, VLM width], and the expert's output [D, S, expert width].
    """
    length, flow_samples, tokens = len(context), *suffix.shape[:2]
    heads, groups, size = config.text.heads, config.text.heads // config.text.kv_heads, config.text.head_dim
    theta, eps = config.text.rope_theta, config.text.norm_eps
    streams = [context, suffix.flatten(0, 1)]
    places = [*range(length), *(length + token for _ in range(flow_samples) for token in range(tokens))]
    draw_of = [-1] * length + [draw for draw in range(flow_samples) for _ in range(tokens)]
    is_action = [False] * length + [token >= 2 for _ in range(flow_samples) for token in range(tokens)]
    inputs = []
    for number in range(config.text.layers):
        layer = f"layers.{number}."
        inputs.append(streams[0])
        made: dict[str, list[Tensor]] = {"q": [], "k": [], "v": []}  # one [heads, head dim] a token
        for stream, weights in zip(streams, (vlm, expert), strict=True):
            normed = rms_norm(stream, weights[f"{layer}input_layernorm.weight"], eps)
            for kind, rows in made.items():
                rows.extend((normed @ weights[f"{layer}self_attn.{kind}_proj.weight"].T).unflatten(-1, (-1, size)))
        attended = []
        for query, place in enumerate(places):
            if query < length:
                seen = list(range(query + 1))  # causal
            else:
                own = [key for key in range(length, len(places)) if draw_of[key] == draw_of[query]]
                seen = [*range(length), *(key for key in own if is_action[query] or not is_action[key])]
            outputs = []
            for head in range(heads):
                shared = head // groups
                turned = rotated(made["q"][query][head], place, theta)
                scores = torch.stack([turned @ rotated(made["k"][key][shared], places[key], theta) for key in seen])
                weight = (scores / math.sqrt(size)).exp()
                values = torch.stack([made["v"][key][shared] for key in seen])
                outputs.append(weight @ values / weight.sum())
            attended.append(torch.cat(outputs))
        after = []
        for stream, weights, rows in zip(streams, (vlm, expert), (attended[:length], attended[length:]), strict=True):
            stream = stream + torch.stack(rows) @ weights[f"{layer}self_attn.o_proj.weight"].T
            normed = rms_norm(stream, weights[f"{layer}post_attention_layernorm.weight"], eps)
            after.append(stream + mlp(normed, weights, layer))
        streams = after
    return inputs, rms_norm(streams[1], expert["norm.weight"], config.expert.norm_eps).view_as(suffix)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("batch", [1, 2])
def test_equals_pi0s_lockstep_written_out(
    config: SpatialVLAConfig,
    make_model: Callable[[SpatialVLAConfig], SpatialVLAForConditionalGeneration],
    attention: Attention,
    batch: int,
) -> None:
    model = make_model(replace(config, attention=attention))
    llama, expert = model.vlm.language_model, model.action_expert
    for parameter in (*llama.parameters(), *expert.model.parameters()):  # norms too have weights of their own
        torch.nn.init.normal_(parameter, std=0.3)
    assert config.expert.width != config.text.width
    valid = torch.arange(max(VALID[:batch])) < torch.tensor(VALID[:batch])[:, None]
    scene = torch.randn(*valid.shape, config.text.width)
    suffix = torch.randn(batch, DRAWS, len(expert.blocks), config.expert.width)
    context: Context = model.vlm.read(scene, valid)
    found = expert.decode(suffix.flatten(1, 2), expert.prepare(context, llama.layers, DRAWS)).view_as(suffix)
    for row in range(batch):
        inputs, expected = lockstep(
            llama.state_dict(), expert.model.state_dict(), scene[row, valid[row]], suffix[row], config
        )
        for ours, theirs in zip(context.hidden_states, inputs, strict=True):
            torch.testing.assert_close(ours[row, valid[row]], theirs, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found[row], expected, atol=1e-4, rtol=1e-4)
