"""Deep fusion: an action expert whose layer L also attends to keys and values of the VLM's layer L (pi0's lockstep)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaModel,
    LlamaPreTrainedModel,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    rotate_half,
)

from sim_eval.policies.spatialvla import flow_matching
from sim_eval.policies.spatialvla.configuration_spatialvla import SpatialVLAConfig
from sim_eval.policies.spatialvla.masks import suffix_mask
from sim_eval.policies.spatialvla.modeling_llava3d import Context

KeyValues: TypeAlias = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class _Prefix:
    """Stands where transformers expects a cache; adding to it leaves it as it was, so Euler steps cannot pile up."""

    keys: Tensor
    values: Tensor

    def update(self, keys: Tensor, values: Tensor, layer_idx: int) -> KeyValues:
        return torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2)


class DeepFusionLlamaAttention(LlamaAttention):  # type: ignore[misc]
    """Llama's attention over [context | own tokens]."""

    def forward(
        self, hidden_states: Tensor, cross_key_value_states: KeyValues, **kwargs: object
    ) -> tuple[Tensor, Tensor | None]:
        """``cross_key_value_states``: rotated keys, and values, [B, KV heads, T, head dim], put before the own ones."""
        kwargs["past_key_values"] = _Prefix(*cross_key_value_states)
        output: tuple[Tensor, Tensor | None] = super().forward(hidden_states, **kwargs)
        return output


class DeepFusionLlamaDecoderLayer(LlamaDecoderLayer):  # type: ignore[misc]
    """Llama's layer around :class:`DeepFusionLlamaAttention`; ``cross_key_value_states`` passes through to it."""

    def __init__(self, config: LlamaConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.self_attn = DeepFusionLlamaAttention(config, layer_idx)


class DeepFusionLlamaModel(LlamaModel):  # type: ignore[misc]
    """A Llama without token embeddings that reads another Llama's keys and values at every depth."""

    def __init__(self, config: LlamaConfig) -> None:
        LlamaPreTrainedModel.__init__(self, config)
        self.layers = nn.ModuleList(DeepFusionLlamaDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_embeddings: KeyValues,
        cross_key_value_states: tuple[KeyValues, ...],
    ) -> Tensor:
        """[B, S, width] -> [B, S, width], after the final norm."""
        hidden = inputs_embeds
        for layer, key_values in zip(self.layers, cross_key_value_states, strict=True):
            hidden = layer(
                hidden,
                attention_mask=attention_mask,
                position_embeddings=position_embeddings,
                cross_key_value_states=key_values,
            )
        output: Tensor = self.norm(hidden)
        return output


def key_values(layer: LlamaDecoderLayer, hidden_states: Tensor, position_embeddings: KeyValues) -> KeyValues:
    """Rotated keys, and values, that ``layer`` makes of its input [B, T, width]: [B, KV heads, T, head dim] each."""
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden_states)
    shape = (*normed.shape[:-1], -1, attention.head_dim)
    keys = attention.k_proj(normed).view(shape).transpose(1, 2)
    values = attention.v_proj(normed).view(shape).transpose(1, 2)
    cos, sin = (part.unsqueeze(1) for part in position_embeddings)
    return keys * cos + rotate_half(keys) * sin, values


@dataclass(frozen=True)
class PreparedContext:
    """All of the expert's work that depends on neither time nor noisy actions, done once an observation.

    Attributes:
        key_values: a layer each.
        mask: [B, 1, draws * suffix, T + draws * suffix].
        position_embeddings: cosines and sines of the suffix.
    """

    key_values: tuple[KeyValues, ...]
    mask: Tensor
    position_embeddings: KeyValues


class DeepFusionActionExpert(nn.Module):
    """Velocity of noisy action chunks, from the suffix [state | time | actions] beside the VLM's context.

    Blocks of the mask: {context}, {state, time}, {actions}; a token sees its own block and those before.
    """

    blocks: Tensor

    def __init__(self, config: SpatialVLAConfig) -> None:
        super().__init__()
        expert = config.expert
        self.config = expert
        self.model = DeepFusionLlamaModel(
            LlamaConfig(
                hidden_size=expert.width,
                intermediate_size=expert.mlp,
                num_hidden_layers=expert.layers,
                num_attention_heads=expert.heads,
                num_key_value_heads=expert.kv_heads,
                head_dim=expert.head_dim,
                rms_norm_eps=expert.norm_eps,
                rope_parameters={"rope_type": "default", "rope_theta": expert.rope_theta},
                attn_implementation=config.attention,
            )
        )
        self.state_in_proj = nn.Linear(expert.state_dim, expert.width)
        self.time_mlp = nn.Sequential(
            nn.Linear(expert.width, expert.width), nn.SiLU(), nn.Linear(expert.width, expert.width)
        )
        self.action_in_proj = nn.Linear(expert.action_dim, expert.width)
        self.action_out_proj = nn.Linear(expert.width, expert.action_dim)
        self.register_buffer("blocks", torch.tensor([0, 0] + [1] * expert.horizon), persistent=False)

    def prepare(self, context: Context, vlm_layers: Iterable[LlamaDecoderLayer], draws: int = 1) -> PreparedContext:
        """Keys, values, mask and positions for ``draws`` suffixes an observation, side by side."""
        layers = vlm_layers if self.config.context_projection == "vlm" else self.model.layers
        rotary = self.model.rotary_emb
        places = rotary(context.hidden_states[0], context.position_ids)
        suffix = torch.arange(len(self.blocks), device=context.valid.device).repeat(draws)
        return PreparedContext(
            tuple(key_values(layer, h, places) for layer, h in zip(layers, context.hidden_states, strict=True)),
            suffix_mask(context.valid, self.blocks, draws, context.hidden_states[0].dtype),
            rotary(context.hidden_states[0], context.valid.sum(1, keepdim=True) + suffix),
        )

    def velocity(self, context: PreparedContext, state: Tensor, noisy: Tensor, time: Tensor) -> Tensor:
        """Predicted dx / dt.

        Args:
            context: prepared for D draws.
            state: [B, S].
            noisy: x_t, [B, D, H, A].
            time: [B, D].

        Returns:
            [B, D, H, A].
        """
        batch, draws, horizon, _ = noisy.shape
        width = self.config.width
        state_token = self.state_in_proj(state)[:, None, None].expand(-1, draws, -1, -1)
        time_token = self.time_mlp(flow_matching.time_embedding(time, width).to(noisy.dtype))[:, :, None]
        suffix = torch.cat([state_token, time_token, self.action_in_proj(noisy)], dim=2)
        hidden = self.model(suffix.flatten(1, 2), context.mask, context.position_embeddings, context.key_values)
        output: Tensor = self.action_out_proj(hidden.view(batch, draws, -1, width)[:, :, -horizon:])
        return output

    def sample_actions(
        self, context: Context, vlm_layers: Iterable[LlamaDecoderLayer], state: Tensor, noise: Tensor, steps: int
    ) -> Tensor:
        """Integrates the velocity from noise [B, H, A]; keys and values of the context are made once."""
        prepared = self.prepare(context, vlm_layers)
        return flow_matching.euler(
            lambda x, time: self.velocity(prepared, state, x, time), noise[:, None], steps
        ).squeeze(1)
