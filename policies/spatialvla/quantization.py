"""Smaller weights for a loaded network: bfloat16, or 8 or 4 bits in the layers that hold nearly all weights.

The position embedding and the projections of state, time and actions keep their type when quantised: they are small,
and millimetres matter to them.
"""

from __future__ import annotations

import torch
from torch import nn

from sim_eval.core.errors import SimEvalError
from sim_eval.policies.policy import Weights
from sim_eval.policies.spatialvla.modeling_spatialvla import SpatialVLAForConditionalGeneration
from sim_eval.policies.spatialvla.parts import convert


def set_weights(model: SpatialVLAForConditionalGeneration, weights: Weights) -> None:
    """Converts the weights in place. Afterwards the model can predict, but it can no longer be trained or saved.

    Args:
        model: with float32 weights.
        weights: "float32" changes nothing. "bfloat16" converts all parameters but the position embedding's. "int8"
            (symmetric, one scale per output) and "nf4" (4 bits, one scale per 64 weights; Dettmers et al. 2023)
            quantise the matrices in :attr:`SpatialVLAForConditionalGeneration.stacks`.

    Raises:
        SimEvalError: the library for the quantisation is not installed.
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

    # torchao's settings for the compiler are global and lower the precision of float32 products.
    quantize_(stack, Int8WeightOnlyConfig(set_inductor_config=False))


def _to_nf4(stack: nn.Module) -> None:
    from bitsandbytes.nn import Linear4bit, Params4bit

    linear = [(name, module) for name, module in stack.named_modules() if isinstance(module, nn.Linear)]
    for name, module in linear:
        weight, bias = module.weight.detach(), module.bias
        small = Linear4bit(module.in_features, module.out_features, bias is not None, weight.dtype, device="meta")
        small.weight = Params4bit(weight, quant_type="nf4", module=small).to(weight.device)
        small.bias = bias
        # On some CPUs bitsandbytes would repack the weights, which only some sizes allow, and compute in bfloat16.
        small.support_avx512bf16_for_cpu = False
        stack.set_submodule(name, small)
