"""Late fusion: the VLM runs fully; its last hidden states stand before the suffix in a Gemma (prefix conditioning)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn
from transformers.models.gemma.configuration_gemma import GemmaConfig
from transformers.models.gemma.modeling_gemma import GemmaModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from sim_eval.policies.spatialvla.configuration_spatialvla import SpatialVLAConfig
from sim_eval.policies.spatialvla.masks import additive_mask
from sim_eval.policies.spatialvla.modeling_action_expert import (
    ActionExpert,
    DecoderLayer,
    Prefix,
    PreparedContext,
    decoder_sizes,
)
from sim_eval.policies.spatialvla.modeling_llava3d import Context


class FlowMatchingActionExpert(ActionExpert):
    """A Gemma over [context | state | time | actions].

    The context sees itself, both ways, and never the suffix; so its keys and values are made once for all Euler steps.
    """

    def __init__(self, config: SpatialVLAConfig) -> None:
        expert = config.expert
        sizes = decoder_sizes(expert, config.attention)
        model = GemmaModel(GemmaConfig(**sizes, vocab_size=1, bos_token_id=None, eos_token_id=None))
        model.embed_tokens = nn.Identity()  # it is handed embeddings, not token ids
        for layer in model.layers:
            layer._can_checkpoint_with_cache = True  # a prefix is only read: recomputing a layer finds it as it was
        super().__init__(expert, model)
        self.context_projector = nn.Linear(config.text.width, expert.width)
        # Gemma scales its token embeddings itself, but not what it is handed: that must come at a sane size.
        self.context_norm = nn.RMSNorm(expert.width, eps=expert.norm_eps)

    def read(
        self, context: Context, vlm_layers: Iterable[LlamaDecoderLayer]
    ) -> tuple[Iterable[DecoderLayer], Sequence[Tensor]]:
        """Gemma's own layers over the projected context; of the last one only its input is made."""
        hidden_states = [self.context_norm(self.context_projector(context.hidden_states[-1]))]
        mask = additive_mask(context.valid[:, None], hidden_states[0].dtype)
        places = self.model.rotary_emb(hidden_states[0], context.position_ids)
        for layer in self.model.layers[:-1]:
            hidden_states.append(layer(hidden_states[-1], attention_mask=mask, position_embeddings=places))
        return self.model.layers, hidden_states

    def decode(self, suffix: Tensor, context: PreparedContext) -> Tensor:
        hidden = suffix
        for layer, pair in zip(self.model.layers, context.key_values, strict=True):
            hidden = layer(
                hidden,
                attention_mask=context.mask,
                position_embeddings=context.position_embeddings,
                past_key_values=Prefix(*pair),
            )
        output: Tensor = self.model.norm(hidden)
        return output
