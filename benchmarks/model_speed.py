"""How long the network takes: ``.venv/bin/python benchmarks/model_speed.py --data data/lift_wide``.

Times, on real demonstrations, a training step (batch preparation and forward + backward + AdamW + EMA apart) and an
answer to one observation, with the prefix of the VLM computed once against once an Euler step.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sim_eval.console import at_least, run


@dataclasses.dataclass(frozen=True)
class SpeedArguments:
    """Time training steps and answers of a SpatialVLA.

    Attributes:
        data: a folder of demonstrations that sim_eval.collect filled.
        episodes: how many of them to read.
        steps: training steps and answers to time.
        threads: torch's threads.
        size: of the network.
    """

    data: Path
    episodes: int = 20
    steps: int = 60
    threads: int = 2
    size: str = "tiny"


def milliseconds(action: Callable[[], object], times: int) -> list[float]:
    """Each call's wall-clock time, after three calls that do not count."""
    for _ in range(3):
        action()
    found = []
    for _ in range(times):
        began = time.perf_counter()
        action()
        found.append(1e3 * (time.perf_counter() - began))
    return found


def main(arguments: SpeedArguments) -> int:
    """Runs the command; returns the exit code."""
    at_least("steps", arguments.steps, 10)
    at_least("episodes", arguments.episodes, 1)
    at_least("threads", arguments.threads, 1)
    import torch

    from sim_eval.datasets.episode_file import episode_files
    from sim_eval.datasets.windows import EpisodeWindows, batches
    from sim_eval.fine_tuning import make_processor
    from sim_eval.policies.spatialvla.configuration_spatialvla import SIZES
    from sim_eval.policies.spatialvla.modeling_spatialvla import SpatialVLAForConditionalGeneration
    from sim_eval.policies.spatialvla.training import Trainer, TrainingConfig
    from sim_eval.reporting.tables import terminal
    from sim_eval.train import TrainArguments

    torch.set_flush_denormal(True)
    torch.set_num_threads(arguments.threads)
    files = episode_files(arguments.data)[: arguments.episodes]
    windows = EpisodeWindows(files or [arguments.data], SIZES[arguments.size].expert.horizon)
    processor = make_processor(windows, TrainArguments(data=(arguments.data,), out=Path("."), size=arguments.size))
    torch.manual_seed(0)
    model = SpatialVLAForConditionalGeneration(processor.config)
    config = TrainingConfig()
    trainer = Trainer(model, config, seed=0)
    stream = batches(windows, config.batch_size, 0)
    prepared = [processor.training_batch(next(stream)) for _ in range(8)]

    def prepare() -> None:
        processor.training_batch(next(stream))

    def step() -> None:
        trainer.train_step(prepared[trainer.step % len(prepared)], 0.0)

    inputs = processor([windows[len(windows) // 2].observation])
    shape = (1, processor.config.expert.horizon, processor.config.expert.action_dim)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    euler_steps = processor.config.expert.euler_steps
    model.eval()

    @torch.inference_mode()
    def answer() -> None:
        model.predict_action(inputs, noise)

    @torch.inference_mode()
    def answer_uncached() -> None:
        for _ in range(euler_steps):
            model.predict_action(inputs, noise, steps=1)

    rows = []
    for name, action in (
        (f"batch of {config.batch_size} prepared", prepare),
        (f"training step, {config.batch_size} observations x {config.draws} draws", step),
        (f"answer, {euler_steps} Euler steps on one prefix", answer),
        (f"answer, prefix anew in each of {euler_steps} steps", answer_uncached),
    ):
        found = milliseconds(action, arguments.steps)
        ten, ninety = statistics.quantiles(found, n=10)[0], statistics.quantiles(found, n=10)[-1]
        rows.append((name, f"{statistics.median(found):.1f}", f"{ten:.1f}", f"{ninety:.1f}"))
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(f"{arguments.size}: {parameters:.2f} M parameters, {arguments.threads} threads, n = {arguments.steps}")
    print(terminal(("what", "median ms", "10 %", "90 %"), rows))
    return 0


if __name__ == "__main__":
    run(main, SpeedArguments, "benchmarks/model_speed.py")
