"""The whole policy network: LLaVA-3D with an action expert."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from sim_eval.core.errors import SimEvalError
from sim_eval.policies.spatialvla import flow_matching
from sim_eval.policies.spatialvla.auto import SpatialVLAPreTrainedConfig
from sim_eval.policies.spatialvla.configuration_spatialvla import ActionExpertType, SpatialVLAConfig
from sim_eval.policies.spatialvla.modeling_deep_fusion import DeepFusionActionExpert
from sim_eval.policies.spatialvla.modeling_flow_expert import FlowMatchingActionExpert
from sim_eval.policies.spatialvla.modeling_llava3d import Context, LLaVA3DModel, SpatialVLAInputs

TOGETHER = 8  # observations of a training batch that share one padded pass of Llama and expert

EXPERT_CLASSES: Mapping[ActionExpertType, type[DeepFusionActionExpert] | type[FlowMatchingActionExpert]] = {
    "deep_llama": DeepFusionActionExpert,
    "late_gemma": FlowMatchingActionExpert,
}


def check_tensors(
    missing: Collection[str], unknown: Collection[str], misshapen: Collection[tuple[str, Sequence[int], Sequence[int]]]
) -> None:
    """Refuses weights that are not exactly those of the network.

    Args:
        missing, unknown: names of tensors that only the network has, or only the weights have.
        misshapen: name, shape in the weights and shape in the network of each tensor whose shapes differ.

    Raises:
        SimEvalError: there is one of these; names the first of each kind.
    """
    faults = [f"{len(missing)} tensors are missing, among them {min(missing)}"] if missing else []
    faults += [f"{len(unknown)} tensors do not belong to the model, among them {min(unknown)}"] if unknown else []
    for name, found, wanted in sorted(misshapen)[:1]:
        faults.append(f"{name} has shape {tuple(found)}, the configuration asks for {tuple(wanted)}")
    if faults:
        raise SimEvalError("; ".join(faults))


def checkpoint_layers(model: PreTrainedModel) -> None:
    """Makes layers keep only their input, and run again in the backward pass; the method's name differs among releases
    of transformers."""
    name = "activation_checkpointing_enable"
    getattr(model, name if hasattr(model, name) else "gradient_checkpointing_enable")()


class SpatialVLAForConditionalGeneration(PreTrainedModel):  # type: ignore[misc]
    """Observations and instruction -> a chunk of normalised actions, by flow matching.

    Args:
        config: the network's configuration, as it is or in transformers' form.
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
        """The layers of vision tower, language model and expert; they hold nearly all weights of a large model."""
        vlm = self.vlm
        return vlm.vision_tower.encoder.layers, vlm.language_model.layers, self.action_expert.model.layers

    @classmethod
    def from_pretrained(cls, *arguments: object, **options: object) -> SpatialVLAForConditionalGeneration:
        """Loads as :class:`transformers.PreTrainedModel` does, but strictly.

        Raises:
            SimEvalError: a tensor is missing, unknown or of another shape; names it.
        """
        with_info = options.pop("output_loading_info", False)
        options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # the check below refuses them
        model, info = super().from_pretrained(*arguments, **options)
        try:
            check_tensors(info["missing_keys"], info["unexpected_keys"], info["mismatched_keys"])
        except SimEvalError as error:
            raise SimEvalError(f"{arguments[0]}: {error}: restore the weights or train the checkpoint again") from error
        model.freeze_unread()  # loading has made new parameters
        return cast(SpatialVLAForConditionalGeneration, (model, info) if with_info else model)

    def forward(
        self,
        inputs: SpatialVLAInputs,
        actions: Tensor,
        valid: Tensor,
        noise: Tensor,
        time: Tensor,
        context: Context | None = None,
    ) -> Tensor:
        """The flow-matching loss; all flow samples of an observation share one pass of the VLM.

        Args:
            inputs: B observations.
            actions: normalised, [B, H, A].
            valid: bool [B, H], False past the episode's end.
            noise: [B, D, H, A], D flow samples per observation.
            time: [B, D].
            context: the VLM's output for the inputs, if it is known already.
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
        """Normalised chunks [B, H, A] from noise of that shape.

        Args:
            steps: the number of Euler steps; None: the configuration's.
        """
        return self.action_expert.sample_actions(
            self.vlm(inputs),
            self.vlm.language_model.layers,
            inputs.state,
            noise,
            self.network.expert.euler_steps if steps is None else steps,
        )

    def freeze_unread(self) -> None:
        """Freezes the parameters that the velocity does not depend on."""
        for module in self.action_expert.unread(self.vlm.language_model):
            module.requires_grad_(False)

    def _init_weights(self, module: nn.Module) -> None:
        """Does nothing, because each part draws its initial weights when it is built."""


AutoModel.register(SpatialVLAPreTrainedConfig, SpatialVLAForConditionalGeneration, exist_ok=True)
