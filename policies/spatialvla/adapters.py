"""LoRA (Hu et al. 2021) through peft: small matrices are trained instead of a part's own weights."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sim_eval.core.errors import SimEvalError
from sim_eval.policies.spatialvla.modeling_spatialvla import SpatialVLAForConditionalGeneration
from sim_eval.policies.spatialvla.parts import PARTS, part_of

ADAPTED = ("vision", "vlm", "expert")  # the parts that are stacks of layers


def add_adapters(model: SpatialVLAForConditionalGeneration, parts: Collection[str], rank: int) -> None:
    """Freezes the named parts and adds a trainable adapter to each matrix of their layers.

    Adapters start as zero, so the network's output does not change.

    Args:
        parts: some of :data:`ADAPTED`.
        rank: of the adapters' matrices.

    Raises:
        SimEvalError: a part cannot be adapted.
    """
    if unknown := sorted(set(parts) - set(ADAPTED)):
        raise SimEvalError(f"part '{unknown[0]}' cannot be adapted: choose among {', '.join(ADAPTED)}")
    if not parts:
        return
    from peft import LoraConfig, inject_adapter_in_model  # the import takes a second

    stacks = tuple(PARTS[part] for part in parts)
    matrices = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(stacks) and ".layers." in name
    ]
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=matrices), model)
    for name, parameter in model.named_parameters():  # peft has frozen all but its own
        own = ".lora_" in name
        parameter.requires_grad_(own or (name in trained and part_of(name) not in parts))
    model.freeze_unread()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be divided among processes; all of them must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def whole_weights(model: SpatialVLAForConditionalGeneration) -> dict[str, Tensor]:
    """The network's weights on the CPU, with each adapter added to its matrix.

    The tensors of a model on the CPU are its own, not copies. If the weights are sharded, all processes must call this.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        state[name] = whole(tensor).detach().cpu().contiguous()
    if not any(".lora_A." in name for name in state):
        return state
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and hasattr(module, "base_layer"):
            down, up = (state[f"{name}.lora_{side}.default.weight"].float() for side in "AB")
            added = float(module.scaling["default"]) * (up @ down)
            # In float32, whatever the type of the base: bfloat16 would round away most of what was learnt.
            state[f"{name}.base_layer.weight"] = state[f"{name}.base_layer.weight"].float() + added
    return {name.replace(".base_layer.", "."): tensor for name, tensor in state.items() if ".lora_" not in name}
