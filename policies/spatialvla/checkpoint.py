"""A trained policy as a folder: ``config.json``, ``processor.json``, ``tokenizer.json``, ``model.safetensors``."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from sim_eval.core.errors import SimEvalError
from sim_eval.core.files import atomic, write_json
from sim_eval.core.types import ActionChunk
from sim_eval.policies.devices import resolve_device
from sim_eval.policies.policy import AS_SAVED, InferenceConfig, PolicyRequest, PolicySpec
from sim_eval.policies.spatialvla.adapters import whole_weights
from sim_eval.policies.spatialvla.modeling_spatialvla import SpatialVLAForConditionalGeneration, check_tensors
from sim_eval.policies.spatialvla.processing_spatialvla import (
    CONFIG,
    SpatialVLAProcessor,
    blamed,
    read_network,
    read_processor,
)
from sim_eval.policies.spatialvla.quantization import set_weights

WEIGHTS = "model.safetensors"


class SpatialVLAPolicy:
    """A loaded checkpoint as a policy; the episode's key and the number of the call alone decide its noise."""

    def __init__(
        self,
        model: SpatialVLAForConditionalGeneration,
        processor: SpatialVLAProcessor,
        device: torch.device,
        variant: str = "",
    ) -> None:
        self.model = model.to(device).eval()
        self.processor = processor
        self.device = device
        self.spec = replace(processor.spec, variant=variant)

    @torch.inference_mode()
    def predict(self, requests: Sequence[PolicyRequest]) -> list[ActionChunk]:
        if not requests:
            return []
        expert = self.model.network.expert
        shape = (expert.chunk_size, expert.action_dim)
        noise = np.stack(
            [request.key.rng(f"policy/{request.policy_call}").standard_normal(shape) for request in requests]
        )
        inputs = self.processor([request.observation for request in requests]).to(self.device)
        chunks = self.model.predict_action(inputs, torch.from_numpy(noise).float().to(self.device))
        return [ActionChunk(actions) for actions in self.processor.actions(chunks)]


def save_checkpoint(
    folder: Path, model: SpatialVLAForConditionalGeneration, processor: SpatialVLAProcessor
) -> PolicySpec:
    """Writes the folder, each file whole or not at all, and returns the policy's spec with the weights' digest.

    Equal weights give an equal digest; transformers' ``save_pretrained`` would add its own metadata to the file.

    Raises:
        SimEvalError: the folder cannot be written.
    """
    with atomic(folder / WEIGHTS) as partial:
        save_file(whole_weights(model), partial)
        digest = _digest(partial)
    write_json(folder / CONFIG, {**model.config.to_diff_dict(), "architectures": [type(model).__name__]})
    processor.save_pretrained(folder)
    return replace(processor.spec, digest=digest)


def load_checkpoint(folder: Path, device: str = "auto", inference: InferenceConfig = AS_SAVED) -> SpatialVLAPolicy:
    """Reads what :func:`save_checkpoint` wrote.

    Args:
        folder: the checkpoint.
        device: a torch device, or "auto": CUDA when there is one, else the CPU.
        inference: overrides of the saved inference settings; the spec's ``variant`` names them.

    Raises:
        SimEvalError: a file is missing, damaged or does not fit the others, or this machine lacks the device or what
            ``inference`` needs.
    """
    torch.set_flush_denormal(True)  # on a CPU, arithmetic on denormals is a hundred times slower
    place = resolve_device(device)
    config = read_network(folder)
    changes = []
    if inference.euler_steps not in (None, config.expert.euler_steps):
        config = replace(config, expert=replace(config.expert, euler_steps=inference.euler_steps))
        changes.append(f"{inference.euler_steps} Euler steps")
    if inference.weights != "float32":
        changes.append(f"{inference.weights} weights")
    if inference.compile:
        changes.append("compiled")
    with blamed(folder / WEIGHTS):
        digest = _digest(folder / WEIGHTS)
    processor = read_processor(folder, config, digest)
    with torch.random.fork_rng(devices=[]):  # building draws initial weights from the caller's random stream
        model = SpatialVLAForConditionalGeneration(config)
    with blamed(folder / WEIGHTS):
        _load_weights(model, folder / WEIGHTS)
    set_weights(model, inference.weights)
    policy = SpatialVLAPolicy(model, processor, place, ", ".join(changes))
    if inference.compile:
        compile_sampling(policy.model, place)
    return policy


def compile_sampling(model: SpatialVLAForConditionalGeneration, device: torch.device) -> None:
    """Runs the Euler step through torch.compile: one compilation, at the first chunk, serves all context lengths.

    Raises:
        SimEvalError: there is no compiler.
    """
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise SimEvalError(
            f"torch.compile needs a C++ compiler and there is no '{compiler}': install g++ or name another in CXX"
        )
    expert = model.action_expert
    expert.velocity = torch.compile(expert.velocity, dynamic=True)  # type: ignore[method-assign]


def _load_weights(model: SpatialVLAForConditionalGeneration, file: Path) -> None:
    tensors, expected = load_file(file), model.state_dict()
    shapes = {name: (tensors[name].shape, expected[name].shape) for name in tensors.keys() & expected.keys()}
    misshapen = [(name, found, wanted) for name, (found, wanted) in shapes.items() if found != wanted]
    check_tensors(expected.keys() - tensors.keys(), tensors.keys() - expected.keys(), misshapen)
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise SimEvalError(f"{name} holds NaN or infinity")
    model.load_state_dict(tensors)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
