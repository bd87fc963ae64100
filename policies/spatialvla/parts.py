"""The parts of a network by name: which of them are trained, how large they are, and what a training of them takes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from sim_eval.core.errors import SimEvalError
from sim_eval.policies.spatialvla.configuration_spatialvla import SpatialVLAConfig
from sim_eval.policies.spatialvla.modeling_spatialvla import SpatialVLAForConditionalGeneration

# In the order in which an observation passes them.
PARTS: Mapping[str, str] = MappingProxyType(
    {
        "vision": "vlm.vision_tower.",
        "position": "vlm.position_embedding.",
        "projector": "vlm.mm_projector.",
        "vlm": "vlm.language_model.",
        "expert": "action_expert.",
    }
)
PROMPT_TOKENS = 64


@dataclass(frozen=True)
class Part:
    """One part's numbers.

    Attributes:
        name: a key of :data:`PARTS`.
        parameters, trained: how many, and how many of them get a gradient.
    """

    name: str
    parameters: int
    trained: int


def part_of(parameter: str) -> str:
    """The part that a parameter belongs to, by its name in the network."""
    return next(part for part, prefix in PARTS.items() if parameter.startswith(prefix))


def freeze(model: nn.Module, parts: Collection[str]) -> None:
    """Takes the gradient from every parameter of the named parts.

    Raises:
        SimEvalError: a part is unknown, or all are named.
    """
    if unknown := sorted(set(parts) - PARTS.keys()):
        raise SimEvalError(f"unknown part '{unknown[0]}': choose among {', '.join(PARTS)}")
    if set(parts) == PARTS.keys():
        raise SimEvalError("every part is frozen: leave one to train")
    for name, parameter in model.named_parameters():
        if part_of(name) in parts:
            parameter.requires_grad_(False)


def convert(model: nn.Module, dtype: torch.dtype, frozen_only: bool = False) -> None:
    """Makes parameters ``dtype``, but for the position embedding's, to which a millimetre matters.

    Buffers stay as well, unlike with ``model.to``: the rotary frequencies times a position must be exact to a radian.
    """
    for name, parameter in model.named_parameters():
        if part_of(name) != "position" and not (frozen_only and parameter.requires_grad):
            parameter.data = parameter.data.to(dtype)


def inventory(model: nn.Module) -> tuple[Part, ...]:
    """All parts, in the order of :data:`PARTS`."""
    counted = dict.fromkeys(PARTS, (0, 0))
    for name, parameter in model.named_parameters():
        parameters, trained = counted[part_of(name)]
        size = parameter.numel()
        counted[part_of(name)] = parameters + size, trained + size * parameter.requires_grad
    return tuple(Part(name, *numbers) for name, numbers in counted.items())


@dataclass(frozen=True)
class Load:
    """What a training step works on.

    Attributes:
        batch_size: observations.
        flow_samples: (time, noise) samples an observation.
        patches: that the vision tower sees, an observation.
        tokens: that the VLM reads, an observation.
    """

    batch_size: int
    flow_samples: int
    patches: int
    tokens: int

    @classmethod
    def at_most(cls, config: SpatialVLAConfig, views: int, batch_size: int, flow_samples: int) -> Load:
        """Of observations in which every patch is kept and none shares a voxel."""
        patches = views * config.vision.grid**2
        return cls(batch_size, flow_samples, patches, min(patches, config.max_tokens or patches) + PROMPT_TOKENS)


@dataclass(frozen=True)
class Memory:
    """What a training holds at once, in bytes.

    Attributes:
        weights: as they are kept.
        averages: the moving average of what is trained.
        gradients: of what is trained.
        optimizer: AdamW's two moments of each.
        activations: what the backward pass reads.
    """

    weights: int
    averages: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.averages + self.gradients + self.optimizer + self.activations


def training_memory(
    model: SpatialVLAForConditionalGeneration,
    load: Load,
    activation: torch.dtype = torch.float32,
    checkpointing: bool = False,
) -> Memory:
    """What a training step holds; nothing is computed.

    Args:
        model: on the ``meta`` device, with the types its weights are kept in and what is frozen frozen. Its weights'
            types are changed.
        load: what a step works on.
        activation: the type that layers compute in.
        checkpointing: layers keep their input only and run again, one at a time, in the backward pass.
    """
    weights = sum(parameter.nbytes for parameter in model.parameters())
    trained = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    convert(model, activation)
    segments, inputs = _kept(model, load)
    outside, layers = sum(segments[::2]), segments[1::2]
    activations = outside + (inputs + max(layers, default=0) if checkpointing else sum(layers))
    return Memory(weights, averages=trained, gradients=trained, optimizer=2 * trained, activations=activations)


def _kept(model: SpatialVLAForConditionalGeneration, load: Load) -> tuple[list[int], int]:
    """Bytes that autograd keeps, in turn outside and inside of each layer that runs; and of all layers' inputs."""
    segments, inputs = [0], 0
    seen = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            segments[-1] += storage.nbytes()
        return tensor

    def enter(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        nonlocal inputs
        inputs += arguments[0].nbytes * arguments[0].requires_grad
        segments.append(0)

    def leave(*_: object) -> None:
        segments.append(0)

    handles = [layer.register_forward_pre_hook(enter) for stack in model.stacks for layer in stack]
    handles += [layer.register_forward_hook(leave) for stack in model.stacks for layer in stack]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        graph = _step(model, load)  # kept alive, so that no two storages have one address
    for handle in handles:
        handle.remove()
    del graph
    return segments, inputs


def _step(model: SpatialVLAForConditionalGeneration, load: Load) -> Tensor:
    """A step's way through the layers with tensors that have a shape and no numbers."""
    config, batch = model.network, load.batch_size
    dtype = model.action_expert.action_in_proj.weight.dtype
    with torch.device("meta"):
        hidden = torch.empty(batch, load.patches, config.vision.width, dtype=dtype)
        for layer in model.vlm.vision_tower.encoder.layers:
            hidden = layer(hidden, None)
        positions = torch.empty(batch * load.patches, 3 * config.position.points)
        hidden = hidden + model.vlm.position_embedding(positions).to(dtype).view(hidden.shape)
        scene = model.vlm.mm_projector(hidden).repeat(1, 1 + load.tokens // load.patches, 1)[:, : load.tokens]
        context = model.vlm.read(scene, torch.ones(batch, load.tokens, dtype=torch.bool))
        prepared = model.action_expert.prepare(context, model.vlm.language_model.layers, load.flow_samples)
        expert = config.expert
        noisy = torch.empty(batch, load.flow_samples, expert.chunk_size, expert.action_dim)
        state, time = torch.empty(batch, expert.state_dim), torch.empty(batch, load.flow_samples)
        return model.action_expert.velocity(prepared, state, noisy, time).square().mean()
