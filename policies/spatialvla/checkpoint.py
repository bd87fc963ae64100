"""A trained policy as a folder: ``config.json``, ``processor.json``, ``tokenizer.json``, ``model.safetensors``."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import ActionChunk
from sim_eval.policies.policy import AS_SAVED, InferenceConfig, PolicyRequest, PolicySpec
from sim_eval.policies.spatialvla.adapters import whole_weights
from sim_eval.policies.spatialvla.configuration_spatialvla import SpatialVLAConfig
from sim_eval.policies.spatialvla.modeling_spatialvla import SpatialVLAForConditionalGeneration
from sim_eval.policies.spatialvla.processing_spatialvla import SpatialVLAProcessor, load_tokenizer
from sim_eval.policies.spatialvla.quantization import set_weights

CONFIG, PROCESSOR, TOKENIZER, WEIGHTS = "config.json", "processor.json", "tokenizer.json", "model.safetensors"


class SpatialVLAPolicy:
    """A loaded checkpoint behind the Policy protocol; key and replan count alone decide its noise."""

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
        self._variant = variant

    @property
    def spec(self) -> PolicySpec:
        return replace(self.processor.spec, variant=self._variant)

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

    Raises:
        SimEvalError: the folder cannot be written.
    """
    weights = save_tensors(whole_weights(model))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / WEIGHTS, weights)
        _write(folder / TOKENIZER, processor.tokenizer.to_str(pretty=True).encode())
        _write(folder / PROCESSOR, _json(processor.to_dict()))
        _write(folder / CONFIG, _json({**model.config.to_diff_dict(), "architectures": [type(model).__name__]}))
    except OSError as error:
        raise SimEvalError(f"{folder}: cannot write here ({error.strerror}); choose another folder") from error
    return replace(processor.spec, digest=hashlib.sha256(weights).hexdigest())


def load_checkpoint(folder: Path, device: str = "auto", inference: InferenceConfig = AS_SAVED) -> SpatialVLAPolicy:
    """Reads what :func:`save_checkpoint` wrote.

    Args:
        folder: the checkpoint.
        device: a torch device, or "auto": CUDA when there is one, else the CPU.
        inference: what is otherwise than it was saved; it is the spec's ``variant``.

    Raises:
        SimEvalError: a file is missing, truncated or does not fit the others, or this machine lacks the device or what
            ``inference`` needs.
    """
    torch.set_flush_denormal(True)  # a denormal costs a CPU a hundred times what another number does
    place = resolve_device(device)
    with _blame(folder / CONFIG):
        config = _network(_read_json(folder / CONFIG))
    changes = []
    if inference.euler_steps not in (None, config.expert.euler_steps):
        config = replace(config, expert=replace(config.expert, euler_steps=inference.euler_steps))
        changes.append(f"{inference.euler_steps} Euler steps")
    if inference.weights != "float32":
        changes.append(f"{inference.weights} weights")
    if inference.compile:
        changes.append("compiled")
    weights = _read(folder / WEIGHTS)
    with _blame(folder / TOKENIZER):
        tokenizer = load_tokenizer(_read(folder / TOKENIZER).decode(errors="replace"))
    with _blame(folder / PROCESSOR):
        digest = hashlib.sha256(weights).hexdigest()
        processor = SpatialVLAProcessor.from_dict(_read_json(folder / PROCESSOR), config, tokenizer, digest)
    with torch.random.fork_rng(devices=[]):  # building draws initial weights; the caller's stream stays where it was
        model = SpatialVLAForConditionalGeneration(config)
    with _blame(folder / WEIGHTS):
        _load_weights(model, weights)
    set_weights(model, inference.weights)
    policy = SpatialVLAPolicy(model, processor, place, ", ".join(changes))
    if inference.compile:
        compile_sampling(policy.model, place)
    return policy


def compile_sampling(model: SpatialVLAForConditionalGeneration, device: torch.device) -> None:
    """Runs the Euler step through torch.compile: once for all lengths of the context, at the first chunk.

    Raises:
        SimEvalError: there is no compiler.
    """
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise SimEvalError(
            f"torch.compile needs a C++ compiler and there is no '{compiler}': install g++ or name another by CXX"
        )
    expert = model.action_expert
    expert.velocity = torch.compile(expert.velocity, dynamic=True)  # type: ignore[method-assign]


def resolve_device(name: str) -> torch.device:
    """The torch device of that name; "auto" is CUDA when there is one, else the CPU.

    Raises:
        SimEvalError: unknown, or not on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SimEvalError(f"device '{name}' cannot be used here: choose auto, cpu or cuda") from error
    return device


def _load_weights(model: SpatialVLAForConditionalGeneration, weights: bytes) -> None:
    try:
        tensors = load_tensors(weights)
    except SafetensorError as error:
        raise SimEvalError(f"not whole ({error})") from error
    expected = model.state_dict()
    if missing := expected.keys() - tensors.keys():
        raise SimEvalError(f"{len(missing)} tensors are missing, among them {min(missing)}")
    if unknown := tensors.keys() - expected.keys():
        raise SimEvalError(f"{len(unknown)} tensors do not belong to the model, among them {min(unknown)}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise SimEvalError(
                f"{name} has shape {tuple(tensor.shape)}, {CONFIG} asks for {tuple(expected[name].shape)}"
            )
        if not tensor.isfinite().all():
            raise SimEvalError(f"{name} holds NaN or infinity")
    model.load_state_dict(tensors)


@contextmanager
def _blame(file: Path) -> Iterator[None]:
    """Puts the file's name and the remedy on whatever is wrong with it."""
    try:
        yield
    except SimEvalError as error:
        if str(error).startswith(str(file)):
            raise
        raise SimEvalError(f"{file}: {error}; restore the file or train the checkpoint again") from error


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise SimEvalError(
            f"{file}: {(error.strerror or 'unreadable').lower()}; restore the file or train the checkpoint again"
        ) from error


def _read_json(file: Path) -> dict[str, object]:
    try:
        data = json.loads(_read(file))
    except ValueError as error:
        raise SimEvalError(f"not valid JSON ({error})") from error
    if not isinstance(data, dict):
        raise SimEvalError("not a table of fields")
    return data


def _network(data: dict[str, object]) -> SpatialVLAConfig:
    network = data.get("network", data)  # the first checkpoints held nothing else
    if not isinstance(network, dict):
        raise SimEvalError("network: expected a table of fields")
    return SpatialVLAConfig.from_dict(network)


def _json(data: dict[str, object]) -> bytes:
    return (json.dumps(data, indent=2) + "\n").encode()


def _write(file: Path, content: bytes) -> None:
    partial = file.with_name(f".{file.name}.partial")
    with partial.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, file)
