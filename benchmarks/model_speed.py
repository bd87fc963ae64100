"""How long the network takes: ``.venv/bin/python benchmarks/model_speed.py --data data/lift_wide``.

Times, on real demonstrations, a training step (batch preparation and forward + backward + AdamW + EMA apart) and an
answer to one observation, with the prefix of the VLM computed once against once an Euler step.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from sim_eval.console import run

if TYPE_CHECKING:
    from sim_eval.datasets.windows import EpisodeWindows

WARM_UP = 3  # calls that do not count


@dataclasses.dataclass(frozen=True)
class SpeedArguments:
    """Time training steps and answers of a SpatialVLA with each of its experts.

    Attributes:
        data: folders of demonstrations that sim_eval.collect filled.
        episodes: how many of each folder to read.
        steps: training steps and answers to time.
        threads: torch's threads.
        size: of the network.
    """

    data: tuple[Path, ...]
    episodes: Annotated[int, Ge(1)] = 20
    steps: Annotated[int, Ge(10)] = 60
    threads: Annotated[int, Ge(1)] = 2
    size: str = "tiny"


def milliseconds(action: Callable[[], object]) -> float:
    """Wall-clock time of a call."""
    began = time.perf_counter()
    action()
    return 1e3 * (time.perf_counter() - began)


def actions(expert: str, windows: EpisodeWindows, arguments: SpeedArguments) -> dict[str, Callable[[], object]]:
    """What is timed of one expert, by name."""
    import torch

    from sim_eval.configs import TrainConfig
    from sim_eval.datasets.windows import TaskBalancedBatchSampler
    from sim_eval.policies.spatialvla.modeling_spatialvla import SpatialVLAForConditionalGeneration
    from sim_eval.policies.spatialvla.trainer import Trainer, TrainingConfig
    from sim_eval.training.preparation import make_processor

    options = TrainConfig(data=arguments.data, out=Path("."), size=arguments.size, expert=expert)
    processor = make_processor(windows, options)
    torch.manual_seed(0)
    model = SpatialVLAForConditionalGeneration(processor.config)
    config = TrainingConfig()
    trainer = Trainer(model, config, seed=0)
    indices = iter(TaskBalancedBatchSampler(windows, config.batch_size, seed=0))
    stream = ([windows[index] for index in batch] for batch in indices)
    prepared = [processor.training_batch(next(stream)) for _ in range(8)]

    def prepare() -> None:
        processor.training_batch(next(stream))

    def step() -> None:
        trainer.train_step(prepared[trainer.step % len(prepared)], 0.0)

    inputs = processor([windows[len(windows) // 2].observation])
    sizes = processor.config.expert
    noise = torch.randn((1, sizes.chunk_size, sizes.action_dim), generator=torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def answer() -> None:
        trainer.model.predict_action(inputs, noise)

    @torch.inference_mode()
    def answer_uncached() -> None:
        for _ in range(sizes.euler_steps):
            trainer.model.predict_action(inputs, noise, steps=1)

    return {
        f"batch of {config.batch_size} prepared": prepare,
        f"training step, {config.batch_size} observations x {config.flow_samples} flow samples": step,
        f"answer, {sizes.euler_steps} Euler steps on one prefix": answer,
        f"answer, prefix anew in each of {sizes.euler_steps} steps": answer_uncached,
    }


def main(arguments: SpeedArguments) -> int:
    """Runs the command; returns the exit code."""
    import torch

    from sim_eval.datasets.episode_file import episode_files
    from sim_eval.datasets.windows import EpisodeWindows
    from sim_eval.policies.spatialvla.configuration_spatialvla import ACTION_EXPERTS, SIZES
    from sim_eval.reporting.tables import Table

    torch.set_flush_denormal(True)
    torch.set_num_threads(arguments.threads)
    files = [file for folder in arguments.data for file in episode_files(folder)[: arguments.episodes]]
    windows = EpisodeWindows(files or arguments.data, SIZES[arguments.size][ACTION_EXPERTS[0]].expert.chunk_size)
    by_expert = {expert: actions(expert, windows, arguments) for expert in ACTION_EXPERTS}
    rows = []
    for name in by_expert[ACTION_EXPERTS[0]]:
        found: dict[str, list[float]] = {expert: [] for expert in ACTION_EXPERTS}
        for turn in range(WARM_UP + arguments.steps):  # the experts in turn, so that the machine's moods hit them alike
            for expert in ACTION_EXPERTS:
                taken = milliseconds(by_expert[expert][name])
                if turn >= WARM_UP:
                    found[expert].append(taken)
        medians = {expert: statistics.median(times) for expert, times in found.items()}
        for expert, times in found.items():
            deciles = statistics.quantiles(times, n=10)
            ratio = medians[expert] / medians[ACTION_EXPERTS[0]]
            numbers = (f"{value:.1f}" for value in (medians[expert], deciles[0], deciles[-1]))
            rows.append((name, expert, *numbers, f"{ratio:.2f}"))
    print(f"{arguments.size}, {arguments.threads} threads, n = {arguments.steps}")
    print(Table(("what", "expert", "median ms", "10 %", "90 %", f"of {ACTION_EXPERTS[0]}'s"), rows))
    return 0


if __name__ == "__main__":
    run(main, SpeedArguments, "benchmarks/model_speed.py")
