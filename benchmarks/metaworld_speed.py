"""What Meta-World's 50 tasks cost, before and after: ``python benchmarks/metaworld_speed.py --data data/mt50``.

In one process and in turn: RGB-D frames of MuJoCo's own renderer, of ours with all that Meta-World draws, and of ours
as it is; with ``--data`` training steps on batches of many tasks, padded as one and in groups of like length.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import tyro
from annotated_types import Ge

from sim_eval.console import named_tasks, run
from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import EpisodeKey, FloatArray, RenderConfig

if TYPE_CHECKING:
    import mujoco
    from numpy.typing import NDArray

    Draw = Callable[[mujoco.MjData, int], tuple[NDArray[np.uint8], NDArray[np.float32]]]

SIDE = 128
STOCK, BEFORE, NOW = "MuJoCo's renderer", "ours, all drawn", "ours"
PADDED, GROUPED = "padded as one", "groups of like length"
# Of the pixels above the table: one at an edge may show what is behind it, and meshes are lighter.
DEPTH_METRES, SHARE = 0.02, 0.97
WARM_UP = 2
# Looks are taken this many control steps apart.
APART = 5


@dataclass(frozen=True)
class SpeedArguments:
    """Time Meta-World's pictures and training steps on them, before and after.

    Attributes:
        task: tasks and suites whose pictures are timed.
        looks: pictures of each camera of each task.
        data: demonstrations of several tasks; without them no training steps are timed.
        expert: who is trained.
        steps: training steps of each kind.
    """

    task: Annotated[str, tyro.conf.arg(metavar="T[,T...]")] = "metaworld/MT10"
    looks: Annotated[int, Ge(2)] = 10
    data: tuple[Path, ...] = ()
    expert: Literal["deep_llama", "late_gemma"] = "deep_llama"
    steps: Annotated[int, Ge(2)] = 10


def main(arguments: SpeedArguments) -> int:
    """Runs the command; returns the exit code."""
    frames = [frame_times(task, arguments.looks) for task in named_tasks(arguments.task)]
    report("ms a frame, RGB and depth", {name: [t for each in frames for t in each[name]] for name in frames[0]})
    if arguments.data:
        report(f"ms a training step of {arguments.expert}, batch prepared before", step_times(arguments))
    return 0


@contextmanager
def renderers(model: mujoco.MjModel) -> Iterator[Mapping[str, Draw]]:
    """The three ways to draw a model."""
    import mujoco

    from sim_eval.envs.metaworld_sim import scene_options
    from sim_eval.envs.rendering import RgbdRenderer

    now = scene_options(model, RenderConfig())
    mine = {BEFORE: replace(now, hidden=frozenset(), quads=None), NOW: now}
    ours = {name: RgbdRenderer(model, SIDE, SIDE, "fast", how) for name, how in mine.items()}
    stock = mujoco.Renderer(model, SIDE, SIDE)
    option = mujoco.MjvOption()
    option.geomgroup[:] = [group in now.groups for group in range(len(option.geomgroup))]

    def draw(data: mujoco.MjData, camera: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        stock.update_scene(data, camera, option)
        rgb = stock.render().copy()
        stock.enable_depth_rendering()
        depth = stock.render().copy()
        stock.disable_depth_rendering()
        return rgb, depth

    for renderer in ours.values():
        renderer.sync(model)
    try:
        yield {STOCK: draw, **{name: renderer.render for name, renderer in ours.items()}}
    finally:
        stock.close()
        for renderer in ours.values():
            renderer.close()


def frame_times(task: str, looks: int) -> dict[str, list[float]]:
    """Milliseconds of each frame, by who draws; ours and MuJoCo's depth is compared on the way.

    Raises:
        SimEvalError: not a task of Meta-World, or the pictures show other things.
    """
    from sim_eval.envs.metaworld_sim import CAMERAS, MetaworldSimulator
    from sim_eval.envs.tasks import get_task

    simulator = get_task(task).make(RenderConfig(height=SIDE, width=SIDE))
    if not isinstance(simulator, MetaworldSimulator):
        raise SimEvalError(f"{task} is not of Meta-World: time robosuite with benchmarks/rollout_speed.py")
    simulator.reset(EpisodeKey(task, "val", 0))
    simulator.observe(())
    model, data = simulator._env.model, simulator._scene_camera.data
    cameras = [model.camera(CAMERAS[name]).id for name in ("agentview", "wrist")]
    rng = np.random.default_rng(0)
    taken: dict[str, list[float]] = {STOCK: [], BEFORE: [], NOW: []}
    with renderers(model) as drawn:
        for turn in range(WARM_UP + looks):
            for _ in range(APART):
                simulator.act(rng.uniform(-1, 1, 4))
            simulator.observe(())  # moves what is drawn to where things are now
            for camera in cameras:
                depths = {}
                for name, draw in drawn.items():
                    began = time.perf_counter()
                    depths[name] = draw(data, camera)[1]
                    if turn >= WARM_UP:
                        taken[name].append(1e3 * (time.perf_counter() - began))
                check(task, depths)
    simulator.close()
    return taken


def check(task: str, depths: Mapping[str, NDArray[np.float32]]) -> None:
    """Compares all depths [H, W] with ours, where ours is of something.

    Raises:
        SimEvalError: they differ.
    """
    ours: FloatArray = depths[NOW].astype(np.float64)
    near = ours < 2.0  # metres; beyond are the floor, which ours leaves out, and nothing
    for name, depth in depths.items():
        alike = np.abs(depth - ours)[near] < DEPTH_METRES
        if alike.mean() < SHARE:
            raise SimEvalError(f"{task}: {name} shows other depths than ours at {1 - alike.mean():.1%} of the pixels")


def step_times(arguments: SpeedArguments) -> dict[str, list[float]]:
    """Milliseconds of each training step, by how the batch is padded; the same batches for both."""
    import torch

    from sim_eval.configs import TrainConfig
    from sim_eval.datasets.windows import EpisodeWindows, TaskBalancedBatchSampler
    from sim_eval.policies.spatialvla import modeling_spatialvla
    from sim_eval.policies.spatialvla.trainer import Trainer, TrainingConfig
    from sim_eval.training.preparation import first_model, make_processor

    torch.set_flush_denormal(True)
    torch.set_num_threads(1)
    options = TrainConfig(data=arguments.data, expert=arguments.expert)
    windows = EpisodeWindows(arguments.data, 8, frame_stride=2)
    processor = make_processor(windows, options)
    torch.manual_seed(0)
    config = TrainingConfig()
    trainer = Trainer(first_model(processor.config, options), config, seed=0)
    usual = modeling_spatialvla.TOGETHER
    taken: dict[str, list[float]] = {PADDED: [], GROUPED: []}
    stream = iter(TaskBalancedBatchSampler(windows, config.batch_size, seed=0))
    for turn in range(WARM_UP + arguments.steps):
        batch = processor.training_batch([windows[index] for index in next(stream)])
        for name, together in ((PADDED, config.batch_size), (GROUPED, usual)):
            modeling_spatialvla.TOGETHER = together
            began = time.perf_counter()
            trainer.train_step(batch, 0.0)
            if turn >= WARM_UP:
                taken[name].append(1e3 * (time.perf_counter() - began))
    modeling_spatialvla.TOGETHER = usual
    return taken


def report(what: str, taken: Mapping[str, Sequence[float]]) -> None:
    """Prints medians, deciles, and how many times the last one's median each is."""
    from sim_eval.reporting.tables import Table

    last = statistics.median(list(taken.values())[-1])
    rows = []
    for name, times in taken.items():
        deciles = statistics.quantiles(times, n=10)
        median = statistics.median(times)
        rows.append((name, *(f"{value:.1f}" for value in (median, deciles[0], deciles[-1])), f"{median / last:.2f}x"))
    print(f"{what}, n = {len(times)}")
    print(Table(("", "median", "10 %", "90 %", "of the last"), rows))


if __name__ == "__main__":
    run(main, SpeedArguments, "python benchmarks/metaworld_speed.py")
