"""What a control step of robosuite costs, its own and the compiled one: ``python benchmarks/control_step.py``.

Both go through the same states in one process, in turn, which is checked; so each step is a pair. The last column is
MuJoCo's part of it: ``mj_step`` for as many substeps, without a controller.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Annotated, Any

import numpy as np
import tyro
from annotated_types import Ge

from sim_eval.console import named_tasks, run
from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import EpisodeKey, FloatArray

EPISODE_STEPS = 50


@dataclass(frozen=True)
class StepArguments:
    """Time robosuite's control steps: its own, the compiled ones, and MuJoCo's part of them.

    Attributes:
        task: tasks of robosuite or LIBERO, and suites.
        steps: control steps of each kind and task, all with random actions.
    """

    task: Annotated[str, tyro.conf.arg(metavar="T[,T...]")] = (
        "robosuite/Lift,robosuite/LiftWide,robosuite/PickPlaceCan,robosuite/Stack"
    )
    steps: Annotated[int, Ge(EPISODE_STEPS)] = 300


def main(arguments: StepArguments) -> int:
    """Runs the command; returns the exit code."""
    from sim_eval.reporting.tables import Table

    rows = []
    for task in named_tasks(arguments.task):
        own, compiled, physics = step_milliseconds(task, arguments.steps)
        ratios = [before / now for before, now in zip(own, compiled, strict=True)]
        deciles = quantiles(ratios, n=10)
        ratio = f"{median(ratios):.2f}x [{deciles[0]:.2f}, {deciles[-1]:.2f}]"
        rows.append((task, *(f"{median(times):.2f}" for times in (own, compiled)), ratio, f"{median(physics):.2f}"))
    print(f"ms of CPU time a control step, medians, and the ratio of the pairs [deciles]; n = {len(own)} a task")
    print(Table(("", "robosuite's own", "compiled", "ratio", "physics alone"), rows))
    return 0


def step_milliseconds(task: str, steps: int) -> tuple[list[float], list[float], list[float]]:
    """CPU times of robosuite's own steps, of the compiled ones and of the physics alone.

    Raises:
        SimEvalError: the task has no compiled step, or the steps lead to different states.
    """
    from sim_eval.envs.robosuite_sim import RobosuiteSimulator
    from sim_eval.envs.tasks import get_task

    with closing(get_task(task).make()) as simulator:
        import mujoco

        from sim_eval.envs.osc_pose import CompiledStep

        if not isinstance(simulator, RobosuiteSimulator) or not isinstance(simulator._step, CompiledStep):
            raise SimEvalError(f"{task} has no compiled control step: time a task of robosuite or LIBERO")
        env: Any = simulator._env
        model, data = env.sim.model._model, env.sim.data._data
        substeps = round(env.control_timestep / env.model_timestep)
        kinds: tuple[Callable[[FloatArray], object], ...] = (
            env.step,
            simulator._step,
            lambda action: mujoco.mj_step(model, data, substeps),
        )
        taken: tuple[list[float], ...] = ([], [], [])
        for index in range(steps // EPISODE_STEPS):
            key = EpisodeKey(task, "val", index)
            states = []
            for step, times in zip(kinds, taken, strict=True):
                simulator.reset(key)
                rng = key.rng("benchmark")
                for _ in range(EPISODE_STEPS):
                    action = rng.uniform(-1, 1, env.action_dim)
                    began = time.process_time()
                    step(action)
                    times.append(1e3 * (time.process_time() - began))
                states.append(simulator.snapshot().state)
            if not np.array_equal(states[0], states[1]):
                raise SimEvalError(f"{task}: the compiled control step leads to other states: no time is printed")
    return taken[0], taken[1], taken[2]


if __name__ == "__main__":
    run(main, StepArguments, "python benchmarks/control_step.py")
