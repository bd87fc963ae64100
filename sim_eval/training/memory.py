"""What a training would hold in memory, and whether the device has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import torch

from sim_eval.configs import TrainConfig
from sim_eval.core.errors import SimEvalError
from sim_eval.core.resources import GIGABYTE, available_memory
from sim_eval.policies.spatialvla.configuration_spatialvla import SpatialVLAConfig
from sim_eval.policies.spatialvla.modeling_spatialvla import SpatialVLAForConditionalGeneration
from sim_eval.policies.spatialvla.parts import Load, Memory, Part, inventory, training_memory
from sim_eval.reporting.tables import Table
from sim_eval.training.preparation import prepare_model


def plan(network: SpatialVLAConfig, config: TrainConfig, views: int) -> tuple[tuple[Part, ...], Memory]:
    """The parts of the network that would be trained, and the memory that it takes; no weight is made."""
    with torch.device("meta"):
        model = SpatialVLAForConditionalGeneration(network)
        prepare_model(model, config)
    parts = inventory(model)
    load = Load.at_most(network, views, config.batch_size, config.flow_samples)
    activation = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    return parts, training_memory(model, load, activation, config.checkpointing)


def describe(parts: Sequence[Part], memory: Memory) -> str:
    """Both as tables for the terminal."""
    total, trained = (sum(numbers) for numbers in zip(*((p.parameters, p.trained) for p in parts), strict=True))
    rows = [(part.name, f"{part.parameters:,}", f"{part.trained:,}") for part in parts]
    rows.append(("all", f"{total:,}", f"{trained:,} ({trained / total:.1%})"))
    needs = [(entry.name, f"{getattr(memory, entry.name) / GIGABYTE:.2f}") for entry in fields(memory)]
    needs.append(("all", f"{memory.total / GIGABYTE:.2f}"))
    return f"{Table(('part', 'parameters', 'trained'), rows)}\n\n{Table(('memory', 'GB'), needs)}"


def check_memory(memory: Memory, device: torch.device, share: int = 1) -> None:
    """Refuses a training that the device cannot hold.

    Args:
        share: number of equal parts into which all but the activations are divided.

    Raises:
        SimEvalError: the device cannot hold it.
    """
    needed = (memory.total - memory.activations) / share + memory.activations
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    if needed > free:
        raise SimEvalError(
            f"training needs {needed / GIGABYTE:.1f} GB and {device} has {free / GIGABYTE:.1f} GB free: use a smaller "
            "--batch-size, --checkpointing, --precision bfloat16, --freeze or --lora, or --shard on several devices"
        )
