"""A loaded network with smaller weights: bfloat16, or 8 or 4 bits in the layers that hold nearly all of them.

The position embedding and the projections of state, time and actions stay as they are: they are small, and what they
read is measured in millimetres.
"""

from __future__ import annotations

import torch
from torch import nn

from sim_eval.core.errors import SimEvalError
from sim_eval.policies.policy import Weights
from sim_eval.policies.spatialvla.modeling_spatialvla import SpatialVLAForConditionalGeneration
from sim_eval.policies.spatialvla.parts import convert


def set_weights(model: SpatialVLAForConditionalGeneration, weights: Weights) -> None:
    """Changes the weights in place; the model can then predict, no longer be trained or saved.

    Args:
        model: with float weights.
        weights: "float32" leaves them as they are. "bfloat16" makes so all parameters but the position embedding's.
            "int8" (symmetric, a scale an output) and "nf4" (4 bits, a scale 64 weights; Dettmers et al. 2023) quantise
            the matrices of :attr:`SpatialVLAForConditionalGeneration.stacks`.

    Raises:
        SimEvalError: the library that quantises is not installed.
    """
    if weights == "bfloat16":
        convert(model, torch.bfloat16)
    elif weights in ("int8", "nf4"):
        quantise = _to_int8 if weights == "int8" else _to_nf4
        try:
            for stack in model.stacks:
                quantise(stack)
        except ImportError as error:
            raise SimEvalError(
                f"{weights} weights need {'torchao' if weights == 'int8' else 'bitsandbytes'}, "
                "which cannot be imported here: pip install 'sim_eval[quantized]'"
            ) from error


def _to_int8(stack: nn.Module) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    # Its settings for the compiler are global ones, and lower the precision of float32 products.
    quantize_(stack, Int8WeightOnlyConfig(set_inductor_config=False))


def _to_nf4(stack: nn.Module) -> None:
    from bitsandbytes.nn import Linear4bit, Params4bit

    linear = [(name, module) for name, module in stack.named_modules() if isinstance(module, nn.Linear)]
    for name, module in linear:
        weight, bias = module.weight.detach(), module.bias
        small = Linear4bit(module.in_features, module.out_features, bias is not None, weight.dtype, device="meta")
        small.weight = Params4bit(weight, quant_type="nf4", module=small).to(weight.device)
        small.bias = bias
        # On some CPUs it would pack the weights anew, for which their sizes must be multiples, and compute in bfloat16.
        small.support_avx512bf16_for_cpu = False
        stack.set_submodule(name, small)
