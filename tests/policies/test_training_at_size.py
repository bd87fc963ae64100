"""What makes a large network trainable changes nothing that it should not: adapters, bfloat16, kept features."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import Observation
from sim_eval.policies.spatialvla.adapters import add_adapters, whole_weights
from sim_eval.policies.spatialvla.checkpoint import load_checkpoint, save_checkpoint
from sim_eval.policies.spatialvla.feature_cache import FeatureCache
from sim_eval.policies.spatialvla.modeling_llava3d import SpatialVLAInputs
from sim_eval.policies.spatialvla.modeling_spatialvla import SpatialVLAForConditionalGeneration as Model
from sim_eval.policies.spatialvla.modeling_spatialvla import checkpoint_layers
from sim_eval.policies.spatialvla.parts import PARTS, convert, freeze
from sim_eval.policies.spatialvla.processing_spatialvla import SpatialVLAProcessor, TrainingBatch
from sim_eval.policies.spatialvla.trainer import Trainer, TrainingConfig

LossOf = Callable[[Model, SpatialVLAInputs], Tensor]
VLM = ("vision", "position", "projector", "vlm")


def batch_of(inputs: SpatialVLAInputs) -> TrainingBatch:
    actions = torch.randn(3, 4, 7, generator=torch.Generator().manual_seed(2))
    return TrainingBatch(inputs, actions, torch.ones(3, 4, dtype=torch.bool))


def test_adapters_start_as_nothing_and_end_in_the_weights(
    each_model: Model, inputs: SpatialVLAInputs, loss_of: LossOf, processor: SpatialVLAProcessor, tmp_path: Path
) -> None:
    expected, names = loss_of(each_model, inputs), list(each_model.state_dict())
    before = {name: tensor.clone() for name, tensor in each_model.state_dict().items()}
    add_adapters(each_model, ["vision", "vlm"], rank=2)
    assert torch.equal(loss_of(each_model, inputs), expected)
    trainer = Trainer(each_model, TrainingConfig(batch_size=3, warmup_steps=1), 0)
    for _ in range(3):
        trainer.train_step(batch_of(inputs), 0.0)
    for name, parameter in each_model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if name.startswith((PARTS["vision"], PARTS["vlm"])):
            assert parameter.requires_grad <= (".lora_" in name), name
    noise = torch.randn(3, 4, 7)
    adapted = each_model.eval().predict_action(inputs, noise)
    save_checkpoint(tmp_path, each_model, processor)
    plain = load_checkpoint(tmp_path, "cpu").model
    assert list(plain.state_dict()) == names
    torch.testing.assert_close(plain.predict_action(inputs, noise), adapted, atol=1e-5, rtol=1e-5)
    changed = {name for name, tensor in plain.state_dict().items() if not torch.equal(tensor, before[name])}
    assert any(name.startswith(PARTS["vlm"]) and name.endswith("q_proj.weight") for name in changed)
    assert not any("norm" in name and name.startswith(PARTS["vlm"]) for name in changed)


def test_what_an_adapter_learnt_survives_a_base_in_bfloat16(model: Model, inputs: SpatialVLAInputs) -> None:
    add_adapters(model, ["vlm"], rank=2)
    convert(model, torch.bfloat16, frozen_only=True)
    trainer = Trainer(model, TrainingConfig(batch_size=3, learning_rate=1e-5, warmup_steps=1, bfloat16=True), 0)
    trainer.train_step(batch_of(inputs), 0.0)
    layer = model.vlm.language_model.layers[0].self_attn.v_proj
    learnt = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    saved = whole_weights(model)["vlm.language_model.layers.0.self_attn.v_proj.weight"]
    assert learnt.any()
    torch.testing.assert_close(saved - layer.base_layer.weight.float(), learnt, atol=1e-8, rtol=0)


def test_a_part_without_layers_takes_no_adapter(model: Model) -> None:
    with pytest.raises(SimEvalError, match="'projector' cannot be adapted: choose among vision, vlm, expert"):
        add_adapters(model, ["projector"], rank=2)
    names = list(model.state_dict())
    add_adapters(model, [], rank=2)
    assert list(whole_weights(model)) == names


def test_bfloat16_is_near_and_exact_where_it_matters(each_model: Model, inputs: SpatialVLAInputs) -> None:
    assert inputs.geometry is not None
    freeze(each_model, ["vision", "vlm"])
    places, kept = each_model.vlm.locate_patches(inputs.geometry)
    embedded = each_model.vlm.position_embedding(places[kept])
    exact = Trainer(each_model, TrainingConfig(batch_size=3), 0)
    expected, _ = exact.train_step(batch_of(inputs), 0.0)
    with exact.averaged():
        pass
    convert(each_model, torch.bfloat16, frozen_only=True)
    with torch.autocast("cpu", torch.bfloat16):
        again, kept_again = each_model.vlm.locate_patches(inputs.geometry)
        assert torch.equal(again, places)
        assert torch.equal(kept_again, kept)
        assert each_model.vlm.position_embedding(places[kept]).dtype == embedded.dtype == torch.float32
    half = Trainer(each_model, TrainingConfig(batch_size=3, bfloat16=True), 0)
    loss, norm = half.train_step(batch_of(inputs), 0.0)
    assert 0 < abs(loss - expected) < 0.1 * expected
    assert norm > 0
    types = {(parameter.requires_grad, parameter.dtype) for parameter in each_model.parameters()}
    assert types <= {(True, torch.float32), (False, torch.bfloat16), (False, torch.float32)}
    with half.averaged() as averaged, torch.no_grad():
        assert averaged.predict_action(inputs, torch.randn(3, 4, 7)).isfinite().all()


def test_averages_take_the_weights_place_and_give_it_back(model: Model, inputs: SpatialVLAInputs) -> None:
    first = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = Trainer(model, TrainingConfig(batch_size=3, warmup_steps=1), 0)
    trainer.train_step(batch_of(inputs), 0.0)
    after = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with trainer.averaged() as averaged:
        for name, parameter in averaged.named_parameters():  # the first update keeps 2 of 11 parts of what was
            expected = first[name].lerp(after[name], 9 / 11)
            torch.testing.assert_close(parameter.detach(), expected, msg=name)
    assert all(torch.equal(parameter, after[name]) for name, parameter in model.named_parameters())


def test_kept_features_change_nothing(
    each_model: Model, processor: SpatialVLAProcessor, observe: Callable[[int], Observation], tmp_path: Path
) -> None:
    freeze(each_model, VLM)
    inputs = processor([observe(seed) for seed in range(3)])
    cache = FeatureCache(tmp_path / "features", each_model.vlm, {"weights": "a"})
    batch = batch_of(inputs)
    noise, time = torch.randn(3, 2, 4, 7), torch.rand(3, 2)
    arguments = (batch.inputs, batch.actions, batch.valid, noise, time)
    expected = each_model(*arguments)
    cache.context([2], processor([observe(2)]))  # one is there already, and was made alone
    for _ in range(2):  # made, then read
        torch.testing.assert_close(
            each_model(*arguments, cache.context([0, 1, 2], inputs)), expected, atol=1e-6, rtol=0
        )
    calls: list[int] = []
    handle = each_model.vlm.register_forward_hook(lambda *_: calls.append(1))
    each_model(*arguments, cache.context([0, 1, 2], inputs)).backward()
    handle.remove()
    assert not calls, "the VLM must not run again"
    with pytest.raises(SimEvalError, match="features of other weights or demonstrations"):
        FeatureCache(tmp_path / "features", each_model.vlm, {"weights": "b"})
    file = sorted((tmp_path / "features").glob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(SimEvalError, match="is damaged: delete it"):
        cache.context([0, 1, 2], inputs)


def test_checkpointing_by_its_switch_changes_nothing(
    each_model: Model, inputs: SpatialVLAInputs, loss_of: LossOf
) -> None:
    each_model.train()
    plain = loss_of(each_model, inputs)
    plain.backward()
    expected = {name: p.grad.clone() for name, p in each_model.named_parameters() if p.grad is not None}
    each_model.zero_grad()
    runs: list[int] = []
    handle = each_model.vlm.language_model.layers[0].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    checkpoint_layers(each_model)
    again = loss_of(each_model, inputs)
    again.backward()
    handle.remove()
    assert len(runs) == 2, "a layer must run again for its gradient"
    assert torch.equal(plain, again)
    for name, parameter in each_model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-7, rtol=1e-5)
