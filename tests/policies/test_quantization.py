"""Smaller weights answer nearly what whole ones do and are small where they should be; compiled equals eager."""

from __future__ import annotations

import copy
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import EpisodeKey, Observation
from sim_eval.policies.policy import InferenceConfig, PolicyRequest, Weights
from sim_eval.policies.registry import load_policy
from sim_eval.policies.spatialvla.checkpoint import SpatialVLAPolicy, load_checkpoint, save_checkpoint
from sim_eval.policies.spatialvla.configuration_spatialvla import SpatialVLAConfig
from sim_eval.policies.spatialvla.modeling_llava3d import SpatialVLAInputs
from sim_eval.policies.spatialvla.modeling_spatialvla import SpatialVLAForConditionalGeneration as Model
from sim_eval.policies.spatialvla.processing_spatialvla import SpatialVLAProcessor
from sim_eval.policies.spatialvla.quantization import set_weights

Observe = Callable[[int], Observation]
Make = Callable[[SpatialVLAConfig], Model]
# Largest error of a chunk, as a share of its way from the noise, and largest share of the float32 layers' memory.
EXPECTED: dict[Weights, tuple[float, float]] = {"bfloat16": (0.01, 0.5), "int8": (0.005, 0.29), "nf4": (0.08, 0.13)}


LIBRARIES = {"int8": "torchao", "nf4": "bitsandbytes"}


@pytest.fixture(autouse=True)
def _libraries(request: pytest.FixtureRequest) -> None:
    """Skips what the extra "quantized" is needed for where it is not installed (make quantized)."""
    parameters = getattr(getattr(request.node, "callspec", None), "params", {})
    weights = getattr(parameters.get("inference"), "weights", parameters.get("weights"))
    if weights in LIBRARIES and "library" not in parameters:
        pytest.importorskip(LIBRARIES[weights])


def changed(model: Model, weights: Weights) -> Model:
    model = copy.deepcopy(model).eval()
    set_weights(model, weights)
    return model


def layer_bytes(model: Model) -> int:
    """Of the layers' matrices with what belongs to them; a quantised one is several tensors."""
    tensors: list[Tensor] = []
    for stack in model.stacks:
        for module in stack.modules():
            if isinstance(module, nn.Linear):
                weight = module.weight
                state = getattr(weight, "quant_state", None)
                tensors += [weight.qdata, weight.scale] if hasattr(weight, "qdata") else [weight]
                tensors += [state.absmax] if state else []
    return sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize("weights", EXPECTED)
def test_smaller_weights_answer_nearly_the_same(each_model: Model, inputs: SpatialVLAInputs, weights: Weights) -> None:
    noise = torch.randn(3, 4, 7)
    expected = each_model.eval().predict_action(inputs, noise)
    small = changed(each_model, weights)
    found = small.predict_action(inputs, noise)
    error, share = EXPECTED[weights]
    assert found.dtype == torch.float32
    assert 0 < (found - expected).norm() / (expected - noise).norm() < error
    assert layer_bytes(small) <= share * layer_bytes(each_model)


@pytest.mark.parametrize("weights", ["int8", "nf4"])
def test_only_matrices_of_the_layers_are_quantised(each_model: Model, weights: Weights) -> None:
    small = changed(each_model, weights)
    in_layers = {module for stack in small.stacks for module in stack.modules()}
    for (name, before), after in zip(each_model.named_modules(), small.modules(), strict=True):
        if isinstance(before, nn.Linear) and after in in_layers:
            assert type(after.weight) is not nn.Parameter, name
        else:
            for mine, theirs in zip(before.parameters(False), after.parameters(False), strict=True):
                assert torch.equal(mine, theirs), name


