"""LoRA (Hu et al. 2021) through peft: small matrices that are trained in the place of a part's own weights."""

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
    """Freezes the named parts and sets a trainable adapter beside each matrix of their layers.

    An adapter begins as zero, so the network computes what it did before.

    Raises:
        SimEvalError: a part cannot be adapted.
    """
    if unknown := sorted(set(parts) - set(ADAPTED)):
        raise SimEvalError(f"part '{unknown[0]}' cannot be adapted: choose among {', '.join(ADAPTED)}")
    if not parts:
        return
    from peft import LoraConfig, inject_adapter_in_model  # takes a second, and few need it

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


@torch.no_grad()
def whole_weights(model: SpatialVLAForConditionalGeneration) -> dict[str, Tensor]:
    """The network's weights on the CPU with adapters added to the matrices beside which they stand.

    Those of a model on the CPU are its own, not copies. All processes must ask where the weights are divided.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        state[name] = whole.detach().cpu().contiguous()
    if not any(".lora_A." in name for name in state):
        return state
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and hasattr(module, "base_layer"):
            down, up = (state[f"{name}.lora_{side}.default.weight"].float() for side in "AB")
            added = float(module.scaling["default"]) * (up @ down)
            # In float32 whatever the base is kept in: bfloat16 would round most of what was learnt away.
            state[f"{name}.base_layer.weight"] = state[f"{name}.base_layer.weight"].float() + added
    return {name.replace(".base_layer.", "."): tensor for name, tensor in state.items() if ".lora_" not in name}
