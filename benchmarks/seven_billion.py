"""That the real size runs on a CPU: ``.venv/bin/python benchmarks/seven_billion.py``.

A LLaVA-3D of 7 billion parameters with gemma-2b as its expert, in bfloat16 and with random weights, predicts one chunk
from two 336-pixel views within 24 GB. ``--size proof`` runs the same with a network of a few hundred thousand.
"""

from __future__ import annotations

import dataclasses
import resource
import time
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge

from sim_eval.console import run
from sim_eval.core.errors import SimEvalError

if TYPE_CHECKING:
    from sim_eval.policies.spatialvla.configuration_spatialvla import SpatialVLAConfig
    from sim_eval.policies.spatialvla.modeling_spatialvla import SpatialVLAForConditionalGeneration

MEMORY = 24.0  # GB
WORDS = 64
SPREAD = 0.02  # standard deviation that language models start from


@dataclasses.dataclass(frozen=True)
class SizeArguments:
    """Predict one chunk with a network of real size and random weights.

    Attributes:
        size: 7b (20 GB of memory, minutes), or proof (seconds) to see that this program works.
        euler_steps: of the sampler.
        threads: torch's threads.
    """

    size: Literal["7b", "proof"] = "7b"
    euler_steps: Annotated[int, Ge(1)] = 10
    threads: Annotated[int, Ge(1)] = 2


def configuration(size: str) -> SpatialVLAConfig:
    """LLaVA-3D-7B with gemma-2b, or the same with narrow layers and few."""
    from sim_eval.policies.spatialvla.configuration_spatialvla import SIZES

    whole = SIZES["llava3d-7b"]["late_gemma"]
    if size == "7b":
        return whole
    return dataclasses.replace(
        whole,
        vision=dataclasses.replace(whole.vision, width=64, layers=3, heads=2, mlp=128),
        text=dataclasses.replace(whole.text, width=64, layers=2, heads=2, kv_heads=2, mlp=128, vocab_size=256),
        expert=dataclasses.replace(whole.expert, width=64, layers=2, heads=2, head_dim=32, mlp=128),
    )


def build(config: SpatialVLAConfig) -> SpatialVLAForConditionalGeneration:
    """The network in bfloat16 with random weights, without ever holding more than it.

    Drawing nine billion numbers takes minutes; here a million of them are repeated. Their number is prime, so that no
    two rows of a matrix are alike.
    """
    import torch
    from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings
    from transformers.models.gemma.modeling_gemma import GemmaRMSNorm, GemmaRotaryEmbedding
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    from sim_eval.policies.spatialvla.modeling_spatialvla import SpatialVLAForConditionalGeneration

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            model = SpatialVLAForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    model = model.to_empty(device="cpu").requires_grad_(False).eval()
    drawn = SPREAD * torch.randn(1_000_003, generator=torch.Generator().manual_seed(0))
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() > 1 or name == "class_embedding":
                for part in parameter.view(-1).split(len(drawn)):
                    part.copy_(drawn[: len(part)])
            else:  # Gemma's norms multiply by one more than their weight
                parameter.fill_(float(name == "weight" and not isinstance(module, GemmaRMSNorm)))
        # What is no weight has no numbers yet, either.
        if isinstance(module, (LlamaRotaryEmbedding, GemmaRotaryEmbedding)):
            for name, buffer in type(module)(module.config).named_buffers():
                module.get_buffer(name).copy_(buffer)
        elif isinstance(module, CLIPVisionEmbeddings):
            module.position_ids.copy_(torch.arange(module.num_positions))
    return model


def main(arguments: SizeArguments) -> int:
    """Runs the command; returns the exit code."""
    import torch
    from made_up_scene import made_up_scene

    from sim_eval.policies.spatialvla.parts import inventory

    torch.set_num_threads(arguments.threads)
    config = configuration(arguments.size)
    began = time.perf_counter()
    model = build(config)
    built = time.perf_counter()
    inputs = made_up_scene(config, prompt=WORDS)
    noise = torch.randn(
        (1, config.expert.chunk_size, config.expert.action_dim), generator=torch.Generator().manual_seed(0)
    )
    tokens: list[int] = []
    model.vlm.register_forward_hook(lambda _, __, context: tokens.append(int(context.valid.sum())))
    chunk = model.predict_action(inputs, noise, arguments.euler_steps)
    answered = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    for part in inventory(model):
        print(f"{part.name:10} {part.parameters:>14,} parameters")
    print(f"{'all':10} {model.num_parameters():>14,} parameters, bfloat16")
    print(f"built in {built - began:.1f} s")
    work = f"{tokens[0]} context tokens, {arguments.euler_steps} Euler steps, {arguments.threads} threads"
    print(f"one chunk of {tuple(chunk.shape[1:])} in {answered - built:.1f} s: {work}")
    print(f"peak memory {peak:.1f} GB of {MEMORY:.0f} GB")
    if not chunk.isfinite().all():
        raise SimEvalError("the chunk holds a number that is not finite: the network overflows in bfloat16")
    if peak > MEMORY:
        raise SimEvalError(f"the peak of {peak:.1f} GB is above {MEMORY:.0f} GB")
    return 0


if __name__ == "__main__":
    run(main, SizeArguments, "benchmarks/seven_billion.py")
