"""Deep fusion: layer L of the action expert also attends to keys and values of the VLM's layer L (as in pi0)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaModel,
    LlamaPreTrainedModel,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from sim_eval.policies.spatialvla.configuration_spatialvla import SpatialVLAConfig
from sim_eval.policies.spatialvla.modeling_action_expert import (
    ActionExpert,
    DecoderLayer,
    KeyValues,
    Prefix,
    PreparedContext,
    decoder_sizes,
)
from sim_eval.policies.spatialvla.modeling_llava3d import Context


class DeepFusionLlamaAttention(LlamaAttention):  # type: ignore[misc]
    """Llama's attention over [context | own tokens]."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: KeyValues,
        attention_mask: Tensor,
        cross_key_value_states: KeyValues,
        **_: object,
    ) -> tuple[Tensor, Tensor | None]:
        """``cross_key_value_states``: the context's rotated keys and its values, [B, KV heads, T, head dim] each."""
        output: tuple[Tensor, Tensor | None] = super().forward(
            hidden_states, position_embeddings, attention_mask, Prefix(*cross_key_value_states)
        )
        return output


class DeepFusionLlamaDecoderLayer(LlamaDecoderLayer):  # type: ignore[misc]
    """Llama's layer with :class:`DeepFusionLlamaAttention`, which ``cross_key_value_states`` is passed on to."""

    def __init__(self, config: LlamaConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.self_attn = DeepFusionLlamaAttention(config, layer_idx)


class DeepFusionLlamaModel(LlamaModel):  # type: ignore[misc]
    """A Llama without token embeddings that reads another Llama's keys and values in every layer."""

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


class DeepFusionActionExpert(ActionExpert):
    """A Llama as deep as the VLM, whose layer L reads the input of the VLM's layer L."""

    def __init__(self, config: SpatialVLAConfig) -> None:
        sizes = decoder_sizes(config.expert, config.attention)
        super().__init__(config.expert, DeepFusionLlamaModel(LlamaConfig(**sizes)))

    def unread(self, language_model: LlamaModel) -> list[nn.Module]:
        """Of the VLM's last layer, only the parts that compute keys and values are read, and nothing above it."""
        last = language_model.layers[-1]
        if self.config.context_projection == "expert":
            return [last, language_model.norm]
        attention = last.self_attn
        return [attention.q_proj, attention.o_proj, last.post_attention_layernorm, last.mlp, language_model.norm]

    def read(
        self, context: Context, vlm_layers: Iterable[LlamaDecoderLayer]
    ) -> tuple[Iterable[DecoderLayer], Sequence[Tensor]]:
        layers = vlm_layers if self.config.context_projection == "vlm" else self.model.layers
        return layers, context.hidden_states

    def decode(self, suffix: Tensor, context: PreparedContext) -> Tensor:
        hidden: Tensor = self.model(suffix, context.mask, context.position_embeddings, context.key_values)
        return hidden
