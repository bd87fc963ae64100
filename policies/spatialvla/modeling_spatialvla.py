"""The whole policy network: LLaVA-3D and an action expert."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from sim_eval.policies.spatialvla import flow_matching
from sim_eval.policies.spatialvla.configuration_spatialvla import ActionExpertType, SpatialVLAConfig
from sim_eval.policies.spatialvla.modeling_deep_fusion import DeepFusionActionExpert
from sim_eval.policies.spatialvla.modeling_flow_expert import FlowMatchingActionExpert
from sim_eval.policies.spatialvla.modeling_llava3d import Context, LLaVA3DModel, SpatialVLAInputs

TOGETHER = 8  # observations of a training batch that share one padded pass of Llama and expert

EXPERT_CLASSES: Mapping[ActionExpertType, type[DeepFusionActionExpert] | type[FlowMatchingActionExpert]] = {
    "deep_llama": DeepFusionActionExpert,
    "late_gemma": FlowMatchingActionExpert,
}


class SpatialVLAPreTrainedConfig(PreTrainedConfig):  # type: ignore[misc]
    """A network's configuration as transformers keeps it, so that its Auto classes know a checkpoint folder.

    Attributes:
        network: :meth:`SpatialVLAConfig.to_dict`; None: that of the defaults.
    """

    model_type = "spatialvla"
    network: dict[str, object] | None = None


class SpatialVLAForConditionalGeneration(PreTrainedModel):  # type: ignore[misc]
    """Observations and instruction -> a chunk of normalised actions, by flow matching.

    Args:
        config: what it is made of, by itself or as transformers keeps it.
    """

    config_class = SpatialVLAPreTrainedConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True

    def __init__(self, config: SpatialVLAConfig | SpatialVLAPreTrainedConfig) -> None:
        if isinstance(config, SpatialVLAConfig):
            config = SpatialVLAPreTrainedConfig(network=config.to_dict())
        super().__init__(config)
        self.network = SpatialVLAConfig.from_dict(config.network or {})
        self.vlm = LLaVA3DModel(self.network)
        self.action_expert = EXPERT_CLASSES[self.network.action_expert_type](self.network)
        self.freeze_unread()
        self.post_init()

    @property
    def stacks(self) -> tuple[nn.ModuleList, ...]:
        """The layers of vision tower, language model and expert: nearly all of a large model's weights."""
        vlm = self.vlm
        return vlm.vision_tower.encoder.layers, vlm.language_model.layers, self.action_expert.model.layers

    @classmethod
    def from_pretrained(cls, *arguments: object, **options: object) -> SpatialVLAForConditionalGeneration:
        """As transformers does it; see :class:`transformers.PreTrainedModel`."""
        loaded = super().from_pretrained(*arguments, **options)
        model: SpatialVLAForConditionalGeneration = loaded[0] if isinstance(loaded, tuple) else loaded
        model.freeze_unread()  # loading has made new parameters
        return cast(SpatialVLAForConditionalGeneration, loaded)

    def forward(
        self,
        inputs: SpatialVLAInputs,
        actions: Tensor,
        valid: Tensor,
        noise: Tensor,
        time: Tensor,
        context: Context | None = None,
    ) -> Tensor:
        """Flow-matching loss; all draws of an observation share one pass of the VLM.

        Args:
            inputs: B observations.
            actions: normalised, [B, H, A].
            valid: bool [B, H], False past the episode's end.
            noise: [B, D, H, A], D draws an observation.
            time: [B, D].
            context: what the VLM makes of the inputs, where it is known.
        """
        actions = actions[:, None]
        everyone = torch.arange(len(noise), device=noise.device)
        contexts = self.vlm.contexts(inputs, TOGETHER) if context is None else [(everyone, context)]
        noisy = flow_matching.interpolate(actions, noise, time)
        layers, flow_samples = self.vlm.language_model.layers, noise.shape[1]
        parts = []
        for rows, seen in contexts:
            prepared = self.action_expert.prepare(seen, layers, flow_samples)
            parts.append(self.action_expert.velocity(prepared, inputs.state[rows], noisy[rows], time[rows]))
        order = torch.cat([rows for rows, _ in contexts])
        target = flow_matching.target_velocity(actions, noise)[order]
        return flow_matching.masked_mse(torch.cat(parts), target, valid[order, None, :, None])

    @torch.no_grad()
    def predict_action(self, inputs: SpatialVLAInputs, noise: Tensor, steps: int | None = None) -> Tensor:
        """A normalised chunk [B, H, A] from noise of that shape, by ``steps`` Euler steps (None: the config's)."""
        return self.action_expert.sample_actions(
            self.vlm(inputs),
            self.vlm.language_model.layers,
            inputs.state,
            noise,
            self.network.expert.euler_steps if steps is None else steps,
        )

    def freeze_unread(self) -> None:
        """Takes the gradient from what no velocity depends on."""
        for module in self.action_expert.unread(self.vlm.language_model):
            module.requires_grad_(False)

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: every part has drawn its initial weights when it was made."""


AutoConfig.register(SpatialVLAPreTrainedConfig.model_type, SpatialVLAPreTrainedConfig, exist_ok=True)
AutoModel.register(SpatialVLAPreTrainedConfig, SpatialVLAForConditionalGeneration, exist_ok=True)
