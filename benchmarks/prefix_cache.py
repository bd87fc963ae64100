"""What the prefix cache is worth: ``.venv/bin/python benchmarks/prefix_cache.py``.

Samples a chunk in 10 Euler steps from a context of 320 tokens (300 patches, each its own, and 20 of the instruction),
with the VLM and its keys and values computed once, and anew in each step. The network has the shipped checkpoints'
sizes and random weights. The two ways are timed in turn, so that the machine's moods hit them alike; the ratio is a
pair's.
"""

from __future__ import annotations

import dataclasses
import statistics
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge
from model_speed import WARM_UP, milliseconds

from sim_eval.console import run

if TYPE_CHECKING:
    from sim_eval.policies.spatialvla.configuration_spatialvla import ActionExpertType

PATCHES, WORDS, STEPS = 300, 20, 10


@dataclasses.dataclass(frozen=True)
class PrefixArguments:
    """Time sampling with the prefix computed once against anew in each Euler step.

    Attributes:
        pairs: timed pairs of each expert.
        threads: torch's threads.
    """

    pairs: Annotated[int, Ge(20)] = 30
    threads: Annotated[int, Ge(1)] = 1


def compare(expert: ActionExpertType, pairs: int) -> tuple[list[float], list[float], float]:
    """Milliseconds of both ways, a pair each, and the largest difference of their chunks."""
    import torch
    from made_up_scene import made_up_scene

    from sim_eval.policies.spatialvla import flow_matching
    from sim_eval.policies.spatialvla.configuration_spatialvla import SIZES
    from sim_eval.policies.spatialvla.modeling_spatialvla import SpatialVLAForConditionalGeneration

    # Without voxels every patch is a token, so that the context's length is known.
    config = dataclasses.replace(SIZES["tiny"][expert], voxel_size=None)
    torch.manual_seed(0)
    model = SpatialVLAForConditionalGeneration(config).eval()
    inputs = made_up_scene(config, prompt=WORDS + 1, patches=PATCHES)
    noise = torch.randn(1, config.expert.chunk_size, config.expert.action_dim)
    chunks = {}

    def velocity(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        context = model.vlm(inputs)
        assert context.valid.sum() == PATCHES + WORDS
        prepared = model.action_expert.prepare(context, model.vlm.language_model.layers)
        return model.action_expert.velocity(prepared, inputs.state, x, time)

    def once() -> None:
        chunks["once"] = model.predict_action(inputs, noise, STEPS)

    def anew() -> None:
        chunks["anew"] = flow_matching.euler(velocity, noise[:, None], STEPS).squeeze(1)

    with torch.inference_mode():
        times = [(milliseconds(once), milliseconds(anew)) for _ in range(WARM_UP + pairs)][WARM_UP:]
    cached, uncached = (list(way) for way in zip(*times, strict=True))
    return cached, uncached, float((chunks["once"] - chunks["anew"]).abs().max())


def main(arguments: PrefixArguments) -> int:
    """Runs the command; returns the exit code."""
    import torch

    from sim_eval.policies.spatialvla.configuration_spatialvla import ACTION_EXPERTS
    from sim_eval.reporting.tables import Table

    torch.set_num_threads(arguments.threads)
    rows = []
    for expert in ACTION_EXPERTS:
        cached, uncached, difference = compare(expert, arguments.pairs)
        ratios = [slow / fast for fast, slow in zip(cached, uncached, strict=True)]
        deciles = statistics.quantiles(ratios, n=10)
        numbers = (statistics.median(cached), statistics.median(uncached))
        shares = (statistics.median(ratios), deciles[0], deciles[-1])
        rows.append((expert, *(f"{n:.1f}" for n in numbers), *(f"{n:.2f}" for n in shares), f"{difference:.1e}"))
    print(f"{PATCHES + WORDS} context tokens, {STEPS} Euler steps, {arguments.threads} threads, n = {arguments.pairs}")
    print(Table(("expert", "once ms", "anew ms", "times faster", "10 %", "90 %", "largest difference"), rows))
    return 0


if __name__ == "__main__":
    run(main, PrefixArguments, "benchmarks/prefix_cache.py")
