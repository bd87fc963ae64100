"""A policy survives its folder bit by bit, and a damaged folder is told in one line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import EpisodeKey, Observation
from sim_eval.policies.devices import resolve_device
from sim_eval.policies.policy import InferenceConfig, PolicyRequest
from sim_eval.policies.registry import CHECKPOINTS, load_policy, shipped_checkpoints
from sim_eval.policies.spatialvla.checkpoint import SpatialVLAPolicy, load_checkpoint, save_checkpoint
from sim_eval.policies.spatialvla.configuration_spatialvla import SIZES, SpatialVLAConfig
from sim_eval.policies.spatialvla.modeling_spatialvla import SpatialVLAForConditionalGeneration
from sim_eval.policies.spatialvla.processing_spatialvla import SpatialVLAProcessor

Observe = Callable[[int], Observation]
FILES = ["config.json", "processor.json", "tokenizer.json", "model.safetensors"]


@pytest.fixture
def folder(tmp_path: Path, model: SpatialVLAForConditionalGeneration, processor: SpatialVLAProcessor) -> Path:
    save_checkpoint(tmp_path / "run", model, processor)
    return tmp_path / "run"


def ask(processor: SpatialVLAProcessor, observe: Observe, seed: int, policy_call: int = 0) -> PolicyRequest:
    return PolicyRequest(observe(seed), EpisodeKey("robosuite/Lift", "test", seed), policy_call, processor.action)


def test_save_and_load_are_bit_identical(
    tmp_path: Path, each_model: SpatialVLAForConditionalGeneration, processor: SpatialVLAProcessor, observe: Observe
) -> None:
    save_checkpoint(tmp_path / "run", each_model, processor)
    loaded = load_policy(str(tmp_path / "run"), "cpu")
    assert isinstance(loaded, SpatialVLAPolicy)
    assert loaded.model.network == each_model.network
    for name, tensor in each_model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name
    before = SpatialVLAPolicy(each_model, processor, torch.device("cpu")).predict([ask(processor, observe, 0)])
    after = loaded.predict([ask(processor, observe, 0)])
    assert np.array_equal(before[0].actions, after[0].actions)
    assert after[0].actions.shape == (4, 7)
    assert after[0].actions.dtype == np.float64


def test_spec_carries_everything_and_the_digest_of_the_weights(folder: Path, processor: SpatialVLAProcessor) -> None:
    spec = load_checkpoint(folder, "cpu").spec
    assert spec.digest == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert (spec.robot, spec.cameras, spec.proprio, spec.action, spec.tasks) == (
        processor.spec.robot,
        processor.spec.cameras,
        processor.spec.proprio,
        processor.spec.action,
        processor.spec.tasks,
    )
    assert sorted(entry.name for entry in folder.iterdir()) == sorted(FILES), "nothing half-written is left"


@pytest.mark.parametrize("name", shipped_checkpoints())
def test_a_shipped_checkpoint_is_saved_again_with_the_same_digest_and_meaning(name: str, tmp_path: Path) -> None:
    policy = load_policy(name, "cpu")
    assert isinstance(policy, SpatialVLAPolicy)
    assert policy.spec.action is not None
    assert policy.spec.action.control_mode == ("ee_target_delta_position" if "mt50" in name else "ee_delta_pose")
    spec = save_checkpoint(tmp_path, policy.model, policy.processor)
    assert (tmp_path / "model.safetensors").read_bytes() == (CHECKPOINTS / name / "model.safetensors").read_bytes()
    assert "controller" in (CHECKPOINTS / name / "processor.json").read_text(), "shipped in the words of version 0.1"
    assert "controller" not in (tmp_path / "processor.json").read_text()
    again = load_checkpoint(tmp_path, "cpu")
    assert again.spec == policy.spec == spec
    assert (again.processor.stats, again.processor.prompt) == (policy.processor.stats, policy.processor.prompt)


def test_noise_is_decided_by_key_and_policy_call(
    folder: Path, processor: SpatialVLAProcessor, observe: Observe
) -> None:
    policy = load_checkpoint(folder, "cpu")

    def actions(policy_call: int) -> list[float]:
        return policy.predict([ask(processor, observe, 0, policy_call)])[0].actions.ravel().tolist()

    assert actions(0) == actions(0)
    assert actions(0) != actions(1)


def test_companions_change_rounding_at_most(folder: Path, processor: SpatialVLAProcessor, observe: Observe) -> None:
    policy = load_checkpoint(folder, "cpu")
    requests = [ask(processor, observe, seed) for seed in range(3)]
    together = policy.predict(requests)
    for request, chunk in zip(requests, together, strict=True):
        np.testing.assert_allclose(chunk.actions, policy.predict([request])[0].actions, atol=1e-5)
    assert policy.predict([]) == []


def test_other_euler_steps_are_taken_and_stand_in_the_spec(
    folder: Path, processor: SpatialVLAProcessor, observe: Observe
) -> None:
    own = load_policy(str(folder), "cpu")
    assert isinstance(own, SpatialVLAPolicy)
    steps = own.model.network.expert.euler_steps
    same, other = (load_policy(str(folder), "cpu", InferenceConfig(count)) for count in (steps, steps + 1))
    assert (own.spec.variant, same.spec.variant, other.spec.variant) == ("", "", f"{steps + 1} Euler steps")
    mine, likewise, differently = (
        policy.predict([ask(processor, observe, 0)])[0].actions for policy in (own, same, other)
    )
    assert np.array_equal(mine, likewise)
    assert not np.allclose(mine, differently, atol=1e-6)
    with pytest.raises(SimEvalError, match="leave --euler-steps out"):
        load_policy("zero", inference=InferenceConfig(2))


def test_loading_leaves_the_callers_random_stream_alone(folder: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_checkpoint(folder, "cpu")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", FILES)
def test_missing_truncated_and_empty_files_are_named(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    for content in (None, b"", whole[: len(whole) // 2], b"[]"):
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)
        with pytest.raises(SimEvalError) as caught:
            load_checkpoint(folder, "cpu")
        message = str(caught.value)
        assert message.startswith(str(folder / name)), message
        assert "\n" not in message
        assert "restore the file" in message


@pytest.mark.parametrize(
    ("name", "part", "value", "blamed"),
    [
        ("config.json", ("network", "text", "mlp"), 56, "model.safetensors"),
        ("config.json", ("network", "text", "layers"), 2, "config.json"),
        ("config.json", ("network", "text", "layers"), "many", "config.json"),
        ("config.json", ("network", "vision"), None, "config.json"),
        ("config.json", ("network", "voxel_sizes"), 1, "config.json"),
        ("config.json", ("network", "frame"), "elbow", "config.json"),
        ("config.json", ("network", "expert", "state_dim"), 5, "processor.json"),
        ("processor.json", ("cameras", "wrist"), [64], "processor.json"),
        ("processor.json", ("cameras",), 3, "processor.json"),
        ("processor.json", ("normalization", "mode"), "min_max", "processor.json"),
        ("processor.json", ("normalization", "fields", "action", "std"), [1.0], "processor.json"),
        ("processor.json", ("action", "control_hz"), None, "processor.json"),
    ],
)
def test_files_that_do_not_fit_each_other_are_named(
    folder: Path, name: str, part: tuple[str, ...], value: object, blamed: str
) -> None:
    data = json.loads((folder / name).read_text())
    place = data
    for key in part[:-1]:
        place = place[key]
    place[part[-1]] = value
    (folder / name).write_text(json.dumps(data))
    with pytest.raises(SimEvalError) as caught:
        load_checkpoint(folder, "cpu")
    assert str(caught.value).startswith(str(folder / blamed))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(
    folder: Path, model: SpatialVLAForConditionalGeneration, processor: SpatialVLAProcessor, value: float
) -> None:
    with torch.no_grad():
        model.action_expert.action_out_proj.bias[3] = value
    save_checkpoint(folder, model, processor)
    with pytest.raises(
        SimEvalError, match=r"model\.safetensors: action_expert\.action_out_proj\.bias holds NaN"
    ) as told:
        load_checkpoint(folder, "cpu")
    assert "\n" not in str(told.value)


def test_a_failed_write_leaves_the_old_checkpoint(
    folder: Path,
    model: SpatialVLAForConditionalGeneration,
    processor: SpatialVLAProcessor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = load_checkpoint(folder, "cpu").spec.digest
    with torch.no_grad():
        model.action_expert.action_out_proj.bias += 1

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(SimEvalError, match="No space left"):
        save_checkpoint(folder, model, processor)
    assert load_checkpoint(folder, "cpu").spec.digest == before


def test_why_there_is_no_cuda_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def cuda(name: str, built: str | None, devices: int, driver: bool) -> str:
        def library(_: str) -> None:
            if not driver:
                raise OSError("libcuda.so.1: cannot open shared object file")

        def empty(*_: object, **__: object) -> None:
            raise RuntimeError("no")

        monkeypatch.setattr(torch.version, "cuda", built)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
        monkeypatch.setattr("ctypes.CDLL", library)
        monkeypatch.setattr(torch, "empty", empty)
        with pytest.raises(SimEvalError) as caught:
            resolve_device(name)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "is built for the CPU only: install a CUDA build" in cuda("cuda", None, 0, False)
    assert "no NVIDIA driver: install one" in cuda("cuda", "13.0", 0, False)
    assert "the NVIDIA driver shows no GPU: look at nvidia-smi" in cuda("cuda:0", "13.0", 0, True)
    assert "'cuda:3' cannot be used: there is only cuda:0 to cuda:1" in cuda("cuda:3", "13.0", 2, True)


def test_unknown_device_and_unwritable_folder(
    folder: Path, model: SpatialVLAForConditionalGeneration, processor: SpatialVLAProcessor, tmp_path: Path
) -> None:
    with pytest.raises(SimEvalError, match="device 'abacus' cannot be used: torch knows no such device here"):
        load_checkpoint(folder, "abacus")
    (tmp_path / "file").write_text("")
    with pytest.raises(SimEvalError, match="cannot write"):
        save_checkpoint(tmp_path / "file", model, processor)


@pytest.mark.parametrize("config", [config for size in SIZES.values() for config in size.values()])
def test_named_sizes_survive_json(config: SpatialVLAConfig) -> None:
    data = json.loads(json.dumps(config.to_dict()))
    assert SpatialVLAConfig.from_dict(data) == config