def test_bfloat16_leaves_positions_exact(each_model: Model) -> None:
    small = changed(each_model, "bfloat16")
    for name, parameter in small.named_parameters():
        assert parameter.dtype == (torch.float32 if "vlm.position_embedding." in name else torch.bfloat16), name
    for (name, before), after in zip(each_model.named_buffers(), small.buffers(), strict=True):
        assert after.dtype == before.dtype, name  # rotary frequencies
        assert torch.equal(before, after), name


def test_building_in_bfloat16_leaves_positions_exact(each_config: SpatialVLAConfig, make_model: Make) -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = make_model(each_config)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {parameter.dtype for parameter in model.vlm.position_embedding.parameters()} == {torch.float32}
    exact = make_model(each_config)
    for (name, before), after in zip(exact.named_buffers(), model.buffers(), strict=True):
        assert torch.equal(before, after), name


@pytest.fixture
def folder(tmp_path: Path, model: Model, processor: SpatialVLAProcessor) -> Path:
    save_checkpoint(tmp_path / "run", model, processor)
    return tmp_path / "run"


def ask(policy: SpatialVLAPolicy, observation: Observation) -> np.ndarray:
    request = PolicyRequest(observation, EpisodeKey("robosuite/Lift", "test", 0), 0, policy.processor.action)
    return policy.predict([request])[0].actions


@pytest.mark.parametrize(
    ("inference", "variant"),
    [
        (InferenceConfig(), ""),
        (InferenceConfig(weights="bfloat16"), "bfloat16 weights"),
        (InferenceConfig(weights="int8"), "int8 weights"),
        (InferenceConfig(euler_steps=2, weights="nf4"), "2 Euler steps, nf4 weights"),
    ],
)
def test_another_way_of_running_stands_in_the_spec(
    folder: Path, observe: Observe, inference: InferenceConfig, variant: str
) -> None:
    policy = load_policy(str(folder), "cpu", inference)
    assert isinstance(policy, SpatialVLAPolicy)
    assert policy.spec.variant == variant
    as_saved = load_checkpoint(folder, "cpu")
    assert policy.spec == replace(as_saved.spec, variant=variant)
    if not inference.euler_steps:
        np.testing.assert_allclose(ask(policy, observe(0)), ask(as_saved, observe(0)), atol=0.05)


@pytest.mark.parametrize(("weights", "library"), [("int8", "torchao"), ("nf4", "bitsandbytes")])
def test_a_missing_library_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, weights: Weights, library: str
) -> None:
    for name in [library, *(name for name in sys.modules if name.startswith(f"{library}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SimEvalError, match=rf"{weights} weights need {library}.*sim_eval\[quantized\]") as caught:
        load_checkpoint(folder, "cpu", InferenceConfig(weights=weights))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("weights", ["float32", "int8"])
@pytest.mark.parametrize("expert", ["deep_llama", "late_gemma"])
def test_compiled_equals_eager_at_every_context_length(
    expert: str,
    weights: Weights,
    config: SpatialVLAConfig,
    late_config: SpatialVLAConfig,
    make_model: Make,
    processor: SpatialVLAProcessor,
    observe: Observe,
    tmp_path: Path,
) -> None:
    save_checkpoint(tmp_path, make_model(config if expert == "deep_llama" else late_config), processor)
    eager = load_checkpoint(tmp_path, "cpu", InferenceConfig(weights=weights))
    compiled = load_checkpoint(tmp_path, "cpu", InferenceConfig(weights=weights, compile=True))
    assert compiled.spec.variant.endswith("compiled")
    torch.compiler.reset()
    lengths = set()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(3):
            np.testing.assert_allclose(ask(compiled, observe(seed)), ask(eager, observe(seed)), atol=1e-5)
            lengths.add(eager.model.vlm(eager.processor([observe(seed)])).valid.shape[1])
    assert len(lengths) > 1, "the fixture must give contexts of several lengths"


def test_a_missing_compiler_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(SimEvalError, match="there is no 'no-such-compiler': install g"):
        load_checkpoint(folder, "cpu", InferenceConfig(compile=True))
