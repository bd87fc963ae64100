"""The base of both action experts: a decoder of [state | time | actions] with keys and values of the context."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaDecoderLayer, GemmaModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel, rotate_half

from sim_eval.policies.spatialvla import flow_matching
from sim_eval.policies.spatialvla.configuration_spatialvla import Attention, ExpertConfig
from sim_eval.policies.spatialvla.masks import suffix_mask
from sim_eval.policies.spatialvla.modeling_llava3d import Context

DecoderLayer: TypeAlias = LlamaDecoderLayer | GemmaDecoderLayer
KeyValues: TypeAlias = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Prefix:
    """Takes the place of transformers' cache. Updating it does not change it, so Euler steps cannot accumulate.

    It is handed over by position: its name differs among releases, and what bears the name of a cache is dropped when
    layers keep only their input for the backward pass.
    """

    keys: Tensor
    values: Tensor

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, **_: object) -> KeyValues:
        return torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2)


def decoder_sizes(expert: ExpertConfig, attention: Attention) -> dict[str, object]:
    """The expert's sizes under the names that the configurations of Llama and Gemma share."""
    return {
        "hidden_size": expert.width,
        "intermediate_size": expert.mlp,
        "num_hidden_layers": expert.layers,
        "num_attention_heads": expert.heads,
        "num_key_value_heads": expert.kv_heads,
        "head_dim": expert.head_dim,
        "rms_norm_eps": expert.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": expert.rope_theta},
        "attn_implementation": attention,
    }


def key_values(layer: DecoderLayer, hidden_states: Tensor, position_embeddings: KeyValues) -> KeyValues:
    """The rotated keys and the values that ``layer`` computes from its input [B, T, width].

    Returns:
        [B, KV heads, T, head dim] each.
    """
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden_states)
    shape = (*normed.shape[:-1], -1, attention.head_dim)
    keys = attention.k_proj(normed).view(shape).transpose(1, 2)
    values = attention.v_proj(normed).view(shape).transpose(1, 2)
    cos, sin = (part.unsqueeze(1) for part in position_embeddings)
    return keys * cos + rotate_half(keys) * sin, values


@dataclass(frozen=True)
class PreparedContext:
    """What the expert computes once per observation, because it depends on neither time nor noisy actions.

    Attributes:
        key_values: of each layer.
        mask: additive, [B, 1, D * suffix, T + D * suffix] for D flow samples.
        position_embeddings: cosines and sines of the suffix.
    """

    key_values: tuple[KeyValues, ...]
    mask: Tensor
    position_embeddings: KeyValues


class ActionExpert(nn.Module, ABC):
    """Predicts the velocity of noisy action chunks from the suffix [state | time | actions] and the VLM's context.

    Blocks of the mask: {context}, {state, time}, {actions}; a token sees its own block and the blocks before it.

    Args:
        config: sizes.
        model: the decoder; its layers, norm and rotary embedding are used.
    """

    def __init__(self, config: ExpertConfig, model: LlamaModel | GemmaModel) -> None:
        super().__init__()
        self.config = config
        self.model = model
        self.state_in_proj = nn.Linear(config.state_dim, config.width)
        self.time_mlp = nn.Sequential(
            nn.Linear(config.width, config.width), nn.SiLU(), nn.Linear(config.width, config.width)
        )
        self.action_in_proj = nn.Linear(config.action_dim, config.width)
        self.action_out_proj = nn.Linear(config.width, config.action_dim)

    @property
    def blocks(self) -> Tensor:
        """The block of each token of the suffix: 0 for state and time, 1 for actions; int64 [2 + chunk size]."""
        place = torch.arange(2 + self.config.chunk_size, device=self.action_out_proj.weight.device)
        return (place >= 2).long()

    def unread(self, language_model: LlamaModel) -> list[nn.Module]:
        """The VLM's modules that the velocity does not depend on."""
        return []

    @abstractmethod
    def read(
        self, context: Context, vlm_layers: Iterable[LlamaDecoderLayer]
    ) -> tuple[Iterable[DecoderLayer], Sequence[Tensor]]:
        """The layers whose projections compute the context's keys and values, and the input [B, T, width] of each."""

    @abstractmethod
    def decode(self, suffix: Tensor, context: PreparedContext) -> Tensor:
        """[B, D * suffix, width] -> the same shape, after the final norm; D is the number of flow samples."""

    def context_key_values(self, context: Context, vlm_layers: Iterable[LlamaDecoderLayer]) -> tuple[KeyValues, ...]:
        """The context's keys and values for each layer of the decoder."""
        layers, hidden_states = self.read(context, vlm_layers)
        places = self.model.rotary_emb(hidden_states[0], context.position_ids)
        return tuple(key_values(layer, hidden, places) for layer, hidden in zip(layers, hidden_states, strict=True))

    def prepare(
        self, context: Context, vlm_layers: Iterable[LlamaDecoderLayer], flow_samples: int = 1
    ) -> PreparedContext:
        """Keys, values, mask and positions for ``flow_samples`` suffixes per observation, side by side."""
        pairs = self.context_key_values(context, vlm_layers)
        like = pairs[0][0]
        suffix = torch.arange(len(self.blocks), device=like.device).repeat(flow_samples)
        return PreparedContext(
            pairs,
            suffix_mask(context.valid, self.blocks, flow_samples, like.dtype),
            self.model.rotary_emb(like, context.valid.sum(1, keepdim=True) + suffix),
        )

    def velocity(self, context: PreparedContext, state: Tensor, noisy: Tensor, time: Tensor) -> Tensor:
        """Predicted dx / dt.

        Args:
            context: prepared for D flow samples.
            state: [B, S].
            noisy: x_t, [B, D, H, A].
            time: [B, D].

        Returns:
            [B, D, H, A].
        """
        batch, flow_samples, chunk_size, _ = noisy.shape
        width, dtype = self.config.width, self.action_in_proj.weight.dtype
        state_token = self.state_in_proj(state.to(dtype))[:, None, None].expand(-1, flow_samples, -1, -1)
        time_token = self.time_mlp(flow_matching.time_embedding(time, width).to(dtype))[:, :, None]
        suffix = torch.cat([state_token, time_token, self.action_in_proj(noisy.to(dtype))], dim=2)
        hidden = self.decode(suffix.flatten(1, 2), context)
        output: Tensor = self.action_out_proj(hidden.view(batch, flow_samples, -1, width)[:, :, -chunk_size:])
        return output.to(noisy.dtype)

    def sample_actions(
        self, context: Context, vlm_layers: Iterable[LlamaDecoderLayer], state: Tensor, noise: Tensor, steps: int
    ) -> Tensor:
        """Integrates the velocity from noise [B, H, A]; the context's keys and values are computed once."""
        prepared = self.prepare(context, vlm_layers)
        return flow_matching.euler(
            lambda x, time: self.velocity(prepared, state, x, time), noise[:, None], steps
        ).squeeze(1)
