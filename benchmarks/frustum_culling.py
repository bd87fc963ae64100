"""What a frame costs with and without what lies outside the camera's frustum: ``python benchmarks/frustum_culling.py``.

Both draw the same states in one process, in turn, so each frame is a pair. Their pictures must be equal to the bit.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Annotated

import numpy as np
import tyro
from annotated_types import Ge

from sim_eval.console import named_tasks, run
from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import EpisodeKey, RenderConfig, RenderMode

EPISODE_LOOKS, WARM_UP = 20, 5


@dataclass(frozen=True)
class CullingArguments:
    """Time frames, RGB and depth: with all geoms, and with those that the camera can see.

    Attributes:
        task: tasks of robosuite, LIBERO or Meta-World, and suites.
        looks: frames of each camera, at random places.
        sides: height and width of the pictures.
        render: faithful leaves out geoms from depth alone.
    """

    task: Annotated[str, tyro.conf.arg(metavar="T[,T...]")] = (
        "robosuite/Lift,robosuite/PickPlaceCan,robosuite/Stack,metaworld/reach-v3,metaworld/drawer-open-v3"
    )
    looks: Annotated[int, Ge(WARM_UP)] = 100
    sides: tuple[int, ...] = (128, 256)
    render: RenderMode = "fast"


@dataclass(frozen=True)
class Pair:
    """One frame, drawn both ways: milliseconds of CPU time and numbers of geoms."""

    camera: str
    whole_milliseconds: float
    culled_milliseconds: float
    whole_geoms: int
    culled_geoms: int


def main(arguments: CullingArguments) -> int:
    """Runs the command; returns the exit code."""
    from sim_eval.reporting.tables import Table

    os.environ["LP_NUM_THREADS"] = "0"  # as in workers
    rows = []
    for task in named_tasks(arguments.task):
        for side in arguments.sides:
            pairs = list(frames(task, RenderConfig(arguments.render, side, side), arguments.looks))
            for camera in dict.fromkeys(pair.camera for pair in pairs):
                rows.append((f"{task} {camera}", str(side), *cells([pair for pair in pairs if pair.camera == camera])))
    print(f"ms of CPU time a frame, RGB and depth, medians; ratio of the pairs [deciles]; n = {arguments.looks}")
    print(Table(("", "pixels", "geoms drawn", "all", "culled", "ratio"), rows))
    return 0


def cells(pairs: list[Pair]) -> tuple[str, ...]:
    """A camera's cells of the table."""
    ratios = [pair.whole_milliseconds / pair.culled_milliseconds for pair in pairs]
    deciles = quantiles(ratios, n=10)
    return (
        f"{median(pair.culled_geoms for pair in pairs):.0f} of {median(pair.whole_geoms for pair in pairs):.0f}",
        f"{median(pair.whole_milliseconds for pair in pairs):.2f}",
        f"{median(pair.culled_milliseconds for pair in pairs):.2f}",
        f"{median(ratios):.2f}x [{deciles[0]:.2f}, {deciles[-1]:.2f}]",
    )


def frames(task: str, config: RenderConfig, looks: int) -> Iterator[Pair]:
    """Draws each camera of a task at random places.

    Raises:
        SimEvalError: the simulator is not on MuJoCo, or a pixel differs.
    """
    from sim_eval.envs.rendering import RgbdRenderer
    from sim_eval.envs.scene_camera import MujocoSimulator
    from sim_eval.envs.tasks import get_task

    with closing(get_task(task).make(config)) as simulator:
        if not isinstance(simulator, MujocoSimulator):
            raise SimEvalError(f"{task} is not rendered here: time a task of robosuite, LIBERO or Meta-World")
        scene = simulator._scene_camera
        rng = np.random.default_rng(0)
        size = config.height, config.width
        renderers = [RgbdRenderer(scene._model, *size, config.mode, scene._scene_options) for _ in range(2)]
        renderers[0]._depth_canvas.culls = False
        for look in range(WARM_UP + looks):
            if look % EPISODE_LOOKS == 0:
                simulator.reset(EpisodeKey(task, "val", look // EPISODE_LOOKS))
                for renderer in renderers:
                    renderer.sync(scene._model)
            simulator.act(rng.uniform(-1, 1, simulator.spec.action.dim))
            simulator.observe(())  # moves what is drawn to where things are now
            for name, camera in scene._cameras.items():
                times, pictures = [0.0, 0.0], {}
                for which in (0, 1) if look % 2 else (1, 0):
                    began = time.process_time()
                    pictures[which] = renderers[which].render(scene.data, camera)
                    times[which] = 1e3 * (time.process_time() - began)
                if not all(np.array_equal(*both) for both in zip(*pictures.values(), strict=True)):
                    raise SimEvalError(f"{task}: camera '{name}' shows something else when culled: time nothing")
                if look >= WARM_UP:
                    yield Pair(name, *times, *(renderer._depth_canvas.scene.ngeom for renderer in renderers))
        for renderer in renderers:
            renderer.close()


if __name__ == "__main__":
    run(main, CullingArguments, "python benchmarks/frustum_culling.py")
