"""What a training starts from: the processor that fits the demonstrations, and the network before its first step."""

from __future__ import annotations

from dataclasses import replace

import torch

from sim_eval.configs import TrainConfig
from sim_eval.core.errors import SimEvalError
from sim_eval.core.normalization import normalization_stats
from sim_eval.core.types import RenderConfig, without_derived
from sim_eval.datasets.windows import EpisodeWindows
from sim_eval.policies.policy import PolicySpec
from sim_eval.policies.spatialvla.adapters import add_adapters
from sim_eval.policies.spatialvla.configuration_spatialvla import ExpertConfig, SpatialVLAConfig
from sim_eval.policies.spatialvla.modeling_spatialvla import SpatialVLAForConditionalGeneration, checkpoint_layers
from sim_eval.policies.spatialvla.parts import convert, freeze
from sim_eval.policies.spatialvla.pretrained import from_llava3d
from sim_eval.policies.spatialvla.pretrained_processing import llava3d_processor
from sim_eval.policies.spatialvla.processing_spatialvla import SpatialVLAProcessor, train_tokenizer

STATE_FIELDS = ("eef_pos", "eef_rot6d", "gripper_qpos", "gripper_opening")  # by default, those that the data has


def open_windows(config: TrainConfig) -> EpisodeWindows:
    """The demonstrations.

    Raises:
        SimEvalError: there are none, or some cannot be trained on.
    """
    return EpisodeWindows(
        config.data,
        config.network.expert.chunk_size,
        frame_stride=config.frame_stride,
        demonstrations=config.demonstrations,
    )


def render_config_of(windows: EpisodeWindows) -> RenderConfig:
    """How the demonstrations were rendered; validation renders alike.

    Raises:
        SimEvalError: they were not all rendered alike.
    """
    configs = {episode.header.render_config for episode in windows.episodes}
    if len(configs) > 1:
        raise SimEvalError(
            f"--data mixes episodes rendered {' and '.join(sorted(map(str, configs)))}: train on one kind"
        )
    return configs.pop()


def fitted(
    network: SpatialVLAConfig,
    image_size: int,
    state_dim: int = ExpertConfig.state_dim,
    action_dim: int = ExpertConfig.action_dim,
) -> SpatialVLAConfig:
    """The network with these numbers where it leaves them open, that is, where it has 0.

    Raises:
        SimEvalError: the result does not fit together.
    """
    return replace(
        network,
        vision=replace(network.vision, image_size=network.vision.image_size or image_size),
        expert=replace(
            network.expert,
            state_dim=network.expert.state_dim or state_dim,
            action_dim=network.expert.action_dim or action_dim,
        ),
    )


def make_processor(windows: EpisodeWindows, config: TrainConfig) -> SpatialVLAProcessor:
    """Processor and network configuration that fit the demonstrations.

    Raises:
        SimEvalError: the data holds episodes that are not of the train split, or lacks a camera or field.
    """
    if foreign := [str(episode.key) for episode in windows.episodes if episode.key.split != "train"]:
        raise SimEvalError(f"--data holds {foreign[0]}: only episodes of the train split may be trained on")
    offered = windows.spec.proprio if config.state else without_derived(windows.spec.proprio)
    if unknown := [name for name in config.state if name not in offered]:
        raise SimEvalError(f"--state: the data has no field '{unknown[0]}', it has {', '.join(offered)}")
    proprio = {name: offered[name] for name in config.state or STATE_FIELDS if name in offered}
    if unknown := [name for name in config.cameras if name not in windows.spec.cameras]:
        raise SimEvalError(
            f"--cameras: the data has no camera '{unknown[0]}', it has {', '.join(windows.spec.cameras)}"
        )
    cameras = {name: windows.spec.cameras[name] for name in config.cameras or windows.spec.cameras}
    side = max(max(size) for size in cameras.values())
    network = fitted(config.network, side, sum(proprio.values()), windows.spec.action.dim)
    spec = PolicySpec(
        name=config.expert,
        robot=windows.spec.robot,
        cameras=cameras,
        proprio=proprio,
        action=windows.spec.action,
        tasks=tuple(sorted({episode.key.task for episode in windows.episodes})),
        render=render_config_of(windows).mode,
    )
    stats = normalization_stats(windows.episodes, config.normalization)
    if config.llava3d is not None:
        return llava3d_processor(config.llava3d, spec, stats, network)
    tokenizer = train_tokenizer({episode.header.instruction for episode in windows.episodes}, network.text.vocab_size)
    return SpatialVLAProcessor(network, spec, stats, tokenizer)


def first_model(network: SpatialVLAConfig, config: TrainConfig) -> SpatialVLAForConditionalGeneration:
    """The network before its first step, from random weights or published ones.

    Raises:
        SimEvalError: published weights do not fit, or a part cannot be frozen or adapted.
    """
    if config.llava3d is None:
        model = SpatialVLAForConditionalGeneration(network)
    else:
        model = from_llava3d(config.llava3d, network.action_expert_type, gemma=config.gemma, config=network)
    prepare_model(model, config)
    return model


def prepare_model(model: SpatialVLAForConditionalGeneration, config: TrainConfig) -> None:
    """Freezes, adapts and converts the parts of the network that the configuration names.

    Raises:
        SimEvalError: a part cannot be frozen or adapted.
    """
    freeze(model, config.freeze)
    add_adapters(model, config.lora, config.lora_rank)
    if config.precision == "bfloat16":
        convert(model, torch.bfloat16, frozen_only=True)
    if config.checkpointing:
        checkpoint_layers(model)
