"""Parts are frozen by name, and what a training takes is estimated near what autograd keeps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sim_eval.core.errors import SimEvalError
from sim_eval.policies.spatialvla.modeling_llava3d import SpatialVLAInputs
from sim_eval.policies.spatialvla.modeling_spatialvla import SpatialVLAForConditionalGeneration
from sim_eval.policies.spatialvla.parts import PARTS, Load, freeze, inventory, training_memory

LossOf = Callable[[SpatialVLAForConditionalGeneration, SpatialVLAInputs], Tensor]


def test_every_parameter_is_in_one_part(each_model: SpatialVLAForConditionalGeneration) -> None:
    parts = inventory(each_model)
    assert [part.name for part in parts] == list(PARTS)
    assert sum(part.parameters for part in parts) == sum(p.numel() for p in each_model.parameters())
    assert sum(part.trained for part in parts) == sum(p.numel() for p in each_model.parameters() if p.requires_grad)
    assert all(part.parameters for part in parts)


@pytest.mark.parametrize("frozen", [("vision",), ("vision", "position", "projector", "vlm"), ("expert",)])
def test_what_is_frozen_gets_no_gradient_and_the_rest_does(
    each_model: SpatialVLAForConditionalGeneration, inputs: SpatialVLAInputs, loss_of: LossOf, frozen: tuple[str, ...]
) -> None:
    unread = {name for name, parameter in each_model.named_parameters() if not parameter.requires_grad}
    freeze(each_model, frozen)
    loss_of(each_model, inputs).backward()
    prefixes = tuple(PARTS[part] for part in frozen)
    for name, parameter in each_model.named_parameters():
        assert (parameter.grad is None) == (name.startswith(prefixes) or name in unread), name
    assert [part.trained for part in inventory(each_model) if part.name in frozen] == [0] * len(frozen)


def test_nonsense_is_refused(model: SpatialVLAForConditionalGeneration) -> None:
    with pytest.raises(SimEvalError, match="unknown part 'head': choose among vision, position"):
        freeze(model, ["head"])
    with pytest.raises(SimEvalError, match="leave one to train"):
        freeze(model, list(PARTS))


@pytest.mark.parametrize(
    "frozen", [(), ("vision", "position", "projector"), ("vision", "position", "projector", "vlm")]
)
def test_activations_are_estimated_within_a_factor_of_two(
    each_model: SpatialVLAForConditionalGeneration, inputs: SpatialVLAInputs, loss_of: LossOf, frozen: tuple[str, ...]
) -> None:
    freeze(each_model, frozen)
    each_model.train()
    own = {parameter.untyped_storage().data_ptr() for parameter in each_model.parameters()}
    seen: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and tensor.is_floating_point():
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = loss_of(each_model, inputs)
    assert inputs.geometry is not None
    vlm, batch = each_model.vlm, len(inputs.state)
    load = Load(
        batch, 2, int(vlm.locate_patches(inputs.geometry)[1].sum()) // batch, int(vlm(inputs).valid.sum()) // batch
    )
    with torch.device("meta"):
        shape = SpatialVLAForConditionalGeneration(each_model.network)
    freeze(shape, frozen)
    memory = training_memory(shape, load)
    assert loss.isfinite()
    assert 0.5 < memory.activations / sum(seen.values()) < 2
    assert training_memory(shape, load, checkpointing=True).activations < memory.activations
