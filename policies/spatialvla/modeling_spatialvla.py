"""The whole policy network: LLaVA-3D and an action expert."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sim_eval.policies.spatialvla import flow_matching
from sim_eval.policies.spatialvla.configuration_spatialvla import ActionExpertType, SpatialVLAConfig
from sim_eval.policies.spatialvla.modeling_deep_fusion import DeepFusionActionExpert
from sim_eval.policies.spatialvla.modeling_flow_expert import FlowMatchingActionExpert
from sim_eval.policies.spatialvla.modeling_llava3d import LLaVA3DModel, SpatialVLAInputs

EXPERTS: Mapping[ActionExpertType, type[DeepFusionActionExpert] | type[FlowMatchingActionExpert]] = {
    "deep_llama": DeepFusionActionExpert,
    "late_gemma": FlowMatchingActionExpert,
}


class SpatialVLAForConditionalGeneration(nn.Module):
    """Observations and instruction -> a chunk of normalised actions, by flow matching."""

    def __init__(self, config: SpatialVLAConfig) -> None:
        super().__init__()
        self.config = config
        self.vlm = LLaVA3DModel(config)
        self.action_expert = EXPERTS[config.action_expert_type](config)
        for module in self.action_expert.unread(self.vlm.language_model):
            module.requires_grad_(False)

    def forward(self, inputs: SpatialVLAInputs, actions: Tensor, valid: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Flow-matching loss; all draws of an observation share one pass of the VLM.

        Args:
            inputs: B observations.
            actions: normalised, [B, H, A].
            valid: bool [B, H], False past the episode's end.
            noise: [B, D, H, A], D draws an observation.
            time: [B, D].
        """
        actions = actions[:, None]
        context = self.vlm(inputs)
        prepared = self.action_expert.prepare(context, self.vlm.language_model.layers, noise.shape[1])
        noisy = flow_matching.interpolate(actions, noise, time)
        velocity = self.action_expert.velocity(prepared, inputs.state, noisy, time)
        target = flow_matching.target_velocity(actions, noise)
        return flow_matching.masked_mse(velocity, target, valid[:, None, :, None])

    @torch.no_grad()
    def predict_action(self, inputs: SpatialVLAInputs, noise: Tensor, steps: int | None = None) -> Tensor:
        """A normalised chunk [B, H, A] from noise of that shape, by ``steps`` Euler steps (None: the config's)."""
        return self.action_expert.sample_actions(
            self.vlm(inputs),
            self.vlm.language_model.layers,
            inputs.state,
            noise,
            self.config.expert.euler_steps if steps is None else steps,
        )
