"""Late fusion: the VLM runs fully; its last hidden states precede the suffix in a Gemma (prefix conditioning)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.gemma.configuration_gemma import GemmaConfig
from transformers.models.gemma.modeling_gemma import GemmaModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from sim_eval.policies.spatialvla.configuration_spatialvla import ExpertConfig, SpatialVLAConfig
from sim_eval.policies.spatialvla.masks import additive_mask
from sim_eval.policies.spatialvla.modeling_action_expert import (
    ActionExpert,
    DecoderLayer,
    KeyValues,
    Prefix,
    PreparedContext,
    decoder_sizes,
)
from sim_eval.policies.spatialvla.modeling_llava3d import Context


class CrossAttention(nn.Module):
    """Attention from a decoder layer's input to the context, with its own softmax and without positions; the result is
    added to the input."""

    def __init__(self, expert: ExpertConfig) -> None:
        super().__init__()
        self.head_dim = expert.head_dim
        self.groups = expert.heads // expert.kv_heads
        own, shared = expert.heads * expert.head_dim, expert.kv_heads * expert.head_dim
        self.norm = nn.RMSNorm(expert.width, eps=expert.norm_eps)
        self.q_proj = nn.Linear(expert.width, own, bias=False)
        self.k_proj = nn.Linear(expert.width, shared, bias=False)
        self.v_proj = nn.Linear(expert.width, shared, bias=False)
        self.o_proj = nn.Linear(own, expert.width, bias=False)

    def key_values(self, context: Tensor) -> KeyValues:
        """[B, T, width] -> [B, KV heads, T, head dim] each."""
        keys, values = self._heads(self.k_proj(context)), self._heads(self.v_proj(context))
        return keys, values

    def forward(self, hidden: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """[B, S, width] -> the same shape; ``mask`` is additive, [B, 1, S, T]."""
        queries = self._heads(self.q_proj(self.norm(hidden)))
        keys, values = (part.repeat_interleave(self.groups, dim=1) for part in (keys, values))
        seen = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        output: Tensor = hidden + self.o_proj(seen.transpose(1, 2).flatten(2))
        return output

    def _heads(self, projected: Tensor) -> Tensor:
        return projected.view(*projected.shape[:-1], -1, self.head_dim).transpose(1, 2)


class FlowMatchingActionExpert(ActionExpert):
    """A Gemma over [context | state | time | actions].

    The context attends to itself in both directions and never to the suffix; therefore its keys and values are computed
    once for all Euler steps. With ``conditioning = "cross_attention"`` the Gemma runs over [state | time | actions]
    alone, and a cross-attention to the projected context precedes each of its layers.
    """

    def __init__(self, config: SpatialVLAConfig) -> None:
        expert = config.expert
        sizes = decoder_sizes(expert, config.attention)
        model = GemmaModel(GemmaConfig(**sizes, vocab_size=1, bos_token_id=None, eos_token_id=None))
        model.embed_tokens = nn.Identity()  # its input is embeddings, not token ids
        super().__init__(expert, model)
        self.context_projector = nn.Linear(config.text.width, expert.width)
        # Gemma scales its token embeddings but not other inputs, so the projected context is normalised here.
        self.context_norm = nn.RMSNorm(expert.width, eps=expert.norm_eps)
        crossed = config.conditioning == "cross_attention"
        self.cross_attentions = nn.ModuleList(CrossAttention(expert) for _ in model.layers if crossed)

    def read(
        self, context: Context, vlm_layers: Iterable[LlamaDecoderLayer]
    ) -> tuple[Iterable[DecoderLayer], Sequence[Tensor]]:
        """Gemma's own layers over the projected context; of the last layer only the input is computed."""
        hidden_states = [self.project(context)]
        mask = additive_mask(context.valid[:, None], hidden_states[0].dtype)
        places = self.model.rotary_emb(hidden_states[0], context.position_ids)
        for layer in self.model.layers[:-1]:
            hidden_states.append(layer(hidden_states[-1], attention_mask=mask, position_embeddings=places))
        return self.model.layers, hidden_states

    def project(self, context: Context) -> Tensor:
        """The VLM's last hidden states at the expert's width: [B, T, width]."""
        projected: Tensor = self.context_norm(self.context_projector(context.hidden_states[-1]))
        return projected

    def context_key_values(self, context: Context, vlm_layers: Iterable[LlamaDecoderLayer]) -> tuple[KeyValues, ...]:
        if not self.cross_attentions:
            return super().context_key_values(context, vlm_layers)
        projected = self.project(context)
        return tuple(cast(CrossAttention, cross).key_values(projected) for cross in self.cross_attentions)

    def decode(self, suffix: Tensor, context: PreparedContext) -> Tensor:
        hidden, places = suffix, context.position_embeddings
        length = context.mask.shape[-1] - suffix.shape[1]
        seen, own = context.mask[..., :length], context.mask[..., length:]
        for number, (layer, pair) in enumerate(zip(self.model.layers, context.key_values, strict=True)):
            if self.cross_attentions:
                cross: nn.Module = self.cross_attentions[number]
                hidden = cross(hidden, *pair, seen)
                hidden = layer(hidden, attention_mask=own, position_embeddings=places)
            else:
                hidden = layer(hidden, context.mask, None, Prefix(*pair), position_embeddings=places)
        output: Tensor = self.model.norm(hidden)
        return output
